"""Fixtures of the op tests."""

import importlib.util

import pytest

from mmvmamba.ops import triton


@pytest.fixture
def triton_on_cpu(monkeypatch):
    """Let ``backend='triton'`` take CPU tensors, as where Triton's interpreter is on."""
    if reason := triton.package_error():
        pytest.skip(reason)
    if importlib.util.find_spec('mmvmamba.ops.triton.launch') is None:
        pytest.skip('there are no Triton kernels')
    monkeypatch.setattr(triton, 'interprets', lambda: True)
