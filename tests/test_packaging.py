"""The build and the metadata: what setup.py and pyproject.toml promise."""

import ast
import importlib.metadata
import importlib.util
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import setuptools
import torch

import mmvmamba

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = (ROOT / 'pyproject.toml').read_text(encoding='utf-8')


@pytest.fixture(scope='module')
def build():
    """setup.py as a module: importing it must run nothing."""
    spec = importlib.util.spec_from_file_location('mmvmamba_setup', ROOT / 'setup.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def metadata():
    try:
        return importlib.metadata.metadata('mmvmamba')
    except importlib.metadata.PackageNotFoundError:
        pytest.skip('mmvmamba is not installed')


def make_script(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding='utf-8')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def make_toolkit(path):
    """A folder with the layout of a CUDA toolkit."""
    (path / 'include').mkdir(parents=True)
    (path / 'include' / 'cuda_runtime.h').touch()
    make_script(
        path / 'bin' / 'nvcc',
        f'#!/bin/sh\ncase "$1" in --list-gpu-arch) printf "compute_90\\ncompute_80\\n";;\n'
        f'*) echo "#$ TOP={path}/bin/.." >&2;; esac\n',
    )
    return path


# ---- metadata ------------------------------------------------------------------------------------


def test_version_has_one_source(metadata):
    tree = ast.parse((ROOT / 'mmvmamba' / 'version.py').read_text(encoding='utf-8'))
    versions = [node.value.value for node in tree.body if isinstance(node, ast.Assign)]
    assert versions == [mmvmamba.__version__]
    assert metadata['Version'] == mmvmamba.__version__
    assert re.search(r'^dynamic = .*"version"', PYPROJECT, flags=re.MULTILINE)


def test_metadata(metadata):
    assert metadata['Name'] == 'mmvmamba'
    assert 'Apache-2.0' in (metadata.get('License-Expression'), metadata.get('License'))
    assert metadata['Requires-Python'] == '>=3.10'
    requirements = {r for r in metadata.get_all('Requires-Dist') if 'extra ==' not in r}
    assert requirements == {'torch>=2.10', 'numpy', 'safetensors'}
    assert {'openmmlab', 'onedl', 'test', 'dev'} <= set(metadata.get_all('Provides-Extra'))


def test_openmmlab_extras_exclude_each_other(metadata):
    extras = {'openmmlab': set(), 'onedl': set()}
    for requirement in metadata.get_all('Requires-Dist'):
        match = re.match(r'([\w-]+).*extra == ["\'](\w+)["\']', requirement)
        if match and match[2] in extras:
            extras[match[2]].add(match[1])
    assert {'mmengine', 'mmcv-lite', 'mmdet'} <= extras['openmmlab']
    assert {'onedl-mmengine', 'onedl-mmcv', 'onedl-mmdetection'} <= extras['onedl']
    assert extras['openmmlab'] & extras['onedl'] == {'torchvision', 'ftfy', 'regex'}


def test_mim_folder_of_the_installed_package():
    mim = Path(mmvmamba.__file__).parent / '.mim'
    if not mim.exists():
        pytest.skip('mmvmamba is used from its source folder, not installed')
    assert (mim / 'model-index.yml').read_text(encoding='utf-8').count('Import:') == 1


def test_version_and_name_without_torch():
    """Commands without a build must not need torch."""
    code = (
        "import sys, runpy; sys.modules['torch'] = None; sys.argv = ['setup.py', '--version'];"
        "runpy.run_path('setup.py', run_name='__main__')"
    )
    result = subprocess.run(
        [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.split()[-1] == mmvmamba.__version__


# ---- torch, flags and sources --------------------------------------------------------------------


def test_building_without_torch_stops_with_the_command_to_use(build, monkeypatch):
    monkeypatch.delenv('MMVMAMBA_BUILD_EXT', raising=False)
    monkeypatch.setitem(sys.modules, 'torch', None)
    for command in ('bdist_wheel', 'editable_wheel', 'dist_info'):
        with pytest.raises(SystemExit, match='pip install --no-build-isolation'):
            build.extension_arguments({}, [command])
    assert build.extension_arguments({}, ['sdist']) == {}


def test_extension_can_be_left_out(build, monkeypatch):
    monkeypatch.setenv('MMVMAMBA_BUILD_EXT', '0')
    monkeypatch.setitem(sys.modules, 'torch', None)
    info = {}
    assert build.extension_arguments(info, ['bdist_wheel']) == {}
    assert 'MMVMAMBA_BUILD_EXT=0' in info['error']


@pytest.mark.parametrize(('value', 'expected'), [('', None), ('0', False), ('1', True)])
def test_env_flag(build, value, expected):
    assert build.env_flag('FORCE_CUDA', {'FORCE_CUDA': value}) is expected
    assert build.env_flag('FORCE_CUDA', {}) is None


def test_cuda_can_be_switched_off(build, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.delenv('FORCE_CUDA', raising=False)
    assert build.want_cuda(torch, '/cuda')
    monkeypatch.setenv('FORCE_CUDA', '0')
    assert not build.want_cuda(torch, '/cuda')


def test_env_flag_rejects_other_values(build):
    with pytest.raises(SystemExit, match="FORCE_CUDA must be 0 or 1, got 'yes'"):
        build.env_flag('FORCE_CUDA', {'FORCE_CUDA': 'yes'})


@pytest.mark.parametrize('sanitize', [False, True])
def test_host_flags_are_portable(build, sanitize):
    flags = ' '.join(build.host_flags(sanitize=sanitize, windows=False))
    assert '-ffast-math' not in flags and '-march' not in flags and '-std' not in flags
    assert ('-fsanitize=address,undefined' in flags) is sanitize
    assert ('-O3' in flags) is not sanitize


def test_sources_are_sorted_and_relative(build):
    sources = build.find_sources('*.cpp', 'cpu/*.cpp')
    assert sources == sorted(sources) and 'csrc/ss2d_scan.cpp' in sources
    assert all((ROOT / source).is_file() and not os.path.isabs(source) for source in sources)
    assert not any('cuda' in source for source in sources)


def test_an_old_torch_is_refused(build, monkeypatch):
    monkeypatch.delenv('MMVMAMBA_BUILD_EXT', raising=False)
    monkeypatch.setattr(torch, '__version__', '2.9.1')
    with pytest.raises(SystemExit, match=r'needs torch 2\.10 or later, but found 2\.9\.1'):
        build.extension_arguments({}, ['bdist_wheel'])


def test_libraries_target_the_oldest_torch(build, monkeypatch):
    monkeypatch.setattr(build, 'want_cuda', lambda torch, cuda_home: False)
    (extension,) = build.make_extensions({})
    assert ('TORCH_TARGET_VERSION', '0x020a000000000000') in extension.define_macros
    assert extension.name == 'mmvmamba._C' and 'torch_python' not in extension.libraries
    assert re.search(r'"torch>=2\.10"', PYPROJECT) and build.OLDEST_TORCH == (2, 10)


# ---- CUDA ----------------------------------------------------------------------------------------


def test_arch_list_from_nvcc(build):
    text = 'compute_75\ncompute_80\ncompute_100\ncompute_120\ncompute_90\n'
    assert build.arch_list_from_nvcc(text) == ['7.5', '8.0', '9.0+PTX']
    assert build.arch_list_from_nvcc('compute_52') == ['5.2+PTX']
    assert build.arch_list_from_nvcc('') == []


def test_gencode_flags(build):
    assert build.gencode_flags(['8.0', '12.0+PTX']) == [
        '-gencode=arch=compute_80,code=sm_80',
        '-gencode=arch=compute_120,code=sm_120',
        '-gencode=arch=compute_120,code=compute_120',
    ]


def test_toolkit_from_dryrun(build):
    text = '#$ _SPACE_= \n#$ TOP=/opt/cuda toolkit/bin/..\n#$ CICC_PATH=/opt/x\n'
    assert build.toolkit_from_dryrun(text) == os.path.normpath('/opt/cuda toolkit')
    assert build.toolkit_from_dryrun('nvcc fatal: what?') is None


@pytest.mark.skipif(sys.platform == 'win32', reason='the stand-in for nvcc is a shell script')
class TestFindCudaHome:
    def test_environment_first(self, build, tmp_path):
        home = make_toolkit(tmp_path / 'a')
        other = make_toolkit(tmp_path / 'b')
        environ = {'CUDA_HOME': str(home), 'PATH': f'{other}/bin'}
        assert build.find_cuda_home(environ) == str(home)

    def test_wrong_environment_gives_way_to_nvcc(self, build, tmp_path):
        home = make_toolkit(tmp_path / 'a')
        environ = {'CUDA_HOME': str(tmp_path / 'missing'), 'PATH': f'{home}/bin'}
        assert build.find_cuda_home(environ) == str(home)

    def test_link_to_nvcc(self, build, tmp_path):
        home = make_toolkit(tmp_path / 'a')
        (tmp_path / 'bin').mkdir()
        (tmp_path / 'bin' / 'nvcc').symlink_to(home / 'bin' / 'nvcc')
        assert build.find_cuda_home({'PATH': str(tmp_path / 'bin')}) == str(home)

    def test_wrapper_script_is_asked(self, build, tmp_path):
        home = make_toolkit(tmp_path / 'a')
        make_script(tmp_path / 'bin' / 'nvcc', f'#!/bin/sh\nexec {home}/bin/nvcc "$@"\n')
        assert build.find_cuda_home({'PATH': str(tmp_path / 'bin')}) == str(home)

    def test_default_arch_list(self, build, tmp_path):
        home = make_toolkit(tmp_path / 'a')
        assert build.default_arch_list(home) == ['8.0', '9.0+PTX']


# ---- what the installation writes ----------------------------------------------------------------


def test_build_info_round_trip(build, tmp_path):
    info = {'torch': '2.12.1+cu130', 'cuda': None, 'arch_list': ['9.0'], 'error': "it said 'no'\n"}
    build.write_build_info(tmp_path / 'pkg', info)
    namespace = {}
    exec((tmp_path / 'pkg' / '_build_info.py').read_text(encoding='utf-8'), namespace)
    assert namespace['BUILD_INFO'] == info


def test_an_earlier_build_is_removed(build, tmp_path):
    for name in ('_C.so', '_C_cuda.so', '_C_2_4_1_cu121.so', '_build_info.py', '_checks.py'):
        (tmp_path / name).touch()
    build.remove_builds(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ['_checks.py']


@pytest.mark.parametrize('editable', [True, False])
def test_an_installation_without_kernels_says_so(build, monkeypatch, tmp_path, editable):
    package = tmp_path / 'mmvmamba'
    package.mkdir()
    (package / '_C.so').touch()
    monkeypatch.setattr(build, 'ROOT', tmp_path)
    info = {'torch': None, 'error': 'left out'}
    command = build.make_build_py(info, with_ext=False)(setuptools.Distribution({'name': 'x'}))
    command.ensure_finalized()
    command.editable_mode, command.build_lib = editable, str(tmp_path)
    command.run()
    assert not (package / '_C.so').exists()
    assert 'left out' in (package / '_build_info.py').read_text(encoding='utf-8')


@pytest.mark.parametrize(
    ('broken', 'left'),
    [('nvcc', ['_C']), ('compiler', []), ('none', ['_C', '_C_cuda'])],
)
def test_libraries_that_cannot_be_built_are_left_out(
    build, monkeypatch, tmp_path, caplog, broken, left
):
    """Without nvcc's objects the kernels for the CPU remain, without any the Python package."""
    cpp_extension = pytest.importorskip('torch.utils.cpp_extension')

    class BuildExtension(cpp_extension.BuildExtension):
        def build_extensions(self):
            (extension,) = self.extensions
            assert len(set(extension.sources)) > 1
            cuda = any(name.endswith('.cu') for name in extension.sources)
            if broken == 'compiler' or (broken == 'nvcc' and cuda):
                raise RuntimeError(f'{broken} failed')

    monkeypatch.setattr(cpp_extension, 'BuildExtension', BuildExtension)
    monkeypatch.setattr(cpp_extension, 'is_ninja_available', lambda: True)
    monkeypatch.setattr(cpp_extension, 'CUDA_HOME', None)
    monkeypatch.setattr(build, 'find_cuda_home', lambda: str(make_toolkit(tmp_path / 'cuda')))
    monkeypatch.setattr(build, 'want_cuda', lambda torch, cuda_home: True)
    for name in ('FORCE_CUDA', 'MMVMAMBA_BUILD_EXT', 'TORCH_CUDA_ARCH_LIST'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('CUDA_HOME', '')  # make_extensions sets it
    info = {'torch': None, 'cuda': None, 'arch_list': [], 'error': None}
    extensions = build.make_extensions(info)
    # The CPU's library knows nothing of CUDA: it loads with a torch without it.
    assert not any('cuda' in name for name in extensions[0].libraries + extensions[0].sources)
    assert ('USE_CUDA', None) not in extensions[0].define_macros
    command = build.make_build_ext(info)(
        setuptools.Distribution(dict(name='x', ext_modules=extensions))
    )
    command.ensure_finalized()
    for name in ('check_compiler', 'choose_compiler'):
        monkeypatch.setattr(command, name, lambda: None)
    command.build_extensions()
    assert [extension.name for extension in command.extensions] == [f'mmvmamba.{n}' for n in left]
    if broken == 'none':
        # torch, at its first import of this module, may warn that there is no GPU.
        warnings = [record for record in caplog.records if record.name == build.logger.name]
        assert info['cuda'] and info['error'] is None and not warnings
    elif broken == 'nvcc':
        assert (info['cuda'], info['error'], info['cuda_error']) == (None, None, 'nvcc failed')
        assert 'FORCE_CUDA=1' in caplog.text
    else:
        assert info['error'] == 'compiler failed'


@pytest.mark.parametrize(('windows', 'suffix'), [(False, '.so'), (True, '.pyd')])
def test_library_filename(build, windows, suffix):
    assert build.library_filename('_C', windows) == f'_C{suffix}'
    assert build.library_filename('mmvmamba._C', windows) == os.path.join('mmvmamba', f'_C{suffix}')


class Compiler:
    """setuptools' compiler on Windows, which finds cl once."""

    initialized, cc = False, None

    def initialize(self):
        self.initialized, self.cc = True, 'cl.exe'


def test_clang_cl_on_windows(build, monkeypatch):
    monkeypatch.setattr(shutil, 'which', {'clang-cl': 'C:/LLVM/clang-cl.exe'}.get)
    compiler = Compiler()
    for _ in range(2):
        build.use_clang_cl(compiler)
        assert compiler.initialized and compiler.cc == 'C:/LLVM/clang-cl.exe'
    monkeypatch.setattr(shutil, 'which', lambda name: None)
    with pytest.raises(RuntimeError, match='there is no clang-cl on the PATH'):
        build.use_clang_cl(compiler)


@pytest.mark.parametrize('link', [True, False])
def test_provide_mim(build, tmp_path, monkeypatch, link):
    monkeypatch.setattr(build, 'ROOT', tmp_path)
    config = tmp_path / 'configs' / 'demo' / 'a.py'
    config.parent.mkdir(parents=True)
    config.write_text('x = 1\n')
    (tmp_path / 'model-index.yml').write_text('Import: []\n')
    package = tmp_path / 'mmvmamba'
    for _ in range(2):  # a second time over the first
        build.provide_mim(package, link=link)
    assert sorted(path.name for path in (package / '.mim').iterdir()) == [
        'configs',
        'model-index.yml',
    ]
    config.write_text('x = 2\n')
    installed = package / '.mim' / 'configs' / 'demo' / 'a.py'
    assert installed.read_text() == ('x = 2\n' if link else 'x = 1\n')
    assert (package / '.mim' / 'configs').is_symlink() is link
    assert config.read_text() == 'x = 2\n'


# ---- set-up --------------------------------------------------------------------------------------


def make(*arguments):
    """Return the output of make with a new environment, and its exit status."""
    if shutil.which('make') is None:
        pytest.skip('make is not installed')
    command = ['make', 'VENV=no-such-folder', *arguments]
    # The choices of the `make test` around this one are not those of the test.
    choices = ('MAKELEVEL', 'MAKEFLAGS', 'MAKEOVERRIDES', 'WHEEL', 'MMCV', 'STACK')
    env = {name: value for name, value in os.environ.items() if name not in choices}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    return done.stdout + done.stderr, done.returncode


def dry_run(*arguments):
    """Return what the set-up of a new environment would run, and its exit status."""
    return make('--dry-run', 'setup', *arguments)


def test_builds_find_the_ninja_of_the_environment():
    text, status = make('--eval=path:; @echo "$$PATH"', 'path')
    assert status == 0 and text.strip().endswith(f':{ROOT}/no-such-folder/bin')


def test_setup_builds_the_extension_and_a_pure_mmcv():
    text, status = dry_run('CXX=sh')
    assert status == 0 and 'MMVMAMBA_BUILD_EXT=1' in text
    (mmcv,) = re.findall('.*/mmcv.*txt$', text, re.MULTILINE)
    assert '--no-cache-dir' in mmcv and '--no-build-isolation' not in mmcv


@pytest.mark.parametrize('stack', ['onedl', 'openmmlab'])
def test_setup_with_compiled_ops_of_mmcv(stack):
    text, status = dry_run('MMCV=compiled', f'STACK={stack}')
    assert status == 0 and re.search('--no-build-isolation -r .*/mmcv.*txt$', text, re.MULTILINE)


def test_setup_without_a_compiler():
    text, status = dry_run('CXX=no-such-compiler')
    assert status == 0 and 'MMVMAMBA_BUILD_EXT=0' in text
    assert 'there is no C++ compiler (no-such-compiler)' in text


def test_setup_with_a_wheel(tmp_path):
    wheel = tmp_path / 'mmvmamba-1.0-py3-none-any.whl'
    wheel.touch()
    text, status = dry_run(f'WHEEL={tmp_path}/*.whl')
    assert status == 0 and f'--force-reinstall {wheel}' in text and ' -e .' not in text


@pytest.mark.parametrize(
    ('argument', 'message'),
    [
        ('MMCV=full', "MMCV must be pure or compiled, but got 'full'"),
        ('STACK=mm', "STACK must be one of .*onedl.*, but got 'mm'"),
        ('WHEEL=gone.whl', "WHEEL must be the path of one wheel, but got 'gone.whl'"),
    ],
)
def test_setup_refuses(argument, message):
    text, status = dry_run(argument)
    assert status and re.search(message, text)


# ---- docker --------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', ['Dockerfile', 'Dockerfile.cuda'])
def test_the_images_copy_what_exists(name):
    """Sources of the repository, which `.dockerignore` keeps; stages are no files."""
    text = (ROOT / 'docker' / name).read_text(encoding='utf-8')
    copied = re.findall(r'^COPY (?!--from)(\S+) ', text, re.MULTILINE)
    copied += re.findall(r'type=bind,source=([^,]+)', text)
    ignored = (ROOT / '.dockerignore').read_text(encoding='utf-8').split()
    assert 'tests/smoke_wheel.py' in copied
    for path in copied:
        assert (ROOT / path).exists() and path.split('/')[0] not in ignored, path
    for path in re.findall(r'-[rc] /requirements/(\S+)', text):
        assert (ROOT / 'requirements' / path).is_file(), path
