"""Count the instructions of the GPU kernels in their machine code; no GPU is needed.

Triton: instructions of all threads over the elements of the map times the directions, for each
launch of an op; "all" adds them up. A loop over chunks counts as often as it runs. AMD targets are
compiled, not counted.

CUDA: the kernels of a library, by loop. A line counts one trip of a loop, and one of each loop in
it; "all" is the whole kernel. In this package's scans the outermost loop runs over directions and
the next over chunks, of which a thread takes 16 positions of a channel forward, 8 backward.
Shared memory whose size is set at launch is not known.

All counts are upper bounds, see ``machine_code.py``. The disassembler, cuobjdump, comes with Triton
and with the CUDA toolkit.

Examples:
    python benchmarks/sass.py --markdown
    python benchmarks/sass.py --shapes stage1 --dtypes float16 --targets sm_80 sm_100 gfx942
    python benchmarks/sass.py --kernels cuda --library mmvmamba/_C_cuda.so other.so --depth 3
    python benchmarks/sass.py --kernels triton --check
"""

import argparse
import itertools
import json
import logging
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import common
import torch
import triton_kernels
from common import logger
from gpu_steps.sweeps import cuda_library_of
from machine_code import KINDS, NO_CUOBJDUMP, count, cuobjdump, find_loops, read_functions
from triton_kernels import DTYPES, MODES, PER_ELEMENT, RESOURCES, SHAPES, SUMS, Setting

import mmvmamba
from mmvmamba.analysis.measure import Row

BASELINE = Path(__file__).with_name('sass_baseline.json')
BASELINE_TARGET = 'sm_90'
#: A count may rise by this part of the baseline's.
TOLERANCE = 0.1
#: A stack may grow by these bytes.
STACK_TOLERANCE = 64

COLUMNS = {
    'triton': (*Setting._fields, 'kernel', *PER_ELEMENT, *RESOURCES, *SUMS),
    'amd': (*Setting._fields, 'kernel', *RESOURCES, 'sgprs', 'spills', 'seconds'),
    'cuda': ('library', 'target', 'kernel', 'loop', 'depth', *PER_ELEMENT, *RESOURCES),
}
HEADINGS = dict(stack_bytes='stack, B', shared_bytes='shared, B', seconds='compile, s')


# ---- CUDA ----------------------------------------------------------------------------------------


def count_library(path: Path, target: str) -> list[Row]:
    """Count the kernels of a library that were compiled for a target, by loop."""
    rows: list[Row] = []
    functions = list(read_functions(path, '-arch', target))
    for function, kernel in zip(functions, demangle(f.name for f in functions), strict=True):
        where = dict(library=path.name, target=target, kernel=kernel)
        kinds = count(function.blocks)
        used = {field: getattr(function, field) for field in RESOURCES}
        rows.append(where | dict(loop='all', depth=0) | kinds | used)
        for address, loop in find_loops(function.blocks).items():
            kinds = count(function.blocks, within=loop.blocks)
            rows.append(where | dict(loop=hex(address), depth=loop.depth) | kinds)
    for row in rows:
        row |= {kind: row.get(kind, 0) for kind in KINDS}
        row['instructions'] = sum(row[kind] for kind in KINDS)
    return rows


def demangle(names: Iterable[str]) -> list[str]:
    """Return the C++ names of functions, or the names as they are without c++filt."""
    text, program = '\n'.join(names), shutil.which('c++filt')
    if program is not None:
        command = [program, '--no-params']
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
        text = done.stdout
    return re.sub(r'mmvmamba::|\(anonymous namespace\)::', '', text).splitlines()


# ---- the baseline --------------------------------------------------------------------------------


def setting_of(row: Row) -> str:
    """Return the name of a row's setting in the baseline."""
    return ' '.join(row[field] for field in Setting._fields)


def read_baseline() -> Row:
    """Read the baseline; without a file it is empty."""
    return json.loads(BASELINE.read_text()) if BASELINE.exists() else dict(triton=None, kernels={})


def version_of_triton() -> str:
    """Return the version of Triton, which compiles its kernels."""
    import triton

    return triton.__version__


def why_not_comparable(
    baseline: Row, compiler: str = 'triton', version: str | None = None
) -> str | None:
    """Return the reason why counts cannot be compared with a baseline, or None if they can.

    Args:
        baseline (dict): The baseline.
        compiler (str): 'triton' or 'nvcc'. Defaults to 'triton'.
        version (str, optional): Its version. Defaults to None, that of Triton.
    """
    version = version or version_of_triton()
    before = baseline.get(compiler) or version
    if before.split('.')[:2] == version.split('.')[:2]:
        return None
    return f'the baseline was counted with {compiler} {before}, but this is {version}'


def check(rows: Iterable[Row], baseline: Row) -> list[str]:
    """List the kernels whose instructions or stack exceed the baseline by more than is allowed."""
    problems = []
    for row in rows:
        name = f'{setting_of(row)}: {row["kernel"]}'
        before = baseline['kernels'].get(name)
        if before is None:
            problems.append(f'{name} is not in the baseline; write it with --update-baseline')
            continue
        if row['instructions'] > (1 + TOLERANCE) * before['instructions']:
            problems.append(
                f'{name}: {row["instructions"]:.2f} instructions, in the baseline '
                f'{before["instructions"]:.2f}'
            )
        if row['stack_bytes'] > before['stack_bytes'] + STACK_TOLERANCE:
            problems.append(
                f'{name}: a stack of {row["stack_bytes"]} bytes, in the baseline '
                f'{before["stack_bytes"]}'
            )
    return problems


