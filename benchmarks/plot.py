"""Draw the time per pixel over the input size from the JSON files of ``backbone.py``.

One panel for each setting (batch, mode, precision, eager or compiled) that was run at three or more
sizes, one line for each model.

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

matplotlib.use('Agg')

logger = logging.getLogger('benchmarks')

COLORS = {'vmamba': 'tab:red', 'swin': 'tab:blue', 'convnext': 'tab:green', 'deit': 'tab:orange'}
NAMES = {'vmamba': 'VMamba', 'swin': 'Swin', 'convnext': 'ConvNeXt', 'deit': 'DeiT'}
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
    """Time per megapixel of each model over the side of a square of as many pixels.

    Lines are named at their ends: a flat line is a model whose time grows with the pixels.
    """
    sides, ends = set(), []
    for model in dict.fromkeys(row['model'] for row in rows):
        points = sorted(
            (math.sqrt(row['height'] * row['width']), row['ns_per_pixel'])
            for row in rows
            if row['model'] == model
        )
        family, scale, *rest = model.split('-')
        x, y = zip(*points, strict=True)
        axes.plot(x, y, STYLES[scale], color=COLORS[family], marker='o', markersize=5, linewidth=2)
        name = '-'.join((NAMES[family], scale.upper(), *rest))
        ends.append((y[-1], x[-1], name, COLORS[family]))
        sides.update(x)
    axes.set_xscale('log')
    axes.set_xlim(min(sides) * 0.9, max(sides) * 1.1)
    axes.set_ylim(0, 1.1 * max(row['ns_per_pixel'] for row in rows))
    gap = 0.06 * axes.get_ylim()[1]  # between the names of lines that end at the same height
    height = -gap
    for y, x, name, color in sorted(ends):
        height = max(y, height + gap)
        axes.annotate(
            name,
            (x, height),
            xytext=(8, 0),
            textcoords='offset points',
            color=color,
            fontsize=11,
            verticalalignment='center',
            annotation_clip=False,
        )
    axes.set_xticks(sorted(sides), [f'{side:.0f}' for side in sorted(sides)])
    axes.minorticks_off()
    axes.tick_params(labelsize=10)
    axes.grid(alpha=0.3)
    axes.spines[['top', 'right']].set_visible(False)
    axes.set_title(title, fontsize=11, loc='left')
    axes.set_xlabel('side of the image (pixels)', fontsize=10)
    axes.set_ylabel('time per megapixel (ms)', fontsize=10)


def draw(rows: Sequence[dict[str, Any]], machines: Sequence[str]) -> plt.Figure:
    """One panel below the other for each setting with at least three sizes, else for all."""
    panels: dict[tuple, list[dict[str, Any]]] = {}
    for row in rows:
        panels.setdefault(tuple(row[key] for key in SETTING), []).append(row)
    several = {k: part for k, part in panels.items() if len({row['size'] for row in part}) > 2}
    panels = several or panels
    # At most as wide as a page of text, so that a browser shows it without shrinking it.
    figure, axes = plt.subplots(
        len(panels), 1, figsize=(7.2, 3.4 * len(panels)), squeeze=False, layout='constrained'
    )
    for place, (setting, part) in zip(axes.flat, panels.items(), strict=True):
        device, batch, mode, precision, run = setting
        draw_panel(place, part, f'{mode}, batch {batch}, {precision}, {run}, {device.upper()}')
    figure.suptitle('; '.join(dict.fromkeys(machines)), fontsize=10)
    return figure


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument('files', nargs='+', type=Path, metavar='JSON')
    parser.add_argument('--out', type=Path, required=True, metavar='PNG')
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Read the files and write the picture."""
    args = parse_args(argv)
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
