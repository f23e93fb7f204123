"""``python -m mmvmamba.info`` and what it knows about builds."""

import importlib.metadata
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest
import torch

import mmvmamba
from mmvmamba import environment, info
from mmvmamba.ops import backend, extension, extension_error


def test_the_command_prints_the_report(tmp_path):
    command = [sys.executable, '-m', 'mmvmamba.info']
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert f'mmvmamba          {mmvmamba.__version__}' in result.stdout
    assert f'torch             {torch.__version__}' in result.stdout
    assert f'package           {Path(mmvmamba.__file__).parent}' in result.stdout
    assert result.stdout.splitlines()[0] == 'versions'
    for title in ('extension', 'machine', 'backends', 'files'):
        assert f'\n{title}\n' in result.stdout


def test_versions_name_the_distribution(monkeypatch):
    installed = {'mmcv': '2.1.0'}

    def version(name):
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(importlib.metadata, 'version', version)
    monkeypatch.setattr(info, 'mmcv_is_compiled', lambda: True)
    versions = info.versions()
    assert versions['mmcv'] == '2.1.0 (mmcv, compiled ops)'
    assert versions['mmdet'] == 'not installed'
    recorded = environment.describe_run(torch.device('cpu'))['versions']
    assert recorded['mmcv'] == '2.1.0' and recorded['torch'] == torch.__version__
    assert set(recorded) <= {'python', 'torch', 'mmvmamba', 'cuda', 'mmcv'}


@pytest.mark.parametrize('compiled', [True, False])
def test_versions_tell_whether_mmcv_has_compiled_ops(monkeypatch, tmp_path, compiled):
    package = tmp_path / 'mmcv'
    package.mkdir()
    (package / '__init__.py').write_text('raise ImportError')
    if compiled:
        (package / f'_ext{EXTENSION_SUFFIXES[0]}').touch()
    monkeypatch.setattr(sys, 'path', [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, 'mmcv', raising=False)
    monkeypatch.setattr(info, 'installed_version', lambda name: '1.2.3')
    ops = 'compiled ops' if compiled else 'without compiled ops'
    assert info.versions()['mmcv'] == f'1.2.3 (onedl-mmcv, {ops})'


def test_extension_that_did_not_load(monkeypatch):
    monkeypatch.setattr(info, 'extension_error', lambda *_: 'it was not built (no compiler)')
    monkeypatch.setattr(info, 'has_kernel', lambda op, device: False)
    monkeypatch.setattr(info, 'build_info', lambda: {'torch': '2.12.1'})
    assert info.extension() == {
        'loaded': 'no: it was not built (no compiler)',
        'built with torch': '2.12.1',
    }
    assert info.backends()['cpu'] == 'the chunked PyTorch form'


@pytest.mark.skipif(extension_error() is not None, reason='no native extension')
def test_extension_that_loaded():
    assert info.extension()['loaded'] == 'yes'
    assert info.machine()['CPU kernels'] in ('avx512', 'avx2', 'default')
    assert 'bfloat16' in info.backends()['cpu']


@pytest.mark.parametrize(
    ('capability', 'archs', 'runs'),
    [
        ((9, 0), ['9.0'], True),
        ((9, 0), ['8.0'], False),
        ((8, 6), ['8.0'], True),  # machine code runs on later GPUs of its major version
        ((8, 0), ['8.6'], False),
        ((10, 0), ['9.0+PTX'], True),  # and the intermediate form on all later ones
        ((8, 0), ['9.0+PTX'], False),
        ((9, 0), ['8.0', '9.0a'], True),
        ((10, 3), ['10.0a'], False),  # code for one architecture alone
        ((10, 3), ['10.0f'], True),  # for its family
        ((9, 0), [], True),
        ((9, 0), ['Hopper'], True),
    ],
)
def test_architectures_that_a_build_runs_on(capability, archs, runs):
    assert extension.runs_on(capability, archs) is runs


@pytest.fixture
def old_build(monkeypatch):
    """A build with CUDA kernels for another GPU than the one there is."""
    monkeypatch.setattr(extension, 'build_info', lambda: {'arch_list': ['8.0']})
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda index: (9, 0))
    monkeypatch.setattr(backend, 'has_kernel', lambda op, device: True)
    monkeypatch.setattr(backend, 'extension_error', lambda *_: None)
    extension.architecture_error.cache_clear()
    extension.warn_no_kernel.cache_clear()
    yield
    extension.architecture_error.cache_clear()
    extension.warn_no_kernel.cache_clear()


class OnGpu:
    """Attributes of a tensor on a GPU, as far as the choice of a backend reads them."""

    device = torch.device('cuda:0')
    dtype = torch.float32


def test_an_architecture_that_was_not_built_for(old_build):
    with pytest.warns(extension.ExtensionUnavailableWarning, match='TORCH_CUDA_ARCH_LIST="9.0"'):
        assert backend.choose_backend('ss2d_scan', 'auto', OnGpu()) == 'chunked'
    with pytest.raises(RuntimeError, match='built for the architectures 8.0, but this GPU has 9.0'):
        backend.choose_backend('ss2d_scan', 'native', OnGpu())
