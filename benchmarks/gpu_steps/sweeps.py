"""Step 7: time only the op over rank, directions, states and warps, with each backend."""

import contextlib
import functools
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import common
import torch
from op_inputs import ss2d_inputs

import mmvmamba
from gpu_steps.backends import BACKENDS, require
from gpu_steps.build import build, find_tool, probe
from gpu_steps.context import BENCHMARKS, NEEDS_CUDA, ROOT, Context, Item, Row, Skip, with_package
from gpu_steps.kernels import compile_first
from mmvmamba.analysis import measure
from mmvmamba.ops import has_kernel, ss2d_scan

PATTERNS = {
    '1 row': (0,),
    '1 column': (1,),
    '2 rows': (0, 2),
    '4 rows': (0, 0, 2, 2),
    '4': (0, 1, 2, 3),
}
#: Names of the sweeps, and what differs from the usual setting.
SETTINGS: list[tuple[str, dict[str, Any]]] = [
    *((f'rank {rank}', dict(rank=rank)) for rank in (1, 6, 12, 24, 48)),
    *((f'directions: {name}', dict(pattern=pattern)) for name, pattern in PATTERNS.items()),
    *((f'states {d_state}', dict(d_state=d_state)) for d_state in (4, 16)),
]
#: The most warps of a multiprocessor, forward and backward, which bound the registers.
#: The build has 20 and 12.
WARPS = ((16, 8), (24, 16))


def items(context: Context) -> Iterator[Item]:
    """List the sweeps; those that need a build come last."""
    yield compile_first(context, triton_calls)
    for name, options in SETTINGS:
        for backend in BACKENDS:
            yield f'{name}, {backend}', functools.partial(sweep, context, backend, **options)
    yield 'resources', kernel_resources
    for warps in WARPS:
        yield 'warps {}, {}'.format(*warps), functools.partial(sweep_warps, context, *warps)


def sweep(context: Context, backend: str, **options: Any) -> list[Row]:
    """Time the op alone."""
    require(context, backend)
    where = dict(backend=backend, **options)
    return [where | time_scan(context.device, **where)]


def triton_calls(device: torch.device) -> Iterator[Callable]:
    """Return a training step of each setting with Triton."""
    for _, options in SETTINGS:
        calls, _ = build_calls(device.type, backend='triton', **options)
        yield calls['training']


def build_calls(
    device: str,
    backend: str = 'native',
    rank: int = 6,
    d_state: int = 1,
    pattern: Sequence[int] = (0, 1, 2, 3),
) -> tuple[dict[str, measure.Call], int]:
    """Return the op alone at the first stage of VMamba-T at 224, batch 128.

    Returns:
        tuple[dict, int]: ``forward`` and ``training``, and the elements of all directions.
    """
    torch.manual_seed(0)
    batch, size, dtype = (128, 56, torch.float16) if device == 'cuda' else (2, 14, torch.bfloat16)
    where = torch.device(device)
    inputs = ss2d_inputs(
        batch, (size, size), 96, rank, dtype, where, d_state, directions=len(pattern)
    )
    leaves = {name: value.requires_grad_() for name, value in inputs.items()}
    scan = functools.partial(
        ss2d_scan, **leaves, pattern=tuple(pattern), out_dtype=torch.float32, backend=backend
    )
    grad = torch.randn(inputs['x'].shape, device=where)

    def forward():
        with torch.no_grad():
            return scan()

    def training():
        return torch.autograd.grad(scan(), list(leaves.values()), grad)

    return dict(forward=forward, training=training), inputs['x'].numel() * len(pattern)


def time_scan(device: str, **options: Any) -> Row:
    """Time the op alone, on a GPU without the time of the host.

    Args:
        device (str): 'cuda' or 'cpu'.
        **options: As for :func:`build_calls`.

    Returns:
        dict: ``forward_ns`` and ``backward_ns`` for each element of the map and direction.
    """
    calls, elements = build_calls(device, **options)
    seconds, rounds = 0.0, 1
    if device == 'cuda':
        calls = {name: common.capture(call) for name, call in calls.items()}
        seconds, rounds = 0.5, 5
    times = measure.interleave(calls, torch.device(device), seconds, rounds)
    ns = {
        name: measure.summarize(samples)['median_ms'] * 1e6 / elements
        for name, samples in times.items()
    }
    backward = ns['training'] - ns['forward']
    return dict(forward_ns=round(ns['forward'], 6), backward_ns=round(backward, 6))


def kernel_resources() -> list[Row]:
    """List registers and stack of the compiled kernels."""
    if not has_kernel('ss2d_scan', 'cuda'):
        raise Skip('the extension has no CUDA kernels')
    program = find_cuobjdump()
    if program is None:
        raise Skip('cuobjdump was not found; it comes with the CUDA toolkit and with triton')
    (library,) = cuda_library_of(Path(mmvmamba.__file__).parent)
    return resources_of(library, program)


