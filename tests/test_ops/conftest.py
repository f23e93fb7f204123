"""Fixtures of the op tests."""

import sys

import pytest

from mmvmamba.ops import backend, triton

from . import interpreter


@pytest.fixture
def triton_on_cpu(monkeypatch):
    """Let ``backend='triton'`` run on CPU tensors; return the interpreted copies of its modules.

    The interpreter's own faults are worked around here, and not in the kernels.
    """
    if reason := triton.package_error():
        pytest.skip(reason)
    with interpreter.interpreted() as modules:
        monkeypatch.setitem(sys.modules, f'{triton.__name__}.launch', modules.launch)
        monkeypatch.setattr(triton, 'interprets', lambda: True)
        monkeypatch.setattr(backend, 'INTERPRETED_DTYPES', backend.TRITON_DTYPES)
        yield modules
