"""The inputs of test_cuda.py, on the CPU: no test there may fail on a correct kernel."""

import functools

import pytest
import torch

from . import test_selective_scan as selective
from . import test_ss2d_scan as ss2d
from .cases import HALF, move, run, ss2d_inputs
from .test_cuda import BOTH, function_of, inputs_of

CHUNKED = {'ss2d_scan': ss2d.chunked, 'selective_scan': selective.chunked}


@BOTH
@pytest.mark.parametrize('dtype', HALF['dtype'], ids=str)
@pytest.mark.parametrize('sizes', [{}, {'d_state': 3, 'batch': 5}], ids=['small', 'large'])
def test_results_are_finite_and_equal_to_themselves(op, dtype, sizes):
    """A scan that overflows gives NaN, which is not equal to itself."""
    options = function_of(op, 'native').keywords
    del options['backend']
    chunked = functools.partial(CHUNKED[op], **options)
    first, second = (run(chunked, inputs_of(op, dtype, **sizes)) for _ in range(2))
    for name, value in first.items():
        assert value.isfinite().all(), name
        assert torch.equal(second[name], value), name


@pytest.mark.parametrize('layout', ['dense', 'permuted', 'sliced', 'offset'])
def test_layouts_reach_the_gpu(layout):
    for name, value in ss2d_inputs(layout=layout).items():
        moved = move(value, 'meta')
        assert moved.stride() == value.stride(), name
        assert moved.storage_offset() == value.storage_offset(), name
