"""Compare training runs: metrics, time per step and memory in a Markdown table, and curves.

If a run was resumed, its logs are joined: a later log replaces the same steps of earlier ones.

Example:
    python tools/analysis_tools/compare_runs.py work_dirs/vmamba work_dirs/swin --out curves.png
"""

import argparse
import json
import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from mmvmamba.analysis import plotting
from mmvmamba.engine import errors
from mmvmamba.engine.errors import UserError
from mmvmamba.engine.run_summary import NOT_METRICS
from mmvmamba.nn.settings import did_you_mean

MAIN_METRICS = ('mAP', 'mIoU', 'top1')
#: Metrics of OpenMMLab that are better when larger, such as 'coco/bbox_mAP_50' and 'mIoU'.
LARGER_IS_BETTER = re.compile(
    r'AP(?![A-Za-z])|AR@|IoU|Dice|[Aa]cc|[Pp]recision|[Rr]ecall|[Ff]score|f1-score|/top\d|[PSR]Q$'
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('runs', type=Path, nargs='+', help='work directories of training runs')
    parser.add_argument('--out', type=plotting.png_path, metavar='PNG', help='image of the curves')
    parser.add_argument('--keys', nargs='+', help='keys to plot (default: loss and main metrics)')
    args = parser.parse_args()
    if args.keys and not args.out:
        parser.error('--keys needs --out, the image of the curves')
    return args


@dataclass(frozen=True)
class Run:
    """Logged rows of a run: ``train`` by iteration, ``val`` by epoch or iteration."""

    name: str
    train: dict[int, dict[str, Any]]
    val: dict[int, dict[str, Any]]

    def curve(self, key: str) -> list[tuple[int, float]]:
        """Return the steps and the finite values of a key."""
        rows = self.val if any(key in row for row in self.val.values()) else self.train
        points = [(step, row[key]) for step, row in rows.items() if key in row]
        return [(step, value) for step, value in points if math.isfinite(value)]


def read_run(folder: Path) -> Run:
    """Read all logs of a work directory."""
    rows: list[dict[str, Any]] = []
    for path in sorted(folder.glob('*/vis_data/scalars.json')):
        try:
            lines = path.read_text(encoding='utf-8').splitlines()
            new = [json.loads(line) for line in lines if line.endswith('}')]  # complete lines
        except ValueError as error:
            raise UserError(f'{path} is not a log of a training run: {error}') from None
        start = next((row['step'] for row in new if 'lr' in row), math.inf)
        repeated = (i for i, row in enumerate(rows) if 'lr' in row and row['step'] >= start)
        rows = rows[: next(repeated, len(rows))] + new
    if not rows:
        raise UserError(f'{folder} has no log (*/vis_data/scalars.json) of a training run')
    train = {row['step']: row for row in rows if 'lr' in row}
    return Run(str(folder), train, {row['step']: row for row in rows if 'lr' not in row})


def rows_of(runs: Sequence[Run]) -> list[dict[str, Any]]:
    return [row for run in runs for row in (*run.train.values(), *run.val.values())]


def metrics_of(runs: Sequence[Run]) -> list[str]:
    """Return the keys of the validation, in the order of the logs."""
    keys = dict.fromkeys(key for run in runs for row in run.val.values() for key in row)
    return [key for key in keys if key not in NOT_METRICS]


def describe(run: Run, key: str) -> str:
    """Return the last value of a metric, and the best one with its step if larger is better."""
    if not (points := run.curve(key)):
        return '-'
    last = f'{points[-1][1]:.4g}'
    if not has_best(key):
        return last
    step, best = max(points, key=lambda point: point[1])
    return f'{last} ({best:.4g} at {step})'


def has_best(key: str) -> bool:
    """Return True if a metric is known to be better when larger."""
    return LARGER_IS_BETTER.search(key) is not None and not re.search('loss|error', key, re.I)


def table(runs: Sequence[Run]) -> str:
    """Return a Markdown table with a column for each run."""
    lines = [['', *(run.name for run in runs)], ['---'] * (len(runs) + 1)]
    for key in metrics_of(runs):
        title = f'{key}: last (best)' if has_best(key) else f'{key}: last'
        lines.append([title, *(describe(run, key) for run in runs)])
    for name, key, reduce in (
        ('training loss: last', 'loss', lambda values: values[-1]),
        ('time per step (s): median', 'time', statistics.median),
        ('GPU memory (MiB): maximum', 'memory', max),
        ('training steps', 'step', max),
    ):
        values = [[row[key] for row in run.train.values() if key in row] for run in runs]
        if any(values):
            lines.append([name, *(f'{reduce(v):.6g}' if v else '-' for v in values)])
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def draw(runs: Sequence[Run], keys: Sequence[str]) -> Figure:
    """Draw a panel for each key with a line for each run."""
    figure = Figure(figsize=(4.5 * len(keys), 3.5))
    for ax, key in zip(figure.subplots(1, len(keys), squeeze=False)[0], keys, strict=True):
        for i, run in enumerate(runs):
            if points := run.curve(key):
                marker = '.' if len(points) <= 50 else ''
                ax.plot(*zip(*points, strict=True), f'C{i % 8}{marker}-', label=run.name)
        by_epoch = key in metrics_of(runs) and any('epoch' in row for row in rows_of(runs))
        ax.set(title=key, xlabel='epoch' if by_epoch else 'iteration')
        ax.legend(fontsize='small')
    return figure


def main() -> None:
    args = parse_args()
    runs = [read_run(folder) for folder in args.runs]
    known = {key for row in rows_of(runs) for key in row}
    keys = args.keys or ['loss', *(key for key in metrics_of(runs) if key.endswith(MAIN_METRICS))]
    if unknown := [key for key in keys if key not in known]:
        raise UserError(f'no run has {unknown[0]!r}{did_you_mean(unknown[0], known)}')
    print(table(runs))
    if args.out:
        plotting.use_style()
        plotting.save(draw(runs, keys), args.out)
        print(f'\nThe curves are in {args.out}')


if __name__ == '__main__':
    errors.run(main)
