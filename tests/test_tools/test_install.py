"""Distributions made by `python -m build`, and their installation outside the source tree."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

import mmvmamba

ROOT = Path(__file__).parents[2]
NAME = f'mmvmamba-{mmvmamba.__version__}'
# Generated files and files of other projects.
LEFT_OUT = shutil.ignore_patterns(
    '.*', 'build', 'dist', 'work_dirs', 'data', '*.egg-info', '__pycache__'
)
FOLDERS = ('benchmarks', 'configs', 'csrc', 'demo', 'docker', 'docs', 'mmvmamba', 'requirements',
           'tests', 'tools')  # fmt: skip
ADDRESSES = [
    'mmvmamba::mask_rcnn/mask-rcnn_vmamba-t_fpn_1x_coco.py',
    'mmvmamba::upernet/vmamba-t_upernet_8xb2-160k_ade20k-512x512.py',
    'mmvmamba::vmamba/vmamba-t_8xb128_in1k.py',
]
# Run in the environment under test.
LOOK = """
import json, sys, mmvmamba, torch
from importlib.metadata import version
from pathlib import Path
from mmengine.config import Config
from mmengine.registry import MODELS
import mmvmamba.registry
from mmvmamba.ops import has_kernel, extension_error
path = Path(mmvmamba.__file__).parent
cfgs = []
for address in {addresses!r}:
    Path('base.py').write_text(f'_base_ = [{{address!r}}]')
    cfgs.append(Config.fromfile('base.py'))
net = MODELS.build(dict(type='mmvmamba.VMamba', arch=dict(dims=(8, 16), depths=(1, 1)),
                        out_indices=(1,)))
