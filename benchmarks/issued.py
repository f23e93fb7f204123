"""Count the instructions that the CUDA scans issue, by walking through their machine code.

Compiles ``ss2d_scan`` with float16 I/O for sm_90, calls it with one state and records the launches
that it would make. Threads of each warp of some of a launch's blocks are followed to their exit
with the arguments of the launch, see ``sass_walk.py``. Counts are thread instructions over the
elements of the map times the directions, of everything that a launch does. Needs nvcc, a host
compiler and cuobjdump, no GPU.

Examples:
    python benchmarks/issued.py --markdown
    python benchmarks/issued.py --shapes stage1 stage4 --modes forward --kinds
    python benchmarks/issued.py --check
"""

import argparse
import ctypes
import functools
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import common
import sass
import torch
from common import logger
from gpu_steps.sweeps import read_usage
from machine_code import KINDS, NO_CUOBJDUMP, cuobjdump, split_functions
from sass_walk import Code
from triton_kernels import BATCH, ORDERS, Setting
from triton_kernels import STAGES as STAGES_OF_VMAMBA

from mmvmamba.analysis.measure import Row

ROOT = Path(__file__).parents[1]
SOURCES = (
    'csrc/cuda/scan_forward_half.cu',
    'csrc/cuda/scan_backward_half.cu',
    'csrc/cuda/scan_combine.cu',
    'benchmarks/launches.cpp',
)
TARGET = 'sm_90'
#: Batch, height, width, channels and rank.
SHAPES = {
    **{name: (BATCH, size, size, C, R) for name, (size, C, R) in STAGES_OF_VMAMBA.items()},
    '512x512': (4, 128, 128, 96, 6),
    '800x1333': (2, 200, 334, 96, 6),
    'rank64': (BATCH, 14, 14, 1024, 64),
}
#: Modes, with their names in the baseline.
MODES = {'forward': 'CUDA forward', 'backward': 'CUDA backward'}
KERNELS = {
    r'pack_weight_kernel': 'pack weights',
    r'forward_lane_kernel\w+Lb1EEEv|backward_lane_kernel': 'summary',
    r'combine': 'combine',
    r'forward_kernel|forward_lane_kernel|backward_kernel': 'sweep',
}
COLUMNS = ('shape', 'mode', 'kernel', 'instructions', *sass.RESOURCES, 'warps', 'resident_warps')
#: The launch bounds of the kernels ask for no more.
MOST_REGISTERS = 128
WARP = 32


class Launch(NamedTuple):
    """A launch: the kernel's name in the library, sizes and the bytes of the arguments."""

    kernel: str
    blocks: int
    threads: int
    shared: int
    arguments: bytes


class Library(NamedTuple):
    """Compiled kernels: disassembly and usage by name, and the host code with their launches."""

    texts: dict[str, str]
    usage: dict[str, dict[str, int]]
    host: ctypes.CDLL


# ---- launches ------------------------------------------------------------------------------------


def find_nvcc() -> str | None:
    """Find the compiler on the PATH or in ``CUDA_HOME``."""
    home = os.environ.get('CUDA_HOME', '/usr/local/cuda')
    return shutil.which('nvcc') or shutil.which(f'{home}/bin/nvcc')


def why_not_counted() -> str | None:
    """Return the reason why the kernels cannot be counted here, or None if they can."""
    if find_nvcc() is None:
        return 'nvcc was not found'
    return NO_CUOBJDUMP if cuobjdump() is None else None


def nvcc_version() -> str:
    """Return the version of the compiler, such as '13.0'."""
    command = [find_nvcc(), '--version']
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return re.search(r'release ([\d.]+)', text)[1]


