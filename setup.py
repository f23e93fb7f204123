"""Build of mmvmamba: the native libraries and the ``.mim`` folder.

``mmvmamba/_C`` holds the schemas of the ops and the CPU kernels, ``mmvmamba/_C_cuda`` the CUDA
kernels. Both use PyTorch's stable ABI only and no Python: one build runs with every torch from
:data:`OLDEST_TORCH` on and every Python, so a wheel is tagged ``py3-none``.

Environment variables:
    MMVMAMBA_BUILD_EXT  0 leaves the extension out, 1 makes a failure to build it fatal; by default
                        a failure is a warning and the package is installed without the CUDA
                        kernels, or without the extension.
    FORCE_CUDA          1 builds the CUDA kernels where no GPU is visible; failures are fatal. 0
                        never builds them.
    TORCH_CUDA_ARCH_LIST  the GPU architectures, e.g. "8.0;9.0+PTX"; by default those of nvcc up to
                        9.0, whose PTX later GPUs compile.
    MMVMAMBA_SANITIZE   1 builds with AddressSanitizer and UndefinedBehaviorSanitizer.
    MAX_JOBS            the number of compilers that run at a time.

This file can be imported without side effects; ``tests/test_packaging.py`` tests its functions.
"""

import copy
import hashlib
import logging
import os
import pprint
import re
import shutil
import subprocess
import sys
from pathlib import Path

import setuptools

if int(setuptools.__version__.split('.')[0]) < 77:  # for the license in pyproject.toml
    raise SystemExit(
        f'mmvmamba needs setuptools 77 or newer, but {setuptools.__version__} is installed: '
        'pip install "setuptools>=77"'
    )
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
PACKAGE = 'mmvmamba'
MIM_FILES = ('configs', 'tools', 'demo', 'model-index.yml')
# Commands that end in an installation. The others (sdist, egg_info, ...) need no torch.
BUILD_COMMANDS = {
    'bdist', 'bdist_egg', 'bdist_wheel', 'build', 'build_ext', 'build_py', 'develop', 'dist_info',
    'editable_wheel', 'install', 'install_lib',
}  # fmt: skip
#: The newest architecture with code of its own: nvcc 13.0 is reported to compile kernels wrong for
#: 10.3 (causal-conv1d, issue 119).
NEWEST_ARCH = 90
#: The oldest torch that the libraries run with, as (major, minor).
OLDEST_TORCH = (2, 10)
NO_TORCH = """
mmvmamba is compiled against the headers of PyTorch, which cannot be imported here:
    {error}
Install PyTorch first, then install mmvmamba without build isolation:

    pip install "torch>=2.10" "setuptools>=77,<82" ninja
    pip install --no-build-isolation .

(MMVMAMBA_BUILD_EXT=0 installs the pure Python package, without the native extension.)
"""

NOT_BUILT = """
{line}
The native extension of mmvmamba was NOT built. The package is installed without it and runs
the slow PyTorch reference. The reason:
    {reason}
Set MMVMAMBA_BUILD_EXT=1 to make this an error, MMVMAMBA_BUILD_EXT=0 to skip the extension.
{line}"""

NO_CUDA_KERNELS = """
{line}
The CUDA kernels of mmvmamba were NOT built; the kernels for the CPU are built without them. The
reason:
    {reason}
Set FORCE_CUDA=1 to make this an error.
{line}"""

logger = logging.getLogger('mmvmamba.setup')


def env_flag(name, environ=os.environ):
    """Return True for 1, False for 0 and None where the variable is unset or empty."""
    value = environ.get(name, '')
    if value not in ('', '0', '1'):
        raise SystemExit(f'{name} must be 0 or 1, got {value!r}')
    return None if value == '' else value == '1'


# --------------------------------------------------------------------------------------------------
# CUDA


def toolkit_from_dryrun(text):
    """Return the toolkit folder that ``nvcc -v --dryrun`` reports, or None."""
    match = re.search(r'^#\$ TOP=(.+)$', text, flags=re.MULTILINE)
    return os.path.normpath(match.group(1).strip()) if match else None


def arch_list_from_nvcc(text):
    """Turn the output of ``nvcc --list-gpu-arch`` into an arch list, oldest first.

    ``compute_75 compute_90 compute_120`` gives ``['7.5', '9.0+PTX']``.
    """
    numbers = {int(number) for number in re.findall(r'\bcompute_(\d+)\b', text)}
    numbers = sorted(number for number in numbers if number <= NEWEST_ARCH)
    archs = [f'{number // 10}.{number % 10}' for number in numbers]
    return archs[:-1] + [archs[-1] + '+PTX'] if archs else []


