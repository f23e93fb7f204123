"""Step 1: describe the machine, find or build the extension, and check that its kernels run."""

import functools
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from gpu_steps.context import ROOT, Context, Item, Row, Skip, logger, with_package

PROBE = """
import json, sys
import torch
from mmvmamba.info import build_info
from mmvmamba.ops.backend import why_not
device = torch.device(sys.argv[1], 0)
problem, info = why_not('native', 'ss2d_scan', device), build_info()
if problem is None and info.get('sources') != sys.argv[2]:
    problem = 'it was built from different sources'
triton = why_not('triton', 'ss2d_scan', device) is None
print(json.dumps(dict(problem=problem, architectures=info.get('arch_list', []), triton=triton)))
"""


def items(context: Context) -> Iterator[Item]:
    """List the items of the step."""
    yield 'machine', lambda: [describe(context)]
    yield 'extension', lambda: [find_or_build(context)]
    for backend in ('native', 'triton'):
        yield f'{backend} kernels', functools.partial(check_kernels, context, backend)


def load_setup():
    """Import the build script as a module."""
    sys.path.insert(0, str(ROOT))
    try:
        return importlib.import_module('setup')
    finally:
        sys.path.remove(str(ROOT))


def find_tool(name: str, *folders: str) -> str | None:
    """Find a program on the PATH, in the CUDA toolkit or in other folders.

    Args:
        name (str): The program.
        *folders (str): Where it may be, too; a relative one is in the toolkit.
    """
    home = load_setup().find_cuda_home()
    paths = [os.environ.get('PATH', os.defpath)]
    if home is not None:
        paths += [os.path.join(home, folder) for folder in ('bin', *folders)]
    return shutil.which(name, path=os.pathsep.join([*paths, *filter(os.path.isabs, folders)]))


# ---- the machine ---------------------------------------------------------------------------------


def describe(context: Context) -> Row:
    """Describe the machine and the versions."""
    from mmvmamba.environment import describe_run

    if context.cuda and not torch.cuda.is_available():
        raise RuntimeError(f'PyTorch {torch.__version__} sees no GPU; DEVICE=cpu is a rehearsal')
    run = describe_run(torch.device(context.device))
    machine, versions = run['machine'], run['versions']
    if context.cuda:
        machine['capability'] = '{}.{}'.format(*torch.cuda.get_device_capability())
        versions['driver'], machine['power_limit'], machine['max_clock'] = ask_driver()
    versions['nvcc'] = nvcc_version()
    return dict(run=run, gpu=machine.get('gpu'), cpu=machine['cpu'], torch=versions['torch'])


def output_of(command: Sequence[str]) -> str:
    """Return what a command prints, or an empty string if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        logger.info('%s: %s', command[0], error)
        return ''
    return done.stdout if done.returncode == 0 else ''


def ask_driver() -> list[str | None]:
    """Return driver version, power limit and highest clock, or None for what is unknown."""
    fields = ('driver_version', 'power.limit', 'clocks.max.sm')
    command = ['nvidia-smi', f'--query-gpu={",".join(fields)}', '--format=csv,noheader']
    values = [value.strip() for value in output_of(command).partition('\n')[0].split(',')]
    return values if len(values) == len(fields) else [None] * len(fields)


def nvcc_version() -> str | None:
    """Return the version of nvcc, or None without one."""
    home = load_setup().find_cuda_home()
    nvcc = shutil.which('nvcc', path=f'{home}/bin') if home else shutil.which('nvcc')
    found = re.search(r'release [\d.]+, V([\d.]+)', output_of([nvcc, '--version']) if nvcc else '')
    return found[1] if found else None


# ---- the extension -------------------------------------------------------------------------------


def find_or_build(context: Context) -> Row:
    """Use the extension in the source tree, or build it.

    Raises:
        Skip: If there is no nvcc, and Triton's kernels can run without the extension's.
    """
    begin = time.monotonic()
    found = probe(context, ROOT)
    if found['problem'] is None:
        return found | dict(how='reused', seconds=0.0)
    if context.cuda and found.get('triton') and nvcc_version() is None:
        raise Skip(f'{found["problem"]}; there is no nvcc to build it')
    logger.info('building the extension: %s', found['problem'])
    reason = found['problem']
    build(context, ['build_ext', '--inplace'])
    found = probe(context, ROOT)
    if found['problem'] is not None:
        raise RuntimeError(f'the new extension cannot be used: {found["problem"]}')
    return found | dict(how='built', why=reason, seconds=round(time.monotonic() - begin, 1))


def probe(context: Context, folder: Path) -> Row:
    """Ask a new process whether the extension in a folder can be used.

    Args:
        context (Context): The run.
        folder (Path): The folder that holds the package.

    Returns:
        dict: ``problem``, the reason why it cannot be used or None, ``architectures``, and
        ``triton``, whether Triton's kernels can run.
    """
    digest = load_setup().source_digest()
    done = subprocess.run(
        [sys.executable, '-c', PROBE, context.device, digest],
        cwd=context.out,
        env=with_package(folder),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f'exit status {done.returncode}']
        return dict(problem=lines[-1])
    return json.loads(done.stdout.splitlines()[-1])


def build(context: Context, command: Sequence[str], **variables: str) -> None:
    """Compile the extension for this GPU only, one job per core.

    Raises:
        RuntimeError: If that fails; the compiler's output is in the log.
    """
    env = dict(MAX_JOBS=str(os.cpu_count())) | os.environ | variables | dict(MMVMAMBA_BUILD_EXT='1')
    # pip installs ninja next to Python.
    env['PATH'] = os.pathsep.join([str(Path(sys.executable).parent), env.get('PATH', os.defpath)])
    if context.cuda:
        major, minor = torch.cuda.get_device_capability()
        env |= dict(FORCE_CUDA='1', TORCH_CUDA_ARCH_LIST=f'{major}.{minor}')
    command = [sys.executable, 'setup.py', *command]
    # Thousands of lines, of which the standard output gets none.
    with open(context.out / 'log.txt', 'ab') as log:
        done = subprocess.run(
            command, cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT, check=False
        )
    if done.returncode:
        raise RuntimeError(f'setup.py {command[2]} ended with {done.returncode}, see log.txt')


def check_kernels(context: Context, backend: str) -> list[Row]:
    """Run each op's kernels of a backend."""
    # Imported after the build.
    from op_inputs import run, selective_inputs, ss2d_inputs

    from gpu_steps.backends import require
    from mmvmamba.ops import extension_error, selective_scan, ss2d_scan

    if backend == 'triton':
        require(context, backend)
    elif reason := extension_error(context.device):
        raise Skip(reason)
    device = torch.device(context.device)
    scan = functools.partial(ss2d_scan, backend=backend)
    results = run(scan, ss2d_inputs(1, (5, 7), 8, 2, torch.float32, device))
    scan = functools.partial(selective_scan, delta_softplus=True, backend=backend)
    results |= run(scan, selective_inputs(1, 9, 8, torch.float32, device))
    for name, value in results.items():
        if not value.isfinite().all():
            raise RuntimeError(f'{name} is not finite')
    return [dict(ops=['ss2d_scan', 'selective_scan'])]
