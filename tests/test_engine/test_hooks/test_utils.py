"""Values that hooks read from a batch."""

import pytest
from mmengine.structures import BaseDataElement

from mmvmamba.engine.hooks.utils import batch_metainfo


@pytest.mark.parametrize(
    ('batch', 'metainfo'),
    [
        (
            dict(data_samples=[BaseDataElement(metainfo=dict(a=1)), BaseDataElement()]),
            [{'a': 1}, {}],
        ),
        (dict(data_samples=[object()]), [{}]),
        (dict(data_samples=None), []),
        (dict(inputs=1), []),
        ([1, 2], []),
        (None, []),
    ],
)
def test_batch_metainfo(batch, metainfo):
    assert batch_metainfo(batch) == metainfo
