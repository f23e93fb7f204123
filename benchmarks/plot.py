"""Draw latency over input size from the JSON files of ``backbone.py``.

One panel for each setting (batch, mode, precision, eager or compiled), one line for each model.

Example:
    python benchmarks/plot.py work_dirs/benchmarks/backbone.json --out work_dirs/latency.png
"""

import argparse
import json
import logging
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator

matplotlib.use('Agg')

logger = logging.getLogger('benchmarks')

COLORS = {'vmamba': 'tab:red', 'swin': 'tab:blue', 'convnext': 'tab:green', 'deit': 'tab:orange'}
STYLES = {'t': '-', 's': '--', 'b': ':'}
SETTING = ('device', 'batch', 'mode', 'precision', 'run')


def read_rows(paths: Sequence[Path]) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the rows of all files with a size, and the names of the machines.

    Raises:
        SystemExit: If a file does not exist or was not written by ``backbone.py``.
    """
    rows, machines = [], []
    for path in paths:
        try:
            data = json.loads(path.read_text(encoding='utf-8'))
        except (OSError, ValueError) as error:
            raise SystemExit(f'{path}: {error}') from None
        if not isinstance(data, dict) or data.get('benchmark') != 'backbone':
            raise SystemExit(f'{path} was not written by benchmarks/backbone.py')
        machine = data['machine']
        machines.append(machine.get('gpu') or f'{machine["cpu"]}, {machine["threads"]} threads')
        rows += [dict(row, device=data['device']) for row in data['results']]
    return [row for row in rows if not row['model'].endswith('-nocore')], machines


def draw_panel(axes: Axes, rows: Sequence[dict[str, Any]], title: str) -> None:
    """Latency of each model over the side of a square of as many pixels."""
    sides = set()
    for model in dict.fromkeys(row['model'] for row in rows):
        points = sorted(
            (math.sqrt(row['height'] * row['width']), row['median_ms'])
            for row in rows
            if row['model'] == model
        )
        family, scale = model.split('-')[:2]
        x, y = zip(*points, strict=True)
        axes.plot(x, y, STYLES[scale], color=COLORS[family], marker='o', markersize=4, label=model)
        sides.update(x)
    axes.set_xscale('log')
    axes.set_yscale('log')
    axes.set_xticks(sorted(sides), [f'{side:.0f}' for side in sorted(sides)])
    axes.minorticks_off()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.grid(alpha=0.3)
    axes.set_title(title, fontsize=9)
    axes.set_xlabel('input size (pixels, square root of the area)')
    axes.set_ylabel('time (ms)')
    axes.yaxis.set_major_formatter('{x:g}')
    axes.legend(fontsize=8)


def draw(rows: Sequence[dict[str, Any]], machines: Sequence[str]) -> plt.Figure:
    """One panel for each setting."""
    panels: dict[tuple, list[dict[str, Any]]] = {}
    for row in rows:
        panels.setdefault(tuple(row[key] for key in SETTING), []).append(row)
    columns = min(2, len(panels))
    lines = math.ceil(len(panels) / columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(5.5 * columns, 4 * lines), squeeze=False, layout='constrained'
    )
    for place, (setting, part) in zip(axes.flat, panels.items(), strict=False):
        device, batch, mode, precision, run = setting
        draw_panel(place, part, f'{mode}, batch {batch}, {precision}, {run}, {device}')
    for place in axes.flat[len(panels) :]:
        place.set_visible(False)
    figure.suptitle('; '.join(dict.fromkeys(machines)), fontsize=10)
    return figure


def main(argv: Sequence[str] | None = None) -> int:
    """Read the files and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument('files', nargs='+', type=Path, metavar='JSON')
    parser.add_argument('--out', type=Path, required=True, metavar='PNG')
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format='%(message)s')
    rows, machines = read_rows(args.files)
    if not rows:
        raise SystemExit('the files hold no results')
    args.out.parent.mkdir(parents=True, exist_ok=True)
    draw(rows, machines).savefig(args.out, dpi=130)
    logger.info('wrote %s', args.out)
    return 0


if __name__ == '__main__':
    sys.exit(main())
