"""Values that hooks read from a runner and a batch."""

import pytest
import torch
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.structures import BaseDataElement
from torch import nn

from mmvmamba.engine.hooks.utils import batch_metainfo, optim_wrappers, unwrapped


def test_optim_wrappers():
    one, two = (OptimWrapper(torch.optim.SGD(torch.nn.Linear(1, 1).parameters(), 1)) for _ in '12')
    assert optim_wrappers(one) == [one]
    assert optim_wrappers(OptimWrapperDict(a=one, b=two)) == [one, two]


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


def test_unwrapped():
    inner = nn.Linear(1, 1)
    assert unwrapped(inner) is inner
    assert unwrapped(nn.DataParallel(nn.DataParallel(inner))) is inner
