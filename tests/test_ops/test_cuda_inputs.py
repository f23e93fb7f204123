"""The inputs of test_cuda.py, on the CPU: no test there may fail on a correct kernel."""

import functools

import pytest
import torch

from . import test_selective_scan as selective
from . import test_ss2d_scan as ss2d
from .cases import HALF, run
from .test_cuda import BOTH, OPS

CHUNKED = {'ss2d_scan': ss2d.chunked, 'selective_scan': selective.chunked}


@BOTH
@pytest.mark.parametrize('dtype', HALF['dtype'], ids=str)
@pytest.mark.parametrize(
    'sizes', [{'channels': 40}, {'d_state': 3, 'channels': 40, 'batch': 5}], ids=['small', 'large']
)
def test_results_are_finite_and_equal_to_themselves(op, dtype, sizes):
    """A scan that overflows gives NaN, which is not equal to itself."""
    function, make = OPS[op]
    options = {name: value for name, value in function.keywords.items() if name != 'backend'}
    chunked = functools.partial(CHUNKED[op], **options)
    first, second = (run(chunked, make(dtype=dtype, **sizes)) for _ in range(2))
    for name, value in first.items():
        assert value.isfinite().all(), name
        assert torch.equal(second[name], value), name
