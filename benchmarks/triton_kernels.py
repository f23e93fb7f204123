"""Compile the Triton kernels without a GPU and count the instructions in their machine code.

The counts are the instructions of all threads over the elements of the map times the directions.
With one state a kernel has at most one loop, whose trips are known from the launch. AMD targets are
compiled, not counted.
"""

import functools
import itertools
import math
import os
import re
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from common import import_error, logger
from machine_code import (
    KINDS,
    NO_CUOBJDUMP,
    Function,
    count,
    cuobjdump,
    find_loops,
    read_functions,
)

from mmvmamba.analysis.measure import Row
from mmvmamba.ops.triton import interprets

BATCH = 128
ORDERS = (0, 1, 2, 3)
#: Side of the map, channels and rank of the stages of VMamba-T at 224.
STAGES = {
    'stage1': (56, 96, 6),
    'stage2': (28, 192, 12),
    'stage3': (14, 384, 24),
    'stage4': (7, 768, 48),
}
#: A high rank on a large map, too.
SHAPES = STAGES | {'rank48': (56, 768, 48)}
DTYPES = ('float16', 'bfloat16', 'float32')
MODES = ('forward', 'backward')

#: Fields of a row that are counted for each element and direction, added up and maximized over the
#: launches of an op.
PER_ELEMENT = ('instructions', *KINDS)
SUMS = ('loops', 'seconds')
RESOURCES = ('registers', 'stack_bytes', 'shared_bytes')


class Setting(NamedTuple):
    """An op to count, and the architecture."""

    shape: str
    dtype: str
    mode: str
    target: str

    @property
    def elements(self) -> int:
        """The elements of the map times the directions."""
        size, channels, _ = SHAPES[self.shape]
        return BATCH * size * size * channels * len(ORDERS)


# ---- launches ------------------------------------------------------------------------------------


def why_not_counted() -> str | None:
    """Return the reason why the kernels cannot be counted here, or None if they can."""
    if cuobjdump() is None:
        return NO_CUOBJDUMP
    if interprets():
        return 'TRITON_INTERPRET=1 interprets the kernels instead of compiling them'
    return import_error('mmvmamba.ops.triton.launch')


def parse_target(name: str) -> Any:
    """Return Triton's target for a name such as 'sm_90' or 'gfx942'."""
    from triton.backends.compiler import GPUTarget

    if name.startswith('sm_'):
        return GPUTarget('cuda', int(name.removeprefix('sm_')), 32)
    return GPUTarget('hip', name, 64 if name.startswith('gfx9') else 32)


def plan(setting: Setting) -> list[Any]:
    """List the launches of an op."""
    from mmvmamba.ops.triton.launch import Gradients, plan_backward, plan_forward, ss2d_scan_inputs

    size, C, rank = SHAPES[setting.shape]
    K, target = len(ORDERS), parse_target(setting.target)
    dtype = getattr(torch, setting.dtype)

    def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device='meta')

    x = meta(BATCH, size, size, C, dtype=dtype)
    proj = meta(BATCH, size, size, K, rank + 2, dtype=dtype)
    params = (meta(K, C, rank), meta(K, C), meta(K, C, 1), meta(K, C))
    scan = ss2d_scan_inputs(x, proj, *params, ORDERS, target)
    if setting.mode == 'forward':
        return list(plan_forward(scan, torch.empty_like(x)))
    return list(plan_backward(scan, torch.empty_like(x), Gradients.allocate(scan)))


def name_launches(launches: Sequence[Any]) -> list[str]:
    """Name launches by their kernels and by the constants in which those of a kernel differ."""
    names: list[str] = []
    for launch in launches:
        others = [other.constants for other in launches if other.kernel is launch.kernel]
        differing = [
            f'{name}={value}'
            for name, value in launch.constants.items()
            if any(other.get(name) != value for other in others)
        ]
        name = launch.kernel.__name__ + (f'({", ".join(differing)})' if differing else '')
        candidates = itertools.chain([name], (f'{name} #{n}' for n in itertools.count(2)))
        names.append(next(candidate for candidate in candidates if candidate not in names))
    return names


# ---- counts --------------------------------------------------------------------------------------


@functools.cache
def read_cubin(cubin: bytes) -> Function:
    """Disassemble the only kernel of a cubin."""
    with tempfile.NamedTemporaryFile(suffix='.cubin') as file:
        file.write(cubin)
        file.flush()
        (kernel,) = read_functions(Path(file.name))
    return kernel


def count_thread(kernel: Function, trips: int) -> Row:
    """Count the instructions, loops, registers and stack of a thread.

    Args:
        kernel (Function): The kernel.
        trips (int): How often each of its loops runs.
    """
    loops = find_loops(kernel.blocks)
    kinds = count(kernel.blocks, trips=[trips] * len(loops))
    return dict(
        instructions=sum(kinds.values()),
        **{kind: kinds[kind] for kind in KINDS},
        registers=kernel.registers,
        stack_bytes=kernel.stack_bytes,
        loops=len(loops),
    )


def read_amd_usage(assembly: str) -> Row:
    """Read registers, spills and stack from the metadata at the end of AMD's assembly."""
    found = {name: int(n) for name, n in re.findall(r'^ +\.(\w+): +(\d+)$', assembly, re.M)}
    return dict(
        registers=found['vgpr_count'],
        sgprs=found['sgpr_count'],
        spills=found['vgpr_spill_count'],
        stack_bytes=found['private_segment_fixed_size'],
    )


def count_launch(launch: Any, target: Any) -> Row:
    """Compile a launch and count its instructions for each element and direction."""
    begin = sum(os.times()[:4])  # ptxas is a process of its own
    kernel = launch.compile(target)
    row = dict(elements=launch.elements, seconds=sum(os.times()[:4]) - begin)
    row['shared_bytes'] = kernel.metadata.shared
    if target.backend == 'hip':
        return row | read_amd_usage(kernel.asm['amdgcn'])
    counts = count_thread(read_cubin(kernel.asm['cubin']), launch.trips)
    threads = 32 * launch.num_warps * math.prod(launch.grid)
    return row | counts | {key: counts[key] * threads / launch.elements for key in PER_ELEMENT}


def count_setting(setting: Setting) -> list[Row]:
    """Count the launches of an op, and all of them together in the last row."""
    launches, target = plan(setting), parse_target(setting.target)
    rows = [
        setting._asdict() | dict(kernel=name) | count_launch(launch, target)
        for name, launch in zip(name_launches(launches), launches, strict=True)
    ]
    total: Row = setting._asdict() | dict(kernel='all', elements=setting.elements)
    for key in rows[0].keys() - total.keys():
        if key in PER_ELEMENT:
            total[key] = sum(row[key] * row['elements'] for row in rows) / setting.elements
        else:
            total[key] = (sum if key in SUMS else max)(row[key] for row in rows)
    return [*rows, total]


def count_settings(settings: Iterable[Setting]) -> list[Row]:
    """Count ops. The cache is empty at first, so that each kernel is compiled once."""
    import triton

    rows = []
    with tempfile.TemporaryDirectory() as folder, triton.knobs.cache.scope():
        triton.knobs.cache.dir = folder
        for setting in settings:
            logger.info(' '.join(setting))
            rows += count_setting(setting)
    return rows
