"""The stand-ins are importable in these tests alone."""

import sys

import pytest

from ..test_ops.conftest import triton_on_cpu as triton_on_cpu


@pytest.fixture(autouse=True)
def dropin():
    """The package, freshly installed; imported stand-ins are forgotten afterwards."""
    finders = list(sys.meta_path)
    import mmvmamba.dropin

    mmvmamba.dropin.install()
    yield mmvmamba.dropin
    sys.meta_path[:] = [f for f in finders if type(f).__module__ != 'mmvmamba.dropin']
    for name in mmvmamba.dropin.MODULES:
        sys.modules.pop(name, None)