@functools.cache
def build() -> Library:
    """Compile kernels and host code, once."""
    torch_folder = Path(torch.__file__).parent
    include = [ROOT / 'csrc', ROOT / 'csrc/cuda', torch_folder / 'include']
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / 'launches.so'
        command = [
            find_nvcc(),
            '-shared',
            '-cudart',
            'none',
            f'-arch={TARGET}',
            '-O3',
            '-std=c++17',
        ]
        command += ['-Xcompiler', '-fPIC,-Wno-attributes', '-o', str(library), '-DUSE_CUDA']
        command += ['-DTORCH_TARGET_VERSION=0x020a000000000000', *(f'-I{path}' for path in include)]
        command += [str(ROOT / source) for source in SOURCES]
        command += [f'-L{torch_folder / "lib"}', '-Xlinker', '--no-as-needed,-Bsymbolic']
        subprocess.run([*command, '-ltorch', '-ltorch_cpu', '-lc10'], check=True)
        dump = [cuobjdump(), '-sass', str(library)]
        text = subprocess.run(dump, capture_output=True, text=True, check=True).stdout
        usage = read_usage(library, cuobjdump())
        host = ctypes.CDLL(str(library))
    host.mmvmamba_take_launches.restype = ctypes.c_char_p
    return Library(dict(split_functions(text)), usage, host)


def record(shape: str, mode: str) -> list[Launch]:
    """List the launches of an op; no kernel runs."""
    N, H, W, C, R = SHAPES[shape]
    K, half = len(ORDERS), torch.float16
    x = torch.empty(N, H, W, C, dtype=half)
    proj = torch.empty(N, H, W, K, R + 2, dtype=half)
    inputs = [x, proj, *(torch.empty(K, C, *size) for size in ((R,), (), (1,), ()))]
    host, ops = build().host, torch.ops.mmvmamba_launches
    _, states = ops.ss2d_scan(*inputs, ORDERS, half, mode == 'backward')
    if mode == 'backward':
        host.mmvmamba_take_launches()
        ops.ss2d_scan_backward(torch.empty_like(x), *inputs, states, ORDERS)
    lines = host.mmvmamba_take_launches().decode().splitlines()
    parts = [line.split() for line in lines]
    return [Launch(p[0], *map(int, p[1:4]), bytes.fromhex(p[4])) for p in parts]


# ---- counts --------------------------------------------------------------------------------------