def update_baseline(
    rows: Sequence[Row], compiler: str = 'triton', version: str | None = None
) -> None:
    """Write counts to the baseline in place of those of the same settings.

    Of another version of the compiler, 'triton' or 'nvcc', none are kept.
    """
    version = version or version_of_triton()
    old, counted = read_baseline(), {setting_of(row) for row in rows}
    if why_not_comparable(old, compiler, version):
        others = [name for name in old['kernels'] if (' CUDA ' in name) != (compiler == 'nvcc')]
    else:
        others = [name for name in old['kernels'] if name.partition(': ')[0] not in counted]
    kernels = {name: old['kernels'][name] for name in others}
    for row in rows:
        counts = dict(instructions=round(row['instructions'], 4))
        counts |= {field: row[field] for field in RESOURCES}
        kernels[f'{setting_of(row)}: {row["kernel"]}'] = counts
    data = old | {compiler: version} | dict(kernels=dict(sorted(kernels.items())))
    BASELINE.write_text(json.dumps(data, indent=1) + '\n')
    logger.info('wrote %s', BASELINE)


# ---- the command ---------------------------------------------------------------------------------


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.split('\n\n')[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add('--kernels', nargs='+', choices=('triton', 'cuda'), default=['triton', 'cuda'])
    add('--shapes', nargs='+', choices=SHAPES, default=list(SHAPES))
    add('--dtypes', nargs='+', choices=DTYPES, default=list(DTYPES))
    add('--modes', nargs='+', choices=MODES, default=list(MODES))
    add(
        '--targets',
        nargs='+',
        default=[BASELINE_TARGET],
        help='GPU architectures, such as sm_80 or gfx942',
    )
    add(
        '--library',
        nargs='+',
        type=Path,
        metavar='FILE.so',
        help='libraries to count (default: the CUDA kernels of mmvmamba)',
    )
    add('--depth', type=int, default=2, help='list loops of the CUDA kernels to this nesting')
    add('--markdown', action='store_true', help='write the tables in Markdown')
    add('--out', type=Path, metavar='FILE.json', help='file for the results')
    add(
        '--check',
        action='store_true',
        help='fail if a count of Triton rose by a tenth or its stack by 64 bytes',
    )
    add('--update-baseline', action='store_true', help=f'write {BASELINE.name}')
    return parser.parse_args(argv)


def count_triton(args: argparse.Namespace) -> list[Row]:
    """Count the Triton kernels; none where that is not possible."""
    if problem := triton_kernels.why_not_counted():
        logger.info('the Triton kernels are left out: %s', problem)
        return []
    settings = itertools.product(args.shapes, args.dtypes, args.modes, args.targets)
    return triton_kernels.count_settings(itertools.starmap(Setting, settings))


def count_cuda(args: argparse.Namespace) -> list[Row]:
    """Count the kernels of the libraries; none where they were not built."""
    libraries = args.library or cuda_library_of(Path(mmvmamba.__file__).parent)
    if not libraries:
        logger.info('the CUDA kernels are left out: they were not built')
        return []
    if cuobjdump() is None:
        raise SystemExit(NO_CUOBJDUMP)
    rows = []
    for library, target in itertools.product(libraries, args.targets):
        if not library.is_file():
            raise SystemExit(f'{library} is not a file')
        found = count_library(library, target) if target.startswith('sm_') else []
        if not found:
            logger.info('%s has no code for %s', library.name, target)
        rows += found
    return rows


def compile_times(rows: Iterable[Row]) -> list[str]:
    """Add up the time to compile the ops of VMamba-T, of which each kernel is compiled once."""
    seconds: dict[str, float] = {}
    for row in rows:
        if row['shape'] in triton_kernels.STAGES and row['kernel'] == 'all':
            name = f'{row["dtype"]} {row["mode"]}, {row["target"]}'
            seconds[name] = seconds.get(name, 0.0) + row['seconds']
    return [
        f'{name}: {value:.1f} CPU seconds to compile the stages of VMamba-T'
        for name, value in seconds.items()
    ]


def compare(
    rows: Sequence[Row],
    compiler: str = 'triton',
    version: str | None = None,
    check: Callable[[Iterable[Row], Row], list[str]] = check,
) -> int:
    """Compare counts with the baseline, as in `why_not_comparable`; return the exit status."""
    baseline = read_baseline()
    if problem := why_not_comparable(baseline, compiler, version):
        raise SystemExit(problem)
    problems = check(rows, baseline)
    for problem in problems:
        logger.error(problem)
    return 1 if problems else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Count, write the tables and return 1 if a count or a stack rose."""
    args = parse_args(argv)
    logging.basicConfig(level=logging.INFO, format='%(message)s')
    scans = count_triton(args) if 'triton' in args.kernels else []
    cuda = count_cuda(args) if 'cuda' in args.kernels else []
    tables = {
        'triton': [row for row in scans if 'instructions' in row],
        'amd': [row for row in scans if 'instructions' not in row],
        'cuda': [row for row in cuda if row['depth'] <= args.depth],
    }
    for name, rows in tables.items():
        if rows:
            columns = {key: HEADINGS.get(key, key) for key in COLUMNS[name]}
            common.write_table(rows, columns, args.markdown)
    summary = compile_times(scans)
    sys.stdout.writelines(f'{line}\n' for line in summary)
    if args.out is not None:
        common.write_json(args.out, 'sass', torch.device('cpu'), scans + cuda, summary)
    if not args.check and not args.update_baseline:
        return 0
    rows = [row for row in scans if row['target'] == BASELINE_TARGET]
    if not rows:
        raise SystemExit(f'no Triton kernel was counted for {BASELINE_TARGET}')
    if args.update_baseline:
        update_baseline(rows)
    return compare(rows) if args.check else 0


if __name__ == '__main__':
    sys.exit(main())
