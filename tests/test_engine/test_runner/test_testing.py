"""What tools/test.py changes in a config."""

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import init_default_scope
from PIL import Image

import mmvmamba.registry  # noqa: F401  (resolves mmseg:: and mmvmamba::)
from mmvmamba.engine.errors import UserError
from mmvmamba.engine.runner.testing import draw_predictions, use_tta

BOXES = "_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'"


def test_an_image_and_its_mirror_image_are_predicted(tmp_path):
    pytest.importorskip('mmdet.datasets')
    cfg = Config.fromstring(BOXES, '.py')
    init_default_scope(cfg.default_scope)
    use_tta(cfg)
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / '0.png')
    batch = Compose(cfg.test_dataloader.dataset.pipeline)(
        dict(img_path=str(tmp_path / '0.png'), img_id=0)
    )
    assert len(batch['inputs']) == 2
    assert torch.equal(batch['inputs'][0].flip(-1), batch['inputs'][1])
    assert not torch.equal(*batch['inputs'])
    assert sorted(sample.flip for sample in batch['data_samples']) == [False, True]


@pytest.mark.parametrize(
    ('scope', 'switch'), [('mmdet', 'draw'), ('mmseg', 'draw'), ('mmpretrain', 'enable')]
)
def test_drawing_takes_its_options(scope, switch, tmp_path):
    hook = dict(type='VisualizationHook')
    cfg = Config(
        dict(
            default_scope=scope,
            model=dict(),
            visualizer=dict(),
            default_hooks=dict(visualization=hook),
        )
    )
    draw_predictions(cfg, True, str(tmp_path), 0.5, 3)
    hook = cfg.default_hooks.visualization
    assert (hook.show, hook.wait_time, hook.interval, hook[switch]) == (True, 0.5, 3, True)
    with pytest.raises(UserError, match='--interval must be at least 1, but got 0'):
        draw_predictions(cfg, True, None, 2.0, 0)
