"""Fixtures and checks for all tests."""

import importlib.util
import os
from pathlib import Path

import pytest
import torch


def _globals():
    """Return MMEngine's classes with process-wide instances, or none with torch alone."""
    if importlib.util.find_spec('mmengine') is None:
        return ()
    from mmengine.logging import MessageHub, MMLogger
    from mmengine.registry import DefaultScope
    from mmengine.visualization import Visualizer

    return (DefaultScope, MessageHub, MMLogger, Visualizer)


GLOBALS = _globals()


def pytest_configure():
    """Fail if MMVMAMBA_REQUIRE_CUDA=1 and the CUDA kernels cannot run."""
    if os.environ.get('MMVMAMBA_REQUIRE_CUDA') != '1':
        return
    import mmvmamba
    from mmvmamba.info import why_not_native

    if reason := why_not_native(torch.device('cuda', 0)):
        # `python -m pytest` puts the working directory before what is installed.
        raise pytest.UsageError(
            f'MMVMAMBA_REQUIRE_CUDA=1, but the CUDA kernels cannot run: {reason} (mmvmamba was '
            f'imported from {Path(mmvmamba.__file__).parent})'
        )


@pytest.fixture(autouse=True)
def globals_of_its_own():
    """A test's default scope is not the next one's, nor is a logger that writes to its output."""
    before = [dict(cls._instance_dict) for cls in GLOBALS]
    yield
    for cls, instances in zip(GLOBALS, before, strict=True):
        cls._instance_dict.clear()
        cls._instance_dict.update(instances)