def gencode_flags(archs):
    """Return nvcc's flags for an arch list as :func:`arch_list_from_nvcc` makes it."""
    flags = []
    for arch in archs:
        number = arch.replace('+PTX', '').replace('.', '')
        flags.append(f'-gencode=arch=compute_{number},code=sm_{number}')
        if arch.endswith('+PTX'):
            flags.append(f'-gencode=arch=compute_{number},code=compute_{number}')
    return flags


def find_cuda_home(environ=os.environ):
    """Return the folder of the CUDA toolkit, or None.

    ``nvcc`` on the PATH may be a link or a wrapper script far from its toolkit, so a folder counts
    only if it holds the headers; where none of the guesses does, nvcc itself is asked.
    """
    nvcc = shutil.which('nvcc', path=environ.get('PATH'))
    guesses = [environ.get('CUDA_HOME'), environ.get('CUDA_PATH')]
    if nvcc:
        guesses += [Path(nvcc).parent.parent, Path(nvcc).resolve().parent.parent]
        dryrun = [nvcc, '-v', '--dryrun', '-x', 'cu', os.devnull]
        result = subprocess.run(dryrun, capture_output=True, text=True, check=False)
        guesses.append(toolkit_from_dryrun(result.stderr + result.stdout))
    guesses.append('/usr/local/cuda')
    for guess in guesses:
        if guess and (Path(guess) / 'include' / 'cuda_runtime.h').is_file():
            return str(guess)
    return None


def default_arch_list(cuda_home):
    """Return the architectures of the toolkit's nvcc up to NEWEST_ARCH, with PTX for the newest."""
    nvcc = Path(cuda_home) / 'bin' / 'nvcc'
    output = subprocess.run([nvcc, '--list-gpu-arch'], capture_output=True, text=True, check=True)
    archs = arch_list_from_nvcc(output.stdout)
    if not archs:
        raise RuntimeError(f'{nvcc} lists no architecture: set TORCH_CUDA_ARCH_LIST')
    return archs


# --------------------------------------------------------------------------------------------------
# The extension


def host_flags(sanitize, windows):
    """Return the flags of the C++ compiler. Never -std: torch's headers say which they need."""
    if windows:  # clang-cl: the kernels need the vector extension of gcc and clang
        return ['/O2', '/clang:-fno-math-errno', '/clang:-ffp-contract=fast']
    flags = ['-fno-math-errno', '-ffp-contract=fast', '-fvisibility=hidden']
    flags.append(f'-fmacro-prefix-map={ROOT}/=')  # errors name their source file
    if sanitize:
        # vptr needs the type information of torch's classes, which torch's wheels hide.
        return flags + sanitizer_flags() + ['-O1', '-g', '-fno-omit-frame-pointer']
    return flags + ['-O3', '-g0']


def sanitizer_flags():
    """Return the flags for compiler and linker."""
    return ['-fsanitize=address,undefined', '-fno-sanitize=vptr', '-fno-sanitize-recover=all']


def find_sources(*patterns):
    """Return the sorted sources, relative to the repository as setuptools wants them."""
    paths = [path for pattern in patterns for path in (ROOT / 'csrc').glob(pattern)]
    return sorted(path.relative_to(ROOT).as_posix() for path in paths)


