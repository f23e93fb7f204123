"""Options, tables and JSON files of the benchmarks.

Requires only torch and ``mmvmamba``.
"""

import argparse
import functools
import importlib
import json
import logging
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

# Without it the profiler writes lines of its own at each use; it is read when torch is imported.
os.environ.setdefault('KINETO_LOG_LEVEL', '99')

import torch  # noqa: E402

from mmvmamba.analysis.measure import Call, Row  # noqa: E402
from mmvmamba.environment import describe_machine, describe_run  # noqa: E402

logger = logging.getLogger('benchmarks')


@functools.cache
def import_error(name: str) -> str | None:
    """Return the reason why a module cannot be imported, or None if it can."""
    try:
        importlib.import_module(name)
    except Exception as error:  # a package built for another torch may raise anything
        return f'{type(error).__name__}: {error}'
    return None


def base_parser(description: str, seconds: float) -> argparse.ArgumentParser:
    """Return a parser with the options of all benchmarks.

    Args:
        description (str): What the benchmark measures.
        seconds (float): The default of ``--seconds``.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cpu', help='where to run')
    parser.add_argument('--quick', action='store_true', help='a small set, in a few minutes')
    parser.add_argument('--out', type=Path, metavar='FILE.json', help='write the results there')
    parser.add_argument('--threads', type=int, help="CPU threads; the default is PyTorch's choice")
    parser.add_argument(
        '--seconds', type=float, default=seconds, help='time for each comparison, warm-up excluded'
    )
    parser.add_argument(
        '--min-rounds',
        type=int,
        default=5,
        help='minimum rounds per comparison',
    )
    return parser


def set_up(args: argparse.Namespace) -> torch.device:
    """Start logging, set the threads and check the device."""
    logging.basicConfig(
        level=logging.INFO, format='[%(asctime)s] %(message)s', datefmt='%H:%M:%S', force=True
    )
    for name in ('onnx_ir', 'onnxscript'):  # a line for each change of a graph
        logging.getLogger(name).setLevel('WARNING')
    if args.device == 'cuda' and not torch.cuda.is_available():
        raise SystemExit('--device cuda: PyTorch does not find a GPU')
    if args.out is not None and args.out.suffix != '.json':
        raise SystemExit(f'--out must end in .json, but got {args.out}')
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    return torch.device(args.device)


def capture(call: Call) -> Call:
    """Capture a call in a CUDA graph and return its replay, which takes no host time.

    A failed capture leaves PyTorch's allocator and random generator unusable in this process.

    Args:
        call (Callable): The call, which must not synchronize.
    """
    current, stream = torch.cuda.current_stream(), torch.cuda.Stream()
    stream.wait_stream(current)
    with torch.cuda.stream(stream):  # kernels and libraries must be ready before a capture
        for _ in range(3):
            call()
    current.wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


# ---- results ------------------------------------------------------------------------------------


def write_json(
    path: Path, benchmark: str, device: torch.device, rows: Sequence[Row], summary: Sequence[str]
) -> None:
    """Write the results of a benchmark with machine, versions and date."""
    data = dict(
        benchmark=benchmark,
        **describe_run(device),
        results=list(rows),
        summary=list(summary),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=1) + '\n', encoding='utf-8')
    logger.info('wrote %s', path)


def _cell(value: Any) -> str:
    if value is None:
        return '-'
    if isinstance(value, float):
        return (
            f'{value:.0f}'
            if abs(value) >= 1000
            else f'{value:.3g}'
            if value < 1
            else f'{value:.2f}'
        )
    return str(value)


def write_table(
    rows: Iterable[Mapping[str, Any]], columns: Mapping[str, str], markdown: bool = False
) -> None:
    """Write rows as an aligned table to stdout.

    Args:
        rows (Iterable[Mapping]): The rows.
        columns (Mapping[str, str]): Keys of a row and their headings.
        markdown (bool): Write Markdown. Defaults to False.
    """
    lines = [list(columns.values())]
    lines += [[_cell(row.get(key)) for key in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    if markdown:
        lines = [[f'| {cell}' for cell in line] + ['|'] for line in lines]
        lines.insert(1, ['| ---'] * len(widths) + ['|'])
        widths = [0] * len(lines[0])
    for line in lines:
        cells = [cell.rjust(width) for cell, width in zip(line, widths, strict=True)]
        sys.stdout.write((' ' if markdown else '  ').join(cells) + '\n')
    sys.stdout.write('\n')
    sys.stdout.flush()


def finish(
    args: argparse.Namespace,
    benchmark: str,
    device: torch.device,
    rows: Sequence[Row],
    summary: Sequence[str],
) -> None:
    """Write the summary's lines and the machine to stdout, and the JSON file."""
    machine = describe_machine(device)
    name = machine.get('gpu', machine['cpu'])
    for line in summary:
        sys.stdout.write(line + '\n')
    sys.stdout.write(
        f'{name}, {machine["threads"]} threads, {machine["cpu_capability"]}, '
        f'torch {torch.__version__}\n'
    )
    sys.stdout.flush()
    if args.out is not None:
        write_json(args.out, benchmark, device, rows, summary)


def add_ratios(rows: Sequence[Row], key: str, baseline: str, name: str = 'ratio') -> None:
    """Set ``name``: each row's median time over that of the baseline's row, if it is there."""
    base = next((row['median_ms'] for row in rows if row[key] == baseline), None)
    for row in rows:
        row[name] = None if base is None else round(row['median_ms'] / base, 4)
