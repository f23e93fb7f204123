"""What holds for all tests."""

import importlib.util

import pytest


def _globals():
    """What MMEngine keeps for the whole process, by name; nothing on a machine with torch alone."""
    if importlib.util.find_spec('mmengine') is None:
        return ()
    from mmengine.logging import MessageHub, MMLogger
    from mmengine.registry import DefaultScope
    from mmengine.visualization import Visualizer

    return (DefaultScope, MessageHub, MMLogger, Visualizer)


GLOBALS = _globals()


@pytest.fixture(autouse=True)
def globals_of_its_own():
    """A test's default scope is not the next one's, nor is a logger that writes to its output."""
    before = [dict(cls._instance_dict) for cls in GLOBALS]
    yield
    for cls, instances in zip(GLOBALS, before, strict=True):
        cls._instance_dict.clear()
        cls._instance_dict.update(instances)