def cuda_library_of(package: Path) -> list[Path]:
    """Find the library of the CUDA kernels in a package's folder."""
    return list(package.glob('_C_cuda.*'))


def find_cuobjdump() -> str | None:
    """Find cuobjdump on the PATH, in the CUDA toolkit or in triton."""
    folders = []
    with contextlib.suppress(ImportError):
        import triton

        folders.append(str(Path(triton.__file__).parent / 'backends/nvidia/bin'))
    return find_tool('cuobjdump', *folders)


def read_usage(path: Path, cuobjdump: str, *options: str) -> dict[str, dict[str, int]]:
    """Read what each function of a cubin or library uses: ``REG``, ``STACK``, ``SHARED``, ..."""
    command = [cuobjdump, '--dump-resource-usage', *options, str(path)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {
        name: {key: int(value) for key, value in re.findall(r'(\w+)(?:\[0\])?:(\d+)', usage)}
        for name, usage in re.findall(r'Function (\S+):\s+(REG:.*)', text)
    }


def resources_of(library: Path, cuobjdump: str) -> list[Row]:
    """List the kernels of an extension.

    Args:
        library (Path): The extension.
        cuobjdump (str): The program.

    Returns:
        list[dict]: ``kernel``, ``dtype``, ``states`` ('1', 'many' or, for any strides, 'any'),
        ``registers``, and ``stack``: the bytes for what does not fit into registers.
    """
    dtypes = {
        'f': 'float32',
        'd': 'float64',
        'N3c104HalfE': 'float16',
        'N3c108BFloat16E': 'bfloat16',
    }
    rows = []
    for name, used in read_usage(library, cuobjdump).items():
        # Types of the I/O and, backward, of y's gradient: S.._ stands for the first of them.
        scan = re.search(
            r'(forward|backward)(_lane)?_kernelI(f|d|N3c10\w+?E)(f|d|S\w*?_)?'
            r'Lb([01])ELb([01])E(?:Lb([01])E)?',
            name,
        )
        combine = re.search(r'combine_kernelI([fd])E', name)
        if scan:
            way, lanes, dtype, of_grad, is_map, one, summary = scan.groups()
            # The backward's lanes only make a summary.
            kind = '' if not lanes else ' by lanes' if summary == '0' else ' summary'
            wide = of_grad == 'f' and dtype != 'f' and one == '1'
            row = dict(
                kernel=way + kind + (', wide gradient' if wide else ''),
                dtype=dtypes[dtype],
                states='1' if one == '1' else 'many' if is_map == '1' else 'any',
            )
        elif combine:
            row = dict(kernel='combine', dtype=dtypes[combine[1]], states='any')
        else:
            continue
        rows.append(row | dict(registers=used['REG'], stack=used['STACK']))
    if not rows:
        raise RuntimeError(f'no mmvmamba kernel in {library.name}')
    return sorted(rows, key=lambda row: (row['kernel'], row['dtype'], row['states']))


def sweep_warps(context: Context, forward: int, backward: int) -> list[Row]:
    """Time the op with kernels built with different launch bounds.

    A build in ``build/gpu_check/warps_<forward>_<backward>`` is reused.
    """
    if not context.cuda:
        raise Skip(NEEDS_CUDA)
    require(context, 'native')
    folder = ROOT / 'build' / 'gpu_check' / f'warps_{forward}_{backward}'
    built = (folder / 'lib' / 'mmvmamba').is_dir()
    if not built or probe(context, folder / 'lib')['problem'] is not None:
        flags = f'-DMMVMAMBA_FORWARD_WARPS={forward} -DMMVMAMBA_BACKWARD_WARPS={backward}'
        command = ['build', '--build-base', str(folder), '--build-lib', str(folder / 'lib')]
        build(context, command, NVCC_APPEND_FLAGS=flags, CFLAGS=flags, CXXFLAGS=flags)
    torch.cuda.empty_cache()
    code = "import json; from gpu_steps import sweeps; print(json.dumps(sweeps.time_scan('cuda')))"
    env = with_package(folder / 'lib')
    done = subprocess.run(
        [sys.executable, '-c', code], cwd=BENCHMARKS, env=env, stdout=subprocess.PIPE, text=True,
        check=True,
    )  # fmt: skip
    row = dict(warps=[forward, backward]) | json.loads(done.stdout.splitlines()[-1])
    program = find_cuobjdump()
    if program is not None:
        (library,) = cuda_library_of(folder / 'lib' / 'mmvmamba')
        for kernel in resources_of(library, program):
            if (kernel['dtype'], kernel['states']) == ('float16', '1'):
                row[f'registers_{kernel["kernel"].replace(" ", "_")}'] = kernel['registers']
    return [row]