def source_digest():
    """Return a hash of the extension's sources."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / 'csrc').rglob('*')):
        if path.suffix in ('.cpp', '.h', '.cu', '.cuh'):
            digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def want_cuda(torch, cuda_home):
    """Decide as torchvision does: a visible GPU and a toolkit, or FORCE_CUDA=1; 0 builds none."""
    force = env_flag('FORCE_CUDA')
    if force is False:
        return False
    if force is None:
        return torch.cuda.is_available() and (
            torch.version.hip is not None or cuda_home is not None
        )
    if torch.version.hip is None and torch.version.cuda is None:
        raise SystemExit(f'FORCE_CUDA=1, but PyTorch {torch.__version__} is built without CUDA')
    if torch.version.hip is None and cuda_home is None:
        raise SystemExit('FORCE_CUDA=1, but no CUDA toolkit was found: set CUDA_HOME')
    return True


def make_extensions(info):
    """Return the libraries to build, the CPU's first; fills ``info``."""
    import torch

    cuda_home = find_cuda_home()
    if cuda_home:
        os.environ['CUDA_HOME'] = cuda_home  # before torch guesses
    from torch.utils import cpp_extension

    sanitize = bool(env_flag('MMVMAMBA_SANITIZE'))
    info.update(torch=torch.__version__, sources=source_digest())
    flags = {'cxx': host_flags(sanitize, sys.platform == 'win32')}
    link_flags = sanitizer_flags() if sanitize else []
    libraries = []
    if sys.platform == 'linux':
        link_flags.append('-Wl,--as-needed')  # of torch's libraries, only those that are used
        # First: torch's libraries export parts of the C++ library as well, in no promised set.
        libraries.append('stdc++')
    major, minor = OLDEST_TORCH
    settings = {
        'libraries': libraries,
        'include_dirs': [str(ROOT / 'csrc')],
        'define_macros': [('TORCH_TARGET_VERSION', f'0x{major:02x}{minor:02x}{0:012x}')],
        'extra_link_args': link_flags,
        'py_limited_api': True,  # leaves out torch's Python library
    }
    extensions = [
        cpp_extension.CppExtension(
            f'{PACKAGE}._C',
            find_sources('*.cpp', 'cpu/*.cpp', 'onnx/*.cpp'),
            extra_compile_args=flags,
            **copy.deepcopy(settings),  # torch adds to its lists
        )
    ]
    if want_cuda(torch, cuda_home):
        info['cuda'] = torch.version.cuda or torch.version.hip
        flags = {**flags, 'nvcc': ['-O3']}
        archs = os.environ.get('TORCH_CUDA_ARCH_LIST', '').replace(' ', ';')
        info['arch_list'] = [arch for arch in archs.split(';') if arch]
        if torch.version.hip is None:
            cpp_extension.CUDA_HOME = cuda_home
            if not info['arch_list']:
                info['arch_list'] = default_arch_list(cuda_home)
                flags['nvcc'] += gencode_flags(info['arch_list'])
        settings['define_macros'].append(('USE_CUDA', None))  # declares CUDA's part of the ABI
        extensions.append(
            cpp_extension.CUDAExtension(
                f'{PACKAGE}._C_cuda',
                find_sources('cuda/*.cu', 'cuda/*.cpp'),
                extra_compile_args=flags,
                **settings,
            )
        )
    return extensions


def first_error(build_dir):
    """Return the compiler's first error line by asking ninja again, or an empty string."""
    ninja = shutil.which('ninja')
    if not ninja or not (Path(build_dir) / 'build.ninja').is_file():
        return ''
    command = [ninja, '-C', str(build_dir), '-j', '1']
    output = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    lines = [line.strip() for line in output.splitlines()]
    return next((line for line in lines if 'error' in line or 'not found' in line), '')


def library_filename(name, windows):
    """Return a library's file, without a tag of Python's ABI: 'a._C' is at a/_C.so."""
    return os.path.join(*name.split('.')) + ('.pyd' if windows else '.so')


def use_clang_cl(compiler):
    """Compile with clang-cl: cl lacks the vector extension that the kernels use."""
    clang = shutil.which('clang-cl')
    if clang is None:
        raise RuntimeError('there is no clang-cl on the PATH, and cl does not compile the kernels')
    if not compiler.initialized:
        compiler.initialize()
    compiler.cc = clang


def make_build_ext(info):
    """Return the command class that builds the libraries and records how that went."""
    from torch.utils.cpp_extension import BuildExtension

    fatal = bool(env_flag('MMVMAMBA_BUILD_EXT') or env_flag('FORCE_CUDA'))

    class BuildExt(BuildExtension):
        """BuildExtension whose failure leaves a library out and records the reason."""

        def __init__(self, *args, **kwargs):
            # On Windows, torch's rules for ninja name Microsoft's compiler.
            super().__init__(*args, use_ninja=sys.platform != 'win32', **kwargs)

        # The files are loaded by torch.ops.load_library. As they are no Python modules, they have
        # neither an ABI tag nor a PyInit function, which Windows' linker would look for.

        def get_ext_filename(self, ext_name):
            return library_filename(ext_name, sys.platform == 'win32')

        def get_export_symbols(self, ext):
            return ext.export_symbols

        def run(self):
            folder = ROOT / PACKAGE if self.inplace else Path(self.build_lib) / PACKAGE
            if self.inplace:
                provide_mim(folder, link=True)
            remove_builds(folder)
            super().run()
            write_build_info(folder, info)

        def build_extensions(self):
            extensions, temp = self.extensions, self.build_temp
            built = []
            for extension in extensions:
                self.extensions = [extension]
                # A folder each: torch's build.ninja belongs to one library.
                self.build_temp = os.path.join(temp, extension.name.rpartition('.')[2])
                reason = self.try_to_build()
                if reason is None:
                    built.append(extension)
                elif extension is extensions[0]:
                    info.update(error=reason, cuda=None, arch_list=[])
                    warn(NOT_BUILT, reason)
                    break
                else:
                    info.update(cuda=None, arch_list=[], cuda_error=reason)
                    warn(NO_CUDA_KERNELS, reason)
            self.extensions, self.build_temp = built, temp

        def try_to_build(self):
            """Return None, or why the library could not be built."""
            try:
                self.check_compiler()
                self.choose_compiler()
                super().build_extensions()
            except Exception as error:  # whatever a compiler, a linker or torch objects to
                if fatal:
                    raise
                detail = first_error(self.build_temp)
                return f'{error}: {detail}' if detail else str(error)
            return None

        def check_compiler(self):
            """Raise before ninja does where there is no C++ compiler at all."""
            compiler = os.environ.get('CXX', 'c++').split()[0]
            if self.compiler.compiler_type == 'unix' and shutil.which(compiler) is None:
                raise RuntimeError(f'there is no C++ compiler ({compiler} was not found)')

        def choose_compiler(self):
            if self.compiler.compiler_type == 'msvc':
                use_clang_cl(self.compiler)

    return BuildExt


