"""Choice of the test images to draw."""

import pytest
from mmdet.engine.hooks import DetVisualizationHook
from mmengine.visualization import Visualizer

from mmvmamba.engine.hooks.interval_visualization_hook import IntervalDetVisualizationHook


@pytest.mark.parametrize(
    ('interval', 'drawn'), [(1, list(range(1, 8))), (2, [2, 4, 6]), (7, [7]), (8, [])]
)
def test_every_nth_image_over_the_batches(monkeypatch, interval, drawn):
    found = []
    monkeypatch.setattr(
        DetVisualizationHook,
        'after_test_iter',
        lambda self, runner, batch_idx, data_batch, outputs: found.extend(outputs),
    )
    Visualizer.get_instance('test')
    hook = IntervalDetVisualizationHook(draw=True, interval=interval)
    for index, batch in enumerate([[1, 2, 3], [4, 5, 6], [7]]):
        hook.after_test_iter(None, index, None, batch)
    assert found == drawn
