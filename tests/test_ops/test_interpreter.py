"""The interpreter beside the compiler, in one process."""

import sys

import pytest
import torch

from mmvmamba.ops import ss2d_scan
from mmvmamba.ops import triton as package

from . import interpreter
from .cases import ss2d_inputs

if reason := package.package_error():
    pytest.skip(reason, allow_module_level=True)

import triton
import triton.language as tl

OWNERS = (tl, tl.core, tl.math, tl.standard, tl.tensor, tl.dtype, tl.core.tensor_descriptor_base)


def test_triton_is_as_before():
    from mmvmamba.ops.triton import launch, tiles

    before = [dict(vars(owner)) for owner in OWNERS]
    with interpreter.interpreted() as modules:
        steps = torch.zeros(3, 16)
        modules.probes.softplus_probe[(1,)](*steps, N=16, EXACT=True)
        torch.testing.assert_close(steps[1], torch.ones(16))  # log2(1 + 2^0)
    for owner, state in zip(OWNERS, before, strict=True):
        assert all(vars(owner)[name] is value for name, value in state.items())
    assert package.launch is launch is sys.modules[launch.__name__]
    assert modules.tiles is not tiles
    assert isinstance(tiles.softplus, triton.JITFunction)
    assert not isinstance(modules.tiles.softplus, triton.JITFunction)


def test_only_the_fixture_lets_triton_take_cpu_tensors(request):
    inputs = ss2d_inputs(1, 1, batch=1, dtype=torch.float32)
    with pytest.raises(RuntimeError, match='a GPU is required'):
        ss2d_scan(**inputs, backend='triton')
    request.getfixturevalue('triton_on_cpu')
    assert ss2d_scan(**inputs, backend='triton').isfinite().all()
