"""The package where the native extension is missing or broken, and what an import brings in."""

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import mmvmamba
from mmvmamba.ops import extension, has_kernel

PACKAGE = Path(mmvmamba.__file__).parent
BODY = """
import warnings
import torch
from mmvmamba.nn import SS2D, VMambaNet
from mmvmamba.ops import extension_error, selective_scan, ss2d_scan
torch.manual_seed(0)
net = VMambaNet(dict(dims=(8, 16), depths=(1, 1), d_state=2), num_classes=3)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    for _ in range(2):
        y = net(torch.ones(2, 3, 33, 40))
    (y * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
grads = torch.cat([p.grad.flatten() for p in net.parameters()])
seen = [str(w.message) for w in caught if w.category.__name__ == 'ExtensionUnavailableWarning']
error = ''
try:
    SS2D(8, backend='native')(torch.ones(1, 2, 2, 8))
except RuntimeError as e:
    error = str(e)
meta = ''
try:
    SS2D(8, backend='native').to('meta')(torch.ones(1, 2, 2, 8, device='meta'))
except RuntimeError as e:
    meta = str(e)
torch.save(dict(y=y.detach(), grads=grads, seen=seen, error=error, meta=meta,
                reason=extension_error()), {file!r})
"""


def run_python(code, folder, **env):
    # The folder of the package comes before the installed one.
    env = {**os.environ, 'PYTHONPATH': str(folder), **env}
    return subprocess.run(
        [sys.executable, '-c', code], env=env, cwd=folder, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip


def copy_package(folder):
    """The package's Python files alone."""
    shutil.copytree(
        PACKAGE,
        folder / 'mmvmamba',
        ignore=shutil.ignore_patterns('_C*', '_build_info*.py', '.mim', '__pycache__'),
    )


@pytest.fixture(scope='module')
def results(tmp_path_factory):
    loaded = {}
    for kind in ('missing', 'broken', 'installed'):
        folder = tmp_path_factory.mktemp(kind)
        if kind != 'installed':
            copy_package(folder)
        if kind == 'broken':
            (folder / 'mmvmamba' / '_C.so').write_bytes(b'not a library')
        file = folder / 'result.pt'
        result = run_python(BODY.format(file=str(file)), folder)
        assert result.returncode == 0, result.stderr
        loaded[kind] = torch.load(file)
    return loaded


@pytest.mark.parametrize(
    ('kind', 'reason'),
    [
        ('missing', 'it was not built'),
        ('broken', '_C.so did not load'),
    ],
)
def test_runs_with_one_warning_that_says_why(results, kind, reason):
    (message,) = results[kind]['seen']
    assert reason in message
    assert results[kind]['reason'].startswith(reason)


@pytest.mark.skipif(not has_kernel('ss2d_scan', 'cpu'), reason='no native kernel')
@pytest.mark.parametrize('kind', ['missing', 'broken'])
def test_same_numbers_as_with_the_extension(results, kind):
    assert results['installed']['seen'] == []
    for name in ('y', 'grads'):
        torch.testing.assert_close(
            results[kind][name], results['installed'][name], rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize('kind', ['missing', 'broken'])
@pytest.mark.parametrize('where', ['error', 'meta'])
def test_native_backend_is_an_error(results, kind, where):
    assert results[kind][where].startswith("backend='native' cannot run ss2d_scan on ")
    assert results[kind]['reason'] in results[kind][where]


@pytest.fixture
def cuda_library(monkeypatch, tmp_path):
    """Folder of a package built for CUDA 13, with an invalid CUDA library."""
    (tmp_path / '_C_cuda.so').write_bytes(b'not a library')
    monkeypatch.setattr(extension, '_PACKAGE', tmp_path)
    monkeypatch.setattr(extension, 'build_info', lambda: {'cuda': '13.0'})
    monkeypatch.setattr(torch.version, 'hip', None)
    return tmp_path / '_C_cuda.so'


def test_cuda_library_that_does_not_load(cuda_library, monkeypatch):
    monkeypatch.setattr(torch.version, 'cuda', '13.2')
    assert extension._load_cuda().startswith('_C_cuda.so did not load with torch')


def test_cuda_library_for_another_cuda_is_not_loaded(cuda_library, monkeypatch):
    monkeypatch.setattr(torch.version, 'cuda', '12.8')
    reason = f'it was built for CUDA 13.0, but torch {torch.__version__} is for CUDA 12.8'
    assert extension._load_cuda() == reason


def test_cuda_library_without_cuda(cuda_library, monkeypatch):
    monkeypatch.setattr(torch.version, 'cuda', None)
    assert extension._load_cuda() == f'torch {torch.__version__} is built without CUDA'


def test_cuda_library_that_was_not_built(cuda_library, monkeypatch):
    monkeypatch.setattr(torch.version, 'cuda', '13.0')
    cuda_library.unlink()
    assert extension._load_cuda() == 'it was not built (CUDA was not found during the build)'
    monkeypatch.setattr(extension, 'build_info', lambda: {'cuda_error': 'nvcc failed'})
    assert extension._load_cuda() == 'it was not built (nvcc failed)'


def test_error_of_each_device(monkeypatch):
    monkeypatch.setattr(extension, '_ERROR', None)
    monkeypatch.setattr(extension, '_CUDA_ERROR', 'nvcc failed')
    assert extension.extension_error() is None
    assert extension.extension_error('cuda') == 'nvcc failed'
    assert extension.extension_error('mps') == 'there are no kernels for mps'
    monkeypatch.setattr(extension, '_ERROR', 'no compiler')
    for device in ('cpu', 'cuda', 'mps'):
        assert extension.extension_error(device) == 'no compiler'


LIBRARIES = sorted(p for p in PACKAGE.glob('_C*') if p.suffix in ('.so', '.pyd'))


@pytest.mark.skipif(sys.platform != 'linux' or not shutil.which('nm'), reason='no nm for ELF')
@pytest.mark.skipif(not LIBRARIES, reason='no native library')
@pytest.mark.parametrize('library', LIBRARIES, ids=lambda path: path.stem)
def test_libraries_use_the_stable_abi_only(library):
    command = ['nm', '-D', '--undefined-only', '--format=just-symbols', str(library)]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    names = {name.partition('@')[0] for name in found}
    assert 'torch_call_dispatcher' in names
    # Mangled names of the namespaces at, c10, torch and caffe2, and Python's.
    unstable = re.compile(r'_ZN?[KVr]*(?:2at|3c10|5torch|6caffe2)|_Z\w*(?:N2at|N3c10|N5torch)|_?Py')
    assert not [name for name in names if unstable.match(name)]
    if library.stem == '_C':
        assert not [name for name in names if 'cuda' in name and not name.endswith('type_cuda')]


@pytest.mark.parametrize('module', ['mmvmamba', 'mmvmamba.ops', 'mmvmamba.nn'])
def test_import_needs_torch_alone(module, tmp_path):
    code = (
        f'import sys, {module}\n'
        "roots = {name.split('.')[0] for name in sys.modules} - {'mmap'}\n"
        "print(sorted(r for r in roots if r.startswith('mm') or r in ('cv2', 'timm')))"
    )
    result = subprocess.run(
        [sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "['mmvmamba']"


@pytest.mark.skipif(extension.extension_error() is not None, reason='no native kernel')
@pytest.mark.skipif(platform.machine() != 'x86_64', reason='other processors have one build')
def test_instruction_set_is_torchs():
    assert torch.ops.mmvmamba.cpu_isa() == torch.backends.cpu.get_cpu_capability().lower()