def warn(text, reason):
    """Log a prominent warning about a part that was left out."""
    logger.warning(text.format(line='*' * 90, reason=reason))


def remove_builds(folder):
    """Remove the libraries and the record of an earlier build."""
    for name in ('_C*.so', '_C*.pyd', '_build_info*.py'):
        for stale in folder.glob(name):
            stale.unlink()


def write_build_info(folder, info):
    """Write ``_build_info.py``: how the libraries were built, or why they were not."""
    folder.mkdir(parents=True, exist_ok=True)
    text = pprint.pformat(info, width=80, compact=True, sort_dicts=False)
    doc = '"""Written by setup.py: how the native libraries were built, or why they were not."""'
    path = folder / '_build_info.py'
    path.write_text(f'{doc}\n\nBUILD_INFO = {text}\n', encoding='utf-8')


# --------------------------------------------------------------------------------------------------
# .mim: configs, tools and the model index inside the package, where MIM and MMEngine look for them


def provide_mim(folder, link):
    """Link or copy the files of :data:`MIM_FILES` into ``folder/.mim``."""
    target_dir = Path(folder) / '.mim'
    if target_dir.is_symlink() or target_dir.is_file():
        target_dir.unlink()
    shutil.rmtree(target_dir, ignore_errors=True)
    target_dir.mkdir(parents=True)
    for name in MIM_FILES:
        source, target = ROOT / name, target_dir / name
        if not source.exists():
            continue
        if link:
            try:
                target.symlink_to(os.path.relpath(source, target_dir))
                continue
            except OSError:  # Windows without the right to make links: copy
                logger.warning('%s cannot be linked and is copied: re-install after a change', name)
        if source.is_dir():
            # The links of a notebook lead to the repository.
            ignored = shutil.ignore_patterns('__pycache__', '*.pyc', '*.ipynb')
            shutil.copytree(source, target, ignore=ignored)
        else:
            shutil.copyfile(source, target)


def make_build_py(info, with_ext):
    """Return the command class that adds ``.mim`` to the package."""

    class BuildPy(build_py):
        """build_py that also provides ``.mim`` and, without an extension, the build info."""

        def run(self):
            super().run()
            editable = getattr(self, 'editable_mode', False)
            folder = ROOT / PACKAGE if editable else Path(self.build_lib) / PACKAGE
            provide_mim(folder, link=editable)
            if not with_ext:
                remove_builds(folder)
                write_build_info(folder, info)

    return BuildPy


# --------------------------------------------------------------------------------------------------


class BdistWheel(bdist_wheel):
    """bdist_wheel for libraries that do not depend on Python."""

    def get_tag(self):
        *_, platform = super().get_tag()
        return 'py3', 'none', platform


def extension_arguments(info, argv):
    """Return setup()'s arguments for the libraries; stops where torch is needed and missing."""
    building = bool(BUILD_COMMANDS.intersection(argv))
    if env_flag('MMVMAMBA_BUILD_EXT') is False:
        info['error'] = 'MMVMAMBA_BUILD_EXT=0 at installation'
        return {}
    if not building:
        return {}
    try:
        import torch
    except ImportError as error:
        raise SystemExit(NO_TORCH.format(error=error)) from None
    major, minor = (int(number) for number in torch.__version__.split('.')[:2])
    if (major, minor) < OLDEST_TORCH:
        oldest = '.'.join(map(str, OLDEST_TORCH))
        raise SystemExit(f'mmvmamba needs torch {oldest} or later, but found {torch.__version__}')
    commands = {'build_ext': make_build_ext(info), 'bdist_wheel': BdistWheel}
    return {'ext_modules': make_extensions(info), 'cmdclass': commands}


def main():
    """Run setuptools."""
    logging.basicConfig(format='%(message)s')
    info = {'torch': None, 'cuda': None, 'arch_list': [], 'error': None}
    arguments = extension_arguments(info, sys.argv[1:])
    commands = arguments.pop('cmdclass', {})
    commands['build_py'] = make_build_py(info, with_ext='ext_modules' in arguments)
    setuptools.setup(cmdclass=commands, **arguments)


if __name__ == '__main__':
    main()
