"""``python -m mmvmamba.info`` and what it knows about builds."""

import importlib.metadata
import os
import re
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
    for module in (info, backend):
        monkeypatch.setattr(module, 'extension_error', lambda *_: 'it was not built (no compiler)')
        monkeypatch.setattr(module, 'has_kernel', lambda op, device: False)
    monkeypatch.setattr(info, 'build_info', lambda: {'torch': '2.12.1'})
    assert info.extension() == {
        'loaded': 'no: it was not built (no compiler)',
        'built with torch': '2.12.1',
    }
    assert info.backends()['cpu'] == (
        'the chunked PyTorch implementation for float32, float16, bfloat16, float64 (native: it '
        'was not built (no compiler))'
    )


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
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda index: (9, 0))
    monkeypatch.setattr(backend, 'triton_error', lambda device: 'it is too old')
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


def test_backends_of_a_gpu(old_build, monkeypatch):
    text = info.backends()['cuda:0']
    assert text.startswith(
        'the chunked PyTorch implementation for float32, float16, bfloat16, float64 ('
    )
    assert 'triton: it is too old; native: the kernels were built for' in text
    monkeypatch.setattr(backend, 'triton_error', lambda device: None)
    text = info.backends()['cuda:0']
    kernels = (
        'Triton kernels for float32, float16, bfloat16; '
        'the chunked PyTorch implementation for float64'
    )
    assert text.startswith(f'{kernels} (native: the kernels were built for')
    monkeypatch.setattr(backend, 'architecture_error', lambda index: None)
    kernels = 'Triton kernels for float32, float16, bfloat16; native kernels for float64'
    assert info.backends()['cuda:0'] == kernels


@pytest.mark.parametrize('reason', [None, 'triton cannot be imported'])
def test_version_of_triton(monkeypatch, reason):
    monkeypatch.setattr(info, 'package_error', lambda: reason)
    if reason is None:
        triton = pytest.importorskip('triton')
    assert info.versions()['triton'] == (reason or triton.__version__)


# ---- the compilation ahead -----------------------------------------------------------------------


@pytest.fixture
def on_cpu(monkeypatch):
    """Replace GPU and kernels: the layers run on the CPU, in PyTorch."""
    launch = pytest.importorskip('mmvmamba.ops.triton.launch')
    monkeypatch.setattr(launch, 'device_target', lambda device: launch.GPUTarget('cuda', 90, 32))
    monkeypatch.setattr(info, 'why_not', lambda *_: None)
    monkeypatch.setattr(torch.cuda, 'synchronize', lambda: None)
    monkeypatch.setattr(torch.nn.Module, 'cuda', lambda self: self)
    randn = torch.randn
    monkeypatch.setattr(torch, 'randn', lambda *sizes, device: randn(*sizes))
    monkeypatch.setattr('mmvmamba.nn.ss2d.ss2d_scan', scan)


def scan(x, *_, backend, out_dtype=None):
    assert backend == 'triton'
    return x * 2


def test_warm_up_names_what_it_compiles(on_cpu, capsys):
    info.main(['--warm-up', '--dtype', 'float32'])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 3 * 4 + 1
    assert re.match(r'0 kernels compiled in parallel: [\d.]+ s$', lines[0])
    assert re.match(r'stage 0: map 7 x 7, 96 channels, d_state 1, rank 6: [\d.]+ s$', lines[1])
    assert re.match(r'stage 3: map 20 x 20, 768 channels, d_state 1, rank 48: [\d.]+ s$', lines[12])
    assert re.match(r'tiny, float32: [\d.]+ s$', lines[13])
    info.main(['--warm-up', 'vanilla_tiny'])
    assert '192 channels, d_state 16, rank 6' in capsys.readouterr().out


def test_warm_up_of_an_unknown_model(on_cpu, capsys):
    with pytest.raises(SystemExit) as stop:
        info.main(['--warm-up', 'huge'])
    assert stop.value.code == 2
    assert "--warm-up: arch must be one of ['base'" in capsys.readouterr().err


def test_warm_up_without_a_gpu(monkeypatch, tmp_path):
    env = os.environ | dict(CUDA_VISIBLE_DEVICES='')
    command = [sys.executable, '-m', 'mmvmamba.info', '--warm-up', 'small', '--dtype', 'bfloat16']
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env)
    assert result.returncode == 2 and not result.stdout
    assert 'error: --warm-up: the Triton kernels cannot run: ' in result.stderr
