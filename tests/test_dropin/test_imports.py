"""Which module is imported: an installed one, a stand-in, or none."""

import importlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest


def install_package(folder, *modules):
    """Write packages whose modules have a NAME, as if they were installed."""
    for name in modules:
        path = folder.joinpath(*name.split('.'))
        path.mkdir(parents=True, exist_ok=True)
        (path / '__init__.py').write_text(f'NAME = {name!r}')


def run_python(code, *folders):
    """Run code with folders on the path, in a process of its own."""
    lines = [f'import sys; sys.path[:0] = {[str(f) for f in folders]}', code]
    command = [sys.executable, '-c', '\n'.join(lines)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_every_module_has_its_names(dropin):
    for name in dropin.MODULES:
        module = importlib.import_module(name)
        assert module.__spec__.name == name
        public = [n for n in vars(module) if not n.startswith('_')]
        submodules = [m for m in dropin.MODULES if m.startswith(f'{name}.')]
        assert public or submodules, name


def test_the_finder_comes_last_and_once(dropin):
    dropin.install()
    finders = [f for f in sys.meta_path if type(f).__module__ == 'mmvmamba.dropin']
    assert finders == [sys.meta_path[-1]]


def test_nothing_is_imported_but_torch():
    code = (
        'import torch, torch.utils.flop_counter; before = set(sys.modules); '
        'import mmvmamba.dropin, '
        'selective_scan_cuda, mamba_ssm, causal_conv1d, causal_conv1d_cuda; '
        "print({n.split('.')[0] for n in set(sys.modules) - before} - set(sys.stdlib_module_names))"
    )
    result = run_python(code)
    names = set(eval(result.stdout)) if result.stdout else result.stderr
    assert names == {
        'mmvmamba',
        'selective_scan_cuda',
        'mamba_ssm',
        'causal_conv1d',
        'causal_conv1d_cuda',
    }


def test_mmvmamba_alone_provides_nothing():
    result = run_python('import mmvmamba, mmvmamba.ops\nimport selective_scan_cuda')
    assert "No module named 'selective_scan_cuda'" in result.stderr


def test_installed_modules_win(tmp_path):
    install_package(tmp_path, 'selective_scan_cuda', 'mamba_ssm', 'mamba_ssm.ops')
    code = (
        'import mmvmamba.dropin, selective_scan_cuda, mamba_ssm, mamba_ssm.ops\n'
        'print(selective_scan_cuda.NAME, mamba_ssm.NAME, mamba_ssm.ops.NAME)\n'
        # What the installed package lacks is provided.
        'import selective_scan_cuda_core, mamba_ssm.ops.selective_scan_interface as interface\n'
        'print(interface.selective_scan_fn.__module__, callable(selective_scan_cuda_core.fwd))'
    )
    result = run_python(code, tmp_path)
    assert result.stdout.splitlines() == [
        'selective_scan_cuda mamba_ssm mamba_ssm.ops',
        'mmvmamba.ops.selective_scan True',
    ], result.stderr


def test_python_files_without_their_extension(tmp_path):
    """A mamba_ssm without its extension calls the stand-in."""
    install_package(tmp_path, 'mamba_ssm', 'mamba_ssm.ops')
    (tmp_path / 'mamba_ssm/ops/selective_scan_interface.py').write_text(
        'import selective_scan_cuda\nforward = selective_scan_cuda.fwd'
    )
    code = (
        'import mmvmamba.dropin\nfrom mamba_ssm.ops.selective_scan_interface import forward\n'
        'print(forward.__module__)'
    )
    result = run_python(code, tmp_path)
    assert result.stdout.strip() == 'mmvmamba.dropin.extensions', result.stderr


def test_replace(tmp_path):
    install_package(
        tmp_path,
        *('selective_scan_cuda', 'mamba_ssm', 'mamba_ssm.ops', 'mamba_ssm.modules'),
        'mamba_ssm.ops.selective_scan_interface',
    )
    code = (
        'import mmvmamba.dropin\nmmvmamba.dropin.install(replace=True)\n'
        'mmvmamba.dropin.install(replace=True)\n'
        'import selective_scan_cuda, mamba_ssm.modules\n'
        'from mamba_ssm.ops.selective_scan_interface import selective_scan_fn\n'
        'print(selective_scan_cuda.fwd.__module__, selective_scan_fn.__module__)\n'
        'print(mamba_ssm.NAME, mamba_ssm.modules.NAME)'
    )
    result = run_python(code, tmp_path)
    assert result.stdout.splitlines() == [
        'mmvmamba.dropin.extensions mmvmamba.ops.selective_scan',
        'mamba_ssm mamba_ssm.modules',
    ], result.stderr


def test_replace_comes_too_late(tmp_path):
    install_package(tmp_path, 'selective_scan_cuda')
    code = (
        'import mmvmamba.dropin, selective_scan_cuda, causal_conv1d_cuda\n'
        'mmvmamba.dropin.install(replace=True)'
    )
    result = run_python(code, tmp_path)
    want = 'RuntimeError: install(replace=True) must be called before the first import of '
    assert result.stderr.strip().endswith(want + 'selective_scan_cuda')


@pytest.mark.parametrize(
    ('statement', 'words'),
    [
        ('from mamba_ssm import Mamba', "cannot import name 'Mamba' from 'mamba_ssm' .*dropin"),
        ('import mamba_ssm.modules', "No module named 'mamba_ssm.modules'"),
        ('from mamba_ssm import modules', "cannot import name 'modules' from 'mamba_ssm' .*dropin"),
        ('import mamba_ssm.ops.triton.ssd', "No module named 'mamba_ssm.ops.triton.ssd'"),
        ('import selective_scan_cuda_nrow', "No module named 'selective_scan_cuda_nrow'"),
        ('from selective_scan_cuda import fwd_nrow', "cannot import name 'fwd_nrow' from 'sele"),
    ],
)
def test_what_is_not_there(statement, words):
    with pytest.raises(ImportError, match=words):
        exec(statement, {})


def test_probes_for_submodules_find_none():
    assert importlib.util.find_spec('mamba_ssm.modules') is None
    assert importlib.util.find_spec('mamba_ssm.ops.triton.ssd_combined') is None
    assert importlib.util.find_spec('mamba_ssm.ops.triton.layer_norm') is not None


def test_versions():
    import causal_conv1d
    import mamba_ssm

    assert mamba_ssm.__version__ == '1.2.2+mmvmamba'
    assert causal_conv1d.__version__ == '1.4.0+mmvmamba'
    assert not hasattr(mamba_ssm, 'Mamba')


def test_probes_for_an_installed_package_find_no_version():
    """transformers, among others, asks for the version to know whether mamba_ssm is installed."""
    assert importlib.util.find_spec('mamba_ssm') is not None
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version('mamba_ssm')


def test_example_of_the_docs():
    page = (Path(__file__).parents[2] / 'docs' / 'dropin.md').read_text()
    (example,) = re.findall(r'```python\n(.*?)```', page, re.DOTALL)
    exec(example, names := {})
    assert names['y'].shape == (2, 8, 100) and names['y'].isfinite().all()
