"""Why the Triton kernels cannot run, with the machine played by stand-ins."""

from types import SimpleNamespace

import pytest
import torch

from mmvmamba.ops import triton
from mmvmamba.ops.backend import why_not

GPU, CPU = torch.device('cuda', 0), torch.device('cpu')


@pytest.fixture
def machine(monkeypatch):
    """Sets the installed triton, the GPU's capability (None for no GPU) and the interpreter."""

    def clear():
        triton.package_error.cache_clear()
        triton._gpu_error.cache_clear()

    def is_this(version='3.7.1', capability=(9, 0), hip=None, interprets=False, driver_error=None):
        def get_current_target():
            if driver_error:
                raise RuntimeError(driver_error)

        active = SimpleNamespace(get_current_target=get_current_target)

        def import_module(name):
            if version is None:
                raise ImportError("No module named 'triton'")
            modules = {
                'triton': SimpleNamespace(__version__=version),
                'triton.runtime': SimpleNamespace(driver=SimpleNamespace(active=active)),
            }
            return modules[name]

        monkeypatch.setattr(triton.importlib, 'import_module', import_module)
        monkeypatch.setattr(torch.cuda, 'is_available', lambda: capability is not None)
        monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda index: capability)
        monkeypatch.setattr(torch.version, 'hip', hip)
        monkeypatch.setattr(triton, 'interprets', lambda: interprets)
        clear()

    yield is_this
    clear()


@pytest.mark.parametrize('version', ['3.6.0', '3.7.1', '3.10.0', '4.0', '3.6.0+git1a2b3c'])
def test_versions_that_run(machine, version):
    machine(version=version)
    assert triton.triton_error(GPU) is None


@pytest.mark.parametrize(
    ('settings', 'reason'),
    [
        (dict(version=None), "triton cannot be imported: No module named 'triton'"),
        (dict(version='3.5.1'), 'triton 3.5.1 is installed, but 3.6 is required'),
        (dict(version='2.3'), 'triton 2.3 is installed, but 3.6 is required'),
        (dict(capability=None), 'there is no GPU'),
        (
            dict(capability=(7, 5)),
            'a compute capability of 8.0 is required, but this GPU has 7.5',
        ),
        (dict(capability=(7, 5), hip='6.4'), None),  # another count of architectures
        (dict(capability=(12, 0)), None),
        (
            dict(driver_error='Failed to find C compiler'),
            "triton's driver does not load: Failed to find C compiler",
        ),
    ],
)
def test_reasons(machine, settings, reason):
    machine(**settings)
    assert triton.triton_error(GPU) == reason


def test_other_devices(machine):
    machine()
    for name in ('cpu', 'mps', 'xpu'):
        assert triton.triton_error(torch.device(name)) == 'a GPU is required'
    machine(interprets=True)
    assert triton.triton_error(CPU) is None
    assert triton.triton_error(torch.device('mps')) == 'a GPU is required'
    machine(interprets=True, version=None)
    assert triton.triton_error(CPU).startswith('triton cannot be imported')


def test_the_interpreter_is_refused_bfloat16(machine):
    machine(interprets=True)
    assert why_not('triton', 'ss2d_scan', CPU, torch.float16) is None
    reason = why_not('triton', 'ss2d_scan', CPU, torch.bfloat16)
    assert reason == 'the kernels for cpu take float32, float16, not torch.bfloat16'


@pytest.mark.parametrize(('value', 'on'), [('1', True), ('0', False), (None, False)])
def test_the_interpreter_is_asked_for_in_the_environment(monkeypatch, value, on):
    monkeypatch.delenv('TRITON_INTERPRET', raising=False)
    if value is not None:
        monkeypatch.setenv('TRITON_INTERPRET', value)
    assert triton.interprets() is on
