"""The package where the native extension is missing or broken, and what an import brings in."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import mmvmamba
from mmvmamba.ops import has_kernel

PACKAGE = Path(mmvmamba.__file__).parent
TAG = torch.__version__.replace('.', '_').replace('+', '_')
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
    for kind in ('missing', 'other', 'broken', 'installed'):
        folder = tmp_path_factory.mktemp(kind)
        if kind != 'installed':
            copy_package(folder)
        if kind == 'broken':
            name = f'_C_{TAG}.so'
            (folder / 'mmvmamba' / name).write_bytes(b'not a library')
        if kind == 'other':  # the build of another environment, for another torch
            (folder / 'mmvmamba' / '_C_1_13_1_cpu.so').write_bytes(b'not a library')
        file = folder / 'result.pt'
        result = run_python(BODY.format(file=str(file)), folder)
        assert result.returncode == 0, result.stderr
        loaded[kind] = torch.load(file)
    return loaded


@pytest.mark.parametrize(
    ('kind', 'reason'),
    [
        ('missing', 'it was not built'),
        ('other', 'it was not built (there is no build for torch'),
        ('broken', f'_C_{TAG}.so did not load'),
    ],
)
def test_runs_with_one_warning_that_says_why(results, kind, reason):
    (message,) = results[kind]['seen']
    assert reason in message
    assert results[kind]['reason'].startswith(reason)
    assert 'pip install --no-build-isolation' in message


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
