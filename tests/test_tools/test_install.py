"""What `python -m build` makes, and what it installs: seen from outside the source tree."""

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
# Made in a source tree, or not of this project.
LEFT_OUT = shutil.ignore_patterns(
    '.*', 'build', 'dist', 'work_dirs', 'data', '*.egg-info', '__pycache__'
)
FOLDERS = ('benchmarks', 'configs', 'csrc', 'demo', 'docs', 'mmvmamba', 'requirements', 'tests',
           'tools')  # fmt: skip
ADDRESSES = [
    'mmvmamba::mask_rcnn/mask-rcnn_vmamba-t_fpn_1x_coco.py',
    'mmvmamba::upernet/vmamba-t_upernet_8xb2-160k_ade20k-512x512.py',
    'mmvmamba::vmamba/vmamba-t_8xb128_in1k.py',
]
# Run in the environment that is looked at.
LOOK = """
import json, sys, mmvmamba, torch
from importlib.metadata import version
from pathlib import Path
from mmengine.config import Config
from mmengine.registry import MODELS
import mmvmamba.registry
from mmvmamba.ops import has_kernel, load_extension
path = Path(mmvmamba.__file__).parent
cfgs = []
for address in {addresses!r}:
    Path('base.py').write_text(f'_base_ = [{{address!r}}]')
    cfgs.append(Config.fromfile('base.py'))
net = MODELS.build(dict(type='mmvmamba.VMamba', arch=dict(dims=(8, 16), depths=(1, 1)),
                        out_indices=(1,)))
net(torch.rand(1, 3, 32, 32))[0].sum().backward()
print(json.dumps(dict(
    path=str(path), version=version('mmvmamba'), reason=load_extension(),
    kernel=has_kernel('ss2d_scan', 'cpu'), backbones=[c.model.backbone.type for c in cfgs],
    grads=all(p.grad is not None for p in net.parameters()),
)))
"""


class Built(NamedTuple):
    """The source tree, and what was made of it."""

    source: Path
    sdist: Path
    wheel: Path

    def files(self):
        """What the distributions are to hold, by their paths in the repository."""
        paths = [p for folder in FOLDERS for p in (self.source / folder).rglob('*') if p.is_file()]
        names = {path.relative_to(self.source).as_posix() for path in paths}
        return {name for name in names if not re.search(r'_build_info|\.so$', name)}


def run(*command, cwd, **env):
    """Runs a command in a process whose only path to the package is its environment."""
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': '', **env}
    env.pop('PYTHONPATH', None)
    return subprocess.run(
        list(map(str, command)), cwd=cwd, env=env, capture_output=True, text=True, timeout=1800
    )


def run_well(*command, cwd, **env):
    result = run(*command, cwd=cwd, **env)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout


def build(folder, **env):
    """Builds the sdist, and the wheel from it, of a copy of the source tree."""
    copy = folder / 'source'
    shutil.copytree(ROOT, copy, ignore=LEFT_OUT, symlinks=True)
    # What an editable installation leaves there.
    (copy / 'mmvmamba' / '_C_1_0.so').touch()
    (copy / 'mmvmamba' / '_build_info_1_0.py').touch()
    out = folder / 'dist'
    run_well(sys.executable, '-m', 'build', '--no-isolation', '--outdir', out, copy,
             cwd=folder, **env)  # fmt: skip
    (sdist,), (wheel,) = out.glob('*.tar.gz'), out.glob('*.whl')
    return Built(copy, sdist, wheel)


@pytest.fixture(scope='module')
def pure(tmp_path_factory):
    """An sdist and a wheel without the extension."""
    return build(tmp_path_factory.mktemp('pure'), MMVMAMBA_BUILD_EXT='0')


# ---- what is inside ------------------------------------------------------------------------------


def test_sdist_holds_the_source_tree(pure):
    with tarfile.open(pure.sdist) as archive:
        members = {m.name.removeprefix(f'{NAME}/') for m in archive if m.isfile()}
    made = {name for name in members if re.search(r'^PKG-INFO$|^setup\.cfg$|\.egg-info/', name)}
    root = {'CHANGELOG.md', 'CONTRIBUTING.md', 'LICENSE', 'MANIFEST.in', 'Makefile', 'README.md',
            'model-index.yml', 'pyproject.toml', 'setup.py'}  # fmt: skip
    assert members - made == pure.files() | root


