"""Access to parts of MMEngine's runners; the tests of hooks use real ones."""

import torch
from mmengine.optim import OptimWrapper, OptimWrapperDict
from torch import nn

from mmvmamba.engine.utils import accumulated_iterations, optim_wrappers, unwrapped


def wrapper(**settings):
    return OptimWrapper(torch.optim.SGD(nn.Linear(1, 1).parameters(), 1), **settings)


def test_optim_wrappers():
    one, two = wrapper(), wrapper(accumulative_counts=4)
    assert optim_wrappers(one) == [one]
    assert optim_wrappers(OptimWrapperDict(a=one, b=two)) == [one, two]
    assert [accumulated_iterations(w) for w in (one, two)] == [1, 4]


def test_unwrapped():
    inner = nn.Linear(1, 1)
    assert unwrapped(inner) is inner
    assert unwrapped(nn.DataParallel(nn.DataParallel(inner))) is inner
