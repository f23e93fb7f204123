"""Step 1: a built extension is taken or one is built; versions; the kernels are there and run."""

from __future__ import annotations

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

from gpu_steps.context import NEEDS_CUDA, ROOT, Context, Item, Row, logger

# mmvmamba is imported in functions: which one is known only in the course of this step.

PROBE = """
import json, sys
import torch
from mmvmamba.info import build_info, why_not_native
problem = why_not_native(torch.device(sys.argv[1], 0 if sys.argv[1] == 'cuda' else None))
info = build_info()
if problem is None and info.get('sources') != sys.argv[2]:
    problem = 'it was built from other sources than csrc/'
print(json.dumps(dict(problem=problem, architectures=info.get('arch_list', []))))
"""


def items(context: Context) -> Iterator[Item]:
    """The items of the step."""
    sys.path.append(str(ROOT))  # until it is known which package has the kernels
    yield 'extension', lambda: [find_or_build(context)]
    yield 'machine', lambda: [describe(context)]
    yield 'kernels', lambda: check_kernels(context)


def load_setup():
    """The build script as a module."""
    sys.path.insert(0, str(ROOT))
    try:
        return importlib.import_module('setup')
    finally:
        sys.path.remove(str(ROOT))


def find_or_build(context: Context) -> Row:
    """Takes the extension of the source tree or an installed one, or else builds the former."""
    if context.cuda and not torch.cuda.is_available():
        raise RuntimeError(f'PyTorch {torch.__version__} sees no GPU')
    begin = time.monotonic()
    reasons = []
    for package, folder in (('source tree', ROOT), ('installed', None)):
        found = probe(context, folder)
        if found['problem'] is None:
            if folder is not None:
                sys.path.insert(0, str(folder))
            return found | dict(package=package, how='taken', seconds=0.0)
        reasons.append(f'{package}: {found["problem"]}')
        logger.info('%s', reasons[-1])
    build(context, ['build_ext', '--inplace'])
    found = probe(context, ROOT)
    if found['problem'] is not None:
        raise RuntimeError(f'the extension that was built cannot be used: {found["problem"]}')
    sys.path.insert(0, str(ROOT))
    seconds = round(time.monotonic() - begin, 1)
    return found | dict(package='source tree', how='built', seconds=seconds, reasons=reasons)


def probe(context: Context, folder: Path | None) -> Row:
    """Asks a new process whether an extension can be used.

    Args:
        context (Context): The run.
        folder (Path, optional): The folder that holds the package; None for an installed one.

    Returns:
        dict: ``problem``, the reason why it cannot be used or None, and ``architectures``.
    """
    env = os.environ.copy()
    if folder is not None:
        env['PYTHONPATH'] = os.pathsep.join([str(folder), env.get('PYTHONPATH', '')])
    digest = load_setup().source_digest()
    done = subprocess.run(
        [sys.executable, '-c', PROBE, context.device, digest],
        cwd=context.out,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f'exit status {done.returncode}']
        return dict(problem=lines[-1])
    return json.loads(done.stdout.splitlines()[-1])


def build(context: Context, command: Sequence[str], **variables: str) -> None:
    """Compiles the extension, for the GPU at hand alone, with a compiler for each core.

    Raises:
        RuntimeError: If that fails; the compiler's output is in the log.
    """
    env = dict(MAX_JOBS=str(os.cpu_count())) | os.environ | variables | dict(MMVMAMBA_BUILD_EXT='1')
    # Where ninja was installed with pip it stands beside Python.
    env['PATH'] = os.pathsep.join([str(Path(sys.executable).parent), env.get('PATH', os.defpath)])
    if context.cuda:
        major, minor = torch.cuda.get_device_capability()
        env |= dict(FORCE_CUDA='1', TORCH_CUDA_ARCH_LIST=f'{major}.{minor}')
    done = subprocess.run([sys.executable, 'setup.py', *command], cwd=ROOT, env=env, check=False)
    if done.returncode:
        raise RuntimeError(
            f'setup.py {command[0]} failed with status {done.returncode}, see log.txt'
        )


def describe(context: Context) -> Row:
    """The machine and the versions."""
    from mmvmamba.analysis.measure import describe_run

    run = describe_run(torch.device(context.device))
    if context.cuda:
        run['machine']['capability'] = '{}.{}'.format(*torch.cuda.get_device_capability())
    run['versions'] |= dict(driver=driver_version(), nvcc=nvcc_version())
    machine = run['machine']
    return dict(run=run, gpu=machine.get('gpu'), cpu=machine['cpu'], torch=run['versions']['torch'])


def driver_version() -> str | None:
    """The version of NVIDIA's driver, where nvidia-smi is there to ask."""
    if shutil.which('nvidia-smi') is None:
        return None
    command = ['nvidia-smi', '--query-gpu=driver_version', '--format=csv,noheader']
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip().splitlines()[0] if done.returncode == 0 else None


def nvcc_version() -> str | None:
    """The version of nvcc, where there is one."""
    home = load_setup().find_cuda_home()
    if home is None:
        return None
    done = subprocess.run(
        [f'{home}/bin/nvcc', '--version'], capture_output=True, text=True, check=False
    )
    found = re.search(r'release [\d.]+, V([\d.]+)', done.stdout)
    return found[1] if found else None


def check_kernels(context: Context) -> list[Row]:
    """Each op has its kernel, and runs."""
    from op_inputs import run, selective_inputs, ss2d_inputs

    from mmvmamba.ops import has_kernel, selective_scan, ss2d_scan

    ops = ('ss2d_scan', 'selective_scan')
    missing = [op for op in ops if not has_kernel(op, context.device)]
    if missing:
        raise RuntimeError(f'the {context.device} kernels are missing: {", ".join(missing)}')
    device = torch.device(context.device)
    scan = functools.partial(ss2d_scan, backend='native')
    results = run(scan, ss2d_inputs(1, (5, 7), 8, 2, torch.float32, device))
    scan = functools.partial(selective_scan, delta_softplus=True, backend='native')
    results |= run(scan, selective_inputs(1, 9, 8, torch.float32, device))
    for name, value in results.items():
        if not value.isfinite().all():
            raise RuntimeError(f'{name} is not finite')
    rows = [dict(ops=list(ops))]
    if not context.cuda:
        rows.append(dict(name='CUDA kernels', status='skipped', reason=NEEDS_CUDA))
    return rows