def test_wheel_holds_the_package_and_its_mim_folder(pure):
    names = set(zipfile.ZipFile(pure.wheel).namelist())
    expected = {'mmvmamba/.mim/model-index.yml', 'mmvmamba/_build_info.py'}
    for name in pure.files():
        if name.split('/')[0] in ('configs', 'tools', 'demo'):
            expected.add(f'mmvmamba/.mim/{name}')
        elif name.startswith('mmvmamba/'):
            expected.add(name)
    assert {name for name in names if '.dist-info/' not in name} == expected
    assert pure.wheel.name == f'{NAME}-py3-none-any.whl'


@pytest.mark.parametrize('hook', ['prepare_metadata_for_build_wheel', 'build_editable'])
def test_a_build_without_torch_stops_with_the_command_to_use(pure, hook, tmp_path):
    """As `pip install .` does in an environment of its own, which holds setuptools alone."""
    shutil.unpack_archive(pure.sdist, tmp_path)
    code = (
        "import sys; sys.modules['torch'] = None; from setuptools import build_meta;"
        f'build_meta.{hook}({str(tmp_path)!r})'
    )
    result = run(sys.executable, '-c', code, cwd=tmp_path / NAME)
    assert result.returncode == 1
    assert 'pip install torch "setuptools>=64" wheel ninja\n' in result.stderr
    assert 'pip install --no-build-isolation .\n' in result.stderr
    assert 'Traceback' not in result.stderr


# ---- installed -----------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def native(tmp_path_factory):
    """An sdist and a wheel with the extension."""
    return build(tmp_path_factory.mktemp('native'), MMVMAMBA_BUILD_EXT='1')


@pytest.fixture(scope='module', params=['sdist', 'wheel'])
def installed(request, native, tmp_path_factory):
    """The Python of a new environment with the package, and a folder outside the source tree.

    The other packages are those of this environment: their folder stands behind the new one on
    the path. The hook of an editable installation in it is a .pth file, which Python runs in an
    environment's own folder only.
    """
    folder = tmp_path_factory.mktemp(request.param)
    venv.create(folder / 'env', with_pip=True)
    scheme = {'base': str(folder / 'env'), 'platbase': str(folder / 'env')}
    site = Path(sysconfig.get_path('purelib', vars=scheme))
    site.joinpath('others.pth').write_text(sysconfig.get_path('purelib') + '\n')
    python = Path(sysconfig.get_path('scripts', vars=scheme)) / 'python'
    options = ['--no-build-isolation', '--no-deps', '--no-index', '--ignore-installed']
    path = os.pathsep.join([sysconfig.get_path('scripts'), os.environ['PATH']])  # ninja
    run_well(python, '-m', 'pip', 'install', *options, getattr(native, request.param),
             cwd=folder, MMVMAMBA_BUILD_EXT='1', PATH=path)  # fmt: skip
    return python, folder


@pytest.mark.slow
def test_wheel_of_this_machine_holds_its_extension_alone(native):
    names = zipfile.ZipFile(native.wheel).namelist()
    tag = torch.__version__.replace('.', '_').replace('+', '_')
    assert [n for n in names if n.startswith('mmvmamba/_C')] == [f'mmvmamba/_C_{tag}.so']
    assert [n for n in names if '_build_info' in n] == [f'mmvmamba/_build_info_{tag}.py']
    assert re.search(r'-cp3\d+-cp3\d+-', native.wheel.name)


@pytest.mark.slow
def test_installed_package(installed):
    python, folder = installed
    out = run_well(python, '-W', 'ignore', '-c', LOOK.format(addresses=ADDRESSES), cwd=folder)
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
    lines = run_well(python, '-m', 'mmvmamba.info', cwd=folder).splitlines()
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
    run_well(python, tools / 'train.py', detection_config, '--work-dir', out, cwd=folder)
    args = (detection_config, out / 'epoch_1.pth', '--work-dir', out)
    assert 'bbox_mAP' in run_well(python, tools / 'test.py', *args, cwd=folder)