def choose_blocks(launch: Launch, shape: str, kernel: str) -> Iterator[tuple[int, int]]:
    """Choose blocks that stand for all, with the number of those that each stands for.

    They are the first, a middle and the last segment of the first and the last part of the
    channels, for each direction that has blocks of its own. Samples are alike.
    """
    if kernel not in ('sweep', 'summary'):
        yield 0, launch.blocks
        return
    parts, segments = split_of(launch)
    batch = SHAPES[shape][0]
    for direction in range(launch.blocks // (parts * segments * batch)):
        for segment, alike in _first_middle_last(segments).items():
            for part, as_wide in {0: parts - 1 or 1, parts - 1: 1}.items():
                index = part + parts * (segment + segments * batch * direction)
                yield index, alike * as_wide * batch


def split_of(launch: Launch) -> tuple[int, int]:
    """Read the parts of the channels and the segments of the axis from the arguments."""
    numbers = memoryview(launch.arguments[:104]).cast('i')  # ScanPlan: six divisors first
    return numbers[12 + 11], numbers[12 + 13]


def _first_middle_last(count: int) -> dict[int, int]:
    if count < 3:
        return dict.fromkeys(range(count), 1)
    return {0: 1, count // 2: count - 2, count - 1: 1}


def count_launch(launch: Launch, shape: str, kernel: str) -> Counter[str]:
    """Count the instructions of all threads of a launch by kind.

    A warp enters a block of the code as often as the first or the last lane of a team does.
    """
    code = Code(build().texts[launch.kernel], launch.arguments, launch.threads)
    total: Counter[str] = Counter()
    for block, alike in choose_blocks(launch, shape, kernel):
        for first in range(0, launch.threads, WARP):
            entered = code.walk(first, block) | code.walk(first + 3, block)
            for kind, number in code.kinds(entered).items():
                total[kind] += number * alike * WARP
    return total


def resident_warps(registers: int, shared: int, warps: int) -> int:
    """Return the warps of a multiprocessor of sm_90 that registers, shared memory and it allow.

    Args:
        registers (int): Of a thread.
        shared (int): Bytes of a block, with those that the system has reserved.
        warps (int): Of a block.
    """
    by_registers = 4 * (16384 // (-(-registers // 8) * 8 * WARP)) // warps
    return warps * min(by_registers, 228 * 1024 // max(shared, 1), 64 // warps, 32)


def count_setting(shape: str, mode: str) -> list[Row]:
    """Count the kernels of an op, and all of them in the last row."""
    N, H, W, C, _ = SHAPES[shape]
    elements = N * H * W * C * len(ORDERS)
    usage = build().usage
    counts: dict[str, Counter[str]] = {}
    resources: dict[str, Row] = {}
    for launch in record(shape, mode):
        kernel = next(name for p, name in KERNELS.items() if re.search(p, launch.kernel))
        counts.setdefault(kernel, Counter()).update(count_launch(launch, shape, kernel))
        used, warps = usage[launch.kernel], -(-launch.threads // WARP)
        resources[kernel] = dict(
            registers=used['REG'],
            stack_bytes=used['STACK'],
            shared_bytes=launch.shared,
            warps=warps,
            resident_warps=resident_warps(used['REG'], launch.shared + used['SHARED'], warps),
        )
    counts['all'] = sum(counts.values(), Counter())
    resources['all'] = {key: max(row[key] for row in resources.values()) for key in sass.RESOURCES}
    where = Setting(shape, 'float16', MODES[mode], TARGET)._asdict()
    rows = []
    for kernel, kinds in counts.items():
        row = {kind: kinds[kind] / elements for kind in KINDS}
        row['instructions'] = sum(row.values())
        rows.append(where | dict(kernel=kernel) | row | resources[kernel])
    return rows


# ---- the command ---------------------------------------------------------------------------------


def check(rows: Iterable[Row], baseline: Row) -> list[str]:
    """List the kernels that exceed the baseline by more than is allowed."""
    problems = sass.check(rows, baseline)
    for row in rows:
        name = f'{sass.setting_of(row)}: {row["kernel"]}'
        before = baseline['kernels'].get(name, row)['registers']
        if row['registers'] > max(before, MOST_REGISTERS):
            problems.append(f'{name}: {row["registers"]} registers, in the baseline {before}')
    return problems


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.split('\n\n')[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add('--shapes', nargs='+', choices=SHAPES, default=list(SHAPES))
    add('--modes', nargs='+', choices=MODES, default=list(MODES))
    add('--kinds', action='store_true', help='also list instructions by kind')
    add('--markdown', action='store_true', help='write the table in Markdown')
    add('--out', type=Path, metavar='FILE.json', help='file for the results')
    add(
        '--check',
        action='store_true',
        help='fail if a count rose by a tenth, a stack by 64 bytes or registers above 128',
    )
    add('--update-baseline', action='store_true', help=f'write {sass.BASELINE.name}')
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Compile, walk, write the table and return 1 if a count rose."""
    args = parse_args(argv)
    logging.basicConfig(level=logging.INFO, format='%(message)s')
    if problem := why_not_counted():
        raise SystemExit(problem)
    rows = []
    for shape in args.shapes:
        for mode in args.modes:
            logger.info('%s %s', shape, mode)
            rows += count_setting(shape, mode)
    columns = [*COLUMNS, *(KINDS if args.kinds else ())]
    common.write_table(rows, {key: sass.HEADINGS.get(key, key) for key in columns}, args.markdown)
    if args.out is not None:
        common.write_json(args.out, 'issued', torch.device('cpu'), rows, [])
    if args.update_baseline:
        sass.update_baseline(rows, 'nvcc', nvcc_version())
    return sass.compare(rows, 'nvcc', nvcc_version(), check) if args.check else 0


if __name__ == '__main__':
    sys.exit(main())
