"""Fixtures and checks for all tests."""

import importlib.util
import os
import shutil
from pathlib import Path

import pytest
import torch

from mmvmamba.environment import mmcv_is_compiled


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
    """Fail if MMVMAMBA_REQUIRE_CUDA=1 and no kernels can run on a GPU."""
    if os.environ.get('MMVMAMBA_REQUIRE_CUDA') != '1':
        return
    import mmvmamba
    from mmvmamba.ops.backend import AUTO_ORDER, why_not

    reasons = {n: why_not(n, 'ss2d_scan', torch.device('cuda', 0)) for n in AUTO_ORDER['cuda']}
    if all(reasons.values()):
        text = '; '.join(f'{name}: {reason}' for name, reason in reasons.items())
        # `python -m pytest` puts the working directory before what is installed.
        raise pytest.UsageError(
            f'MMVMAMBA_REQUIRE_CUDA=1, but no kernels can run on a GPU: {text} (mmvmamba was '
            f'imported from {Path(mmvmamba.__file__).parent})'
        )


def pytest_report_header():
    """Name the package under test, an installed wheel perhaps, and the state of its kernels."""
    import mmvmamba
    from mmvmamba.ops import extension_error

    state = extension_error() or 'loaded'
    return f'mmvmamba: {Path(mmvmamba.__file__).parent}, native extension: {state}'


@pytest.fixture(autouse=True)
def globals_of_its_own():
    """A test's default scope is not the next one's, nor is a logger that writes to its output."""
    before = [dict(cls._instance_dict) for cls in GLOBALS]
    yield
    for cls, instances in zip(GLOBALS, before, strict=True):
        cls._instance_dict.clear()
        cls._instance_dict.update(instances)


@pytest.fixture(scope='session', autouse=True)
def spared_runs():
    """Most runs in this process are tiny ones."""
    if not GLOBALS:
        yield
        return
    from .test_tools.quick_runs import spare_runs

    with pytest.MonkeyPatch.context() as patch:
        spare_runs(patch.setattr)
        yield


@pytest.fixture(scope='session')
def compiled_mmcv():
    """Skip a test where mmcv has no compiled ops."""
    pytest.importorskip('mmcv')
    if not mmcv_is_compiled():
        pytest.skip('mmcv is installed without compiled ops')


@pytest.fixture(scope='session')
def stock_launcher():
    """Options of Python that run a tool of mmdet or mmseg, whatever mmcv is installed."""
    return () if mmcv_is_compiled() else ('-m', 'mmvmamba.mmcv_ops')


@pytest.fixture(scope='session')
def pure_mmcv(tmp_path_factory):
    """A folder with the installed mmcv, without its compiled ops."""
    pytest.importorskip('mmcv')
    folder = tmp_path_factory.mktemp('pure')
    ignored = shutil.ignore_patterns('_ext.*', 'csrc', '__pycache__')
    source = Path(importlib.util.find_spec('mmcv').origin).parent
    shutil.copytree(source, folder / 'mmcv', ignore=ignored)
    return folder


@pytest.fixture(scope='session')
def server():
    """Fork runs of the tools, which a test can kill; see fault_server.py."""
    from .test_tools.fault_jobs import FaultServer

    server = FaultServer()
    yield server
    server.close()


@pytest.fixture
def run_fork(server, tmp_path):
    """Run a tool in a process of its own, which need not import anything; return its output."""

    def run(name, *args, cwd):
        log = tmp_path / f'{name}.txt'
        pid = server.start_tool(name, *args, cwd=cwd, log=log)
        status = server.wait(pid)
        if status is None:
            server.kill(pid)
        assert status == 0, log.read_text()[-3000:]
        return log.read_text()

    return run
