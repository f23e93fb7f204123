"""Step 8: hardware counters of each kernel of a forward and backward pass, by Nsight Compute."""

import csv
import functools
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import op_inputs
import torch

from gpu_steps.backends import BACKENDS, require
from gpu_steps.build import find_tool
from gpu_steps.context import NEEDS_CUDA, Context, Item, Row, Skip, run_apart
from gpu_steps.kernels import compile_first
from mmvmamba.ops import ss2d_scan


class Map(NamedTuple):
    """Input map of a scan in float16 with one state and four directions."""

    batch: int
    height: int
    width: int
    channels: int
    rank: int

    def __str__(self) -> str:
        return '{} x {}x{} x {}, rank {}'.format(*self)

    @property
    def elements(self) -> int:
        """Elements of all directions."""
        return 4 * self.batch * self.height * self.width * self.channels


#: The first and third stage of VMamba-T at 224 x 224, and a map whose scans are split into chunks.
MAPS = (Map(128, 56, 56, 96, 6), Map(128, 14, 14, 384, 24), Map(4, 128, 128, 96, 6))
STALL = 'smsp__average_warps_issue_stalled_{}_per_issue_active.ratio'
STALLS = (
    'barrier', 'branch_resolving', 'dispatch_stall', 'drain', 'imc_miss', 'lg_throttle',
    'long_scoreboard', 'math_pipe_throttle', 'membar', 'mio_throttle', 'no_instruction',
    'short_scoreboard', 'tex_throttle', 'wait',
)  # fmt: skip
TIME = 'gpu__time_duration.sum'
INSTRUCTIONS = 'smsp__thread_inst_executed.sum'
ISSUE = 'smsp__issue_active.avg.pct_of_peak_sustained_active'
OCCUPANCY = 'sm__warps_active.avg.pct_of_peak_sustained_active'
BYTES = ('dram__bytes_read.sum', 'dram__bytes_write.sum')
CONFLICTS = 'l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum'
REGISTERS = 'launch__registers_per_thread'
METRICS = (TIME, INSTRUCTIONS, ISSUE, OCCUPANCY, *BYTES, CONFLICTS, REGISTERS)
#: Messages of ncu when it cannot read the counters.
REFUSALS = (
    'ERR_NVGPUCTRPERM',
    'Failed to initialize the profiler',
    'driver resource was unavailable',
)


def items(context: Context) -> Iterator[Item]:
    """List each map with each backend."""
    yield compile_first(context, triton_calls)
    for shape in MAPS:
        for backend in BACKENDS:
            yield f'{shape}, {backend}', functools.partial(count, context, shape, backend)


def count(context: Context, shape: Map, backend: str) -> list[Row]:
    """Return a row for each kernel of a forward and backward pass."""
    if not context.cuda:
        raise Skip(NEEDS_CUDA)
    require(context, backend, dtype=torch.float16)
    program = find_ncu()
    if program is None:
        raise Skip('ncu (Nsight Compute) is not installed')
    code = f'from gpu_steps import counters; counters.profiled_call({tuple(shape)}, {backend!r})'
    metrics = ','.join((*METRICS, *map(STALL.format, STALLS)))
    command = [
        program, '--csv', '--print-units', 'base', '--print-kernel-base', 'function',
        '--profile-from-start', 'off', '--clock-control', 'none', '--cache-control', 'none',
        '--metrics', metrics, sys.executable, '-c', code,
    ]  # fmt: skip
    done = run_apart(command)
    rows = read_counters(done.stdout, shape.elements)
    if done.returncode or not rows:
        sys.stdout.write(done.stdout)
        refusal = next((text for text in REFUSALS if text in done.stdout), None)
        if refusal is not None:
            raise Skip(f'ncu: {refusal}')
        raise RuntimeError(f'ncu ended with status {done.returncode} and {len(rows)} kernels')
    return [dict(backend=backend, map=str(shape), **row) for row in rows]


def find_ncu() -> str | None:
    """Find ncu on the PATH, in the CUDA toolkit or where its own package installs it."""
    own = sorted(map(str, Path('/opt/nvidia/nsight-compute').glob('*')), reverse=True)
    return find_tool('ncu', *own)


def triton_calls(device: torch.device) -> Iterator[Callable]:
    """Return a forward and backward pass of each map with Triton."""
    for shape in MAPS:
        yield build_call(shape, 'triton', device)


def build_call(shape: Map, backend: str, device: torch.device) -> Callable[[], None]:
    """Return a forward and backward pass of a map."""
    batch, height, width, channels, rank = shape
    torch.manual_seed(0)
    inputs = op_inputs.ss2d_inputs(batch, (height, width), channels, rank, torch.float16, device)
    leaves = {name: value.requires_grad_() for name, value in inputs.items()}
    grad = torch.randn_like(inputs['x'], dtype=torch.float32)

    def call() -> None:
        y = ss2d_scan(**leaves, out_dtype=torch.float32, backend=backend)
        torch.autograd.grad(y, list(leaves.values()), grad)

    return call


def profiled_call(shape: tuple[int, ...], backend: str) -> None:
    """Run a call twice, the second time under the profiler."""
    call = build_call(Map(*shape), backend, torch.device('cuda'))
    call()
    torch.cuda.synchronize()
    torch.cuda.profiler.start()
    call()
    torch.cuda.synchronize()
    torch.cuda.profiler.stop()


def read_counters(text: str, elements: int) -> list[Row]:
    """Read what ncu prints with ``--csv``: a line for each metric of each launch.

    Args:
        text (str): The output.
        elements (int): The elements of all directions.

    Returns:
        list[dict]: For each launch ``kernel``, ``us``, ``instructions`` of a thread for each
        element, ``issue`` and ``occupancy`` in percent, ``gb_per_s`` of memory traffic,
        ``conflicts``: cycles lost to bank conflicts per 1000 elements, ``registers``, and
        ``stall``: the most common reason why a warp waits, in cycles per issued instruction.
    """
    lines = text.splitlines()
    header = next((i for i, line in enumerate(lines) if line.startswith('"ID",')), len(lines))
    launches: dict[str, dict[str, float]] = {}
    names = {}
    for line in csv.DictReader(line for line in lines[header:] if line.startswith('"')):
        names[line['ID']] = line['Kernel Name']
        value = line['Metric Value'].replace(',', '')
        if re.fullmatch(r'[-+\d.e]+', value):
            launches.setdefault(line['ID'], {})[line['Metric Name']] = float(value)
    return [summarize(names[key], metrics, elements) for key, metrics in launches.items()]


def summarize(kernel: str, metrics: dict[str, float], elements: int) -> Row:
    """Turn the metrics of a launch into a row; metrics that the GPU lacks are None."""

    def scaled(name: str, factor: float = 1.0) -> float | None:
        return round(metrics[name] * factor, 2) if name in metrics else None

    stalls = {name: metrics.get(STALL.format(name), 0.0) for name in STALLS}
    worst = max(stalls, key=stalls.__getitem__)
    traffic = [metrics[name] for name in (*BYTES, TIME) if name in metrics]
    return dict(
        kernel=kernel,
        us=scaled(TIME, 1e-3),
        instructions=scaled(INSTRUCTIONS, 1 / elements),
        issue=scaled(ISSUE),
        occupancy=scaled(OCCUPANCY),
        # Bytes per nanosecond.
        gb_per_s=round(sum(traffic[:2]) / traffic[2], 1) if len(traffic) == 3 else None,
        conflicts=scaled(CONFLICTS, 1e3 / elements),
        registers=scaled(REGISTERS),
        stall=f'{worst} {stalls[worst]:.1f}',
    )