net(torch.rand(1, 3, 32, 32))[0].sum().backward()
print(json.dumps(dict(
    path=str(path), version=version('mmvmamba'), reason=extension_error(),
    kernel=has_kernel('ss2d_scan', 'cpu'), backbones=[c.model.backbone.type for c in cfgs],
    grads=all(p.grad is not None for p in net.parameters()),
)))
"""


class Built(NamedTuple):
    """A source tree and its distributions."""

    source: Path
    sdist: Path
    wheel: Path

    def files(self):
        """Return the paths in the repository of the files that the distributions must contain."""
        paths = [p for folder in FOLDERS for p in (self.source / folder).rglob('*') if p.is_file()]
        names = {path.relative_to(self.source).as_posix() for path in paths}
        return {name for name in names if not re.search(r'_build_info|\.so$', name)}


def run(*command, cwd, **env):
    """Run a command in a process that finds the package only through its environment."""
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': '', **env}
    env.pop('PYTHONPATH', None)
    return subprocess.run(
        list(map(str, command)), cwd=cwd, env=env, capture_output=True, text=True, timeout=1800
    )


def run_checked(*command, cwd, **env):
    result = run(*command, cwd=cwd, **env)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout


def build(folder, **env):
    """Build an sdist from a copy of the source tree, and a wheel from the sdist."""
    copy = folder / 'source'
    shutil.copytree(ROOT, copy, ignore=LEFT_OUT, symlinks=True)
    # An editable installation leaves these files.
    (copy / 'mmvmamba' / '_C.so').touch()
    (copy / 'mmvmamba' / '_build_info.py').touch()
    out = folder / 'dist'
    run_checked(sys.executable, '-m', 'build', '--no-isolation', '--outdir', out, copy,
             cwd=folder, **env)  # fmt: skip
    (sdist,), (wheel,) = out.glob('*.tar.gz'), out.glob('*.whl')
    return Built(copy, sdist, wheel)


@pytest.fixture(scope='module')
def pure(tmp_path_factory):
    """An sdist and a wheel without the extension."""
    return build(tmp_path_factory.mktemp('pure'), MMVMAMBA_BUILD_EXT='0')


# ---- contents ------------------------------------------------------------------------------------


def test_sdist_contains_the_source_tree(pure):
    with tarfile.open(pure.sdist) as archive:
        members = {m.name.removeprefix(f'{NAME}/') for m in archive if m.isfile()}
    made = {name for name in members if re.search(r'^PKG-INFO$|^setup\.cfg$|\.egg-info/', name)}
    root = {'CHANGELOG.md', 'CITATION.cff', 'CONTRIBUTING.md', 'LICENSE', 'MANIFEST.in', 'Makefile',
            'README.md', 'SECURITY.md', 'model-index.yml', 'pyproject.toml',
            'setup.py'}  # fmt: skip
    assert members - made == pure.files() | root


def test_wheel_contains_the_package_and_its_mim_folder(pure):
    names = set(zipfile.ZipFile(pure.wheel).namelist())
    expected = {'mmvmamba/.mim/model-index.yml', 'mmvmamba/_build_info.py'}
    for name in pure.files():
        if name.endswith('.ipynb'):
            continue
        if name.split('/')[0] in ('configs', 'tools', 'demo'):
            expected.add(f'mmvmamba/.mim/{name}')
        elif name.startswith('mmvmamba/'):
            expected.add(name)
    assert {name for name in names if '.dist-info/' not in name} == expected
    assert pure.wheel.name == f'{NAME}-py3-none-any.whl'


@pytest.mark.parametrize('hook', ['prepare_metadata_for_build_wheel', 'build_editable'])
def test_build_without_torch_names_the_command_to_use(pure, hook, tmp_path):
    """`pip install .` builds in an isolated environment that has only setuptools."""
    shutil.unpack_archive(pure.sdist, tmp_path)
    code = (
        "import sys; sys.modules['torch'] = None; from setuptools import build_meta;"
        f'build_meta.{hook}({str(tmp_path)!r})'
    )
    result = run(sys.executable, '-c', code, cwd=tmp_path / NAME)
    assert result.returncode == 1
    assert 'pip install "torch>=2.10" "setuptools>=77,<82" ninja\n' in result.stderr
    assert 'pip install --no-build-isolation .\n' in result.stderr
    assert 'Traceback' not in result.stderr


# ---- installed -----------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def native(tmp_path_factory):
    """An sdist and a wheel with the extension."""
    return build(tmp_path_factory.mktemp('native'), MMVMAMBA_BUILD_EXT='1')


@pytest.fixture(scope='module', params=['sdist', 'wheel'])
def installed(request, native, tmp_path_factory):
    """Return the Python of a new environment with the package, and a folder for runs.

    The other packages come from this environment, whose folder follows the new one on the path.
    An editable installation there has no effect: its hook is a .pth file, which Python runs only
    in an environment's own folder.
    """
    folder = tmp_path_factory.mktemp(request.param)
    venv.create(folder / 'env', with_pip=True)
    scheme = {'base': str(folder / 'env'), 'platbase': str(folder / 'env')}
    site = Path(sysconfig.get_path('purelib', vars=scheme))
    site.joinpath('others.pth').write_text(sysconfig.get_path('purelib') + '\n')
    python = Path(sysconfig.get_path('scripts', vars=scheme)) / 'python'
    options = ['--no-build-isolation', '--no-deps', '--no-index', '--ignore-installed']
    path = os.pathsep.join([sysconfig.get_path('scripts'), os.environ['PATH']])  # ninja
    run_checked(python, '-m', 'pip', 'install', *options, getattr(native, request.param),
             cwd=folder, MMVMAMBA_BUILD_EXT='1', PATH=path)  # fmt: skip
    return python, folder


@pytest.mark.slow
def test_native_wheel_serves_every_python(native):
    names = zipfile.ZipFile(native.wheel).namelist()
    assert {n for n in names if n.startswith('mmvmamba/_C')} <= {
        'mmvmamba/_C.so',
        'mmvmamba/_C_cuda.so',
    }
    assert 'mmvmamba/_C.so' in names and 'mmvmamba/_build_info.py' in names
    assert f'{NAME}-py3-none-' in native.wheel.name


@pytest.mark.slow
def test_installed_package(installed):
    python, folder = installed
    out = run_checked(python, '-W', 'ignore', '-c', LOOK.format(addresses=ADDRESSES), cwd=folder)
    seen = json.loads(out.splitlines()[-1])
    assert Path(seen.pop('path')).is_relative_to(folder / 'env')
    assert seen == {
        'version': mmvmamba.__version__,
        'reason': None,
        'kernel': True,
        'backbones': ['mmvmamba.VMamba'] * 3,
        'grads': True,
    }


@pytest.mark.slow
def test_info_of_the_installed_package(installed):
    python, folder = installed
    lines = run_checked(python, '-m', 'mmvmamba.info', cwd=folder).splitlines()
    values = dict(line.strip().split(None, 1) for line in lines if line.startswith('  '))
    assert values['mmvmamba'] == mmvmamba.__version__
    assert values['torch'].startswith(torch.__version__)
    assert values['loaded'] == 'yes'
    assert values['built'] == f'with torch  {torch.__version__}'


@pytest.mark.slow
def test_the_installed_tool_trains_and_tests(installed, detection_config):
    python, folder = installed
    (package,) = (folder / 'env').rglob('site-packages/mmvmamba')
    tools, out = package / '.mim' / 'tools', folder / 'out'
    run_checked(python, tools / 'train.py', detection_config, '--work-dir', out, cwd=folder)
    args = (detection_config, out / 'epoch_1.pth', '--work-dir', out)
    assert 'bbox_mAP' in run_checked(python, tools / 'test.py', *args, cwd=folder)
