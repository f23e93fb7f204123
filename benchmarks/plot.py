"""Draw the time per pixel over the input size from the JSON files of ``backbone.py``.

The plot has one panel for each setting (batch, mode, precision, eager or compiled) that was run at
three or more sizes, and one line for each model. With ``--speed-over MODEL`` it has bars of the
speed over that of a model, for eager float32.

Example:
    python benchmarks/plot.py work_dirs/benchmarks/backbone.json --out work_dirs/latency.png
    python benchmarks/plot.py docs/images/cpu_latency.json --speed-over swin-t --out speed.png
"""

import argparse
import json
import logging
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from mmvmamba.analysis import plotting

logger = logging.getLogger('benchmarks')

Row = dict[str, Any]
Setting = tuple[Any, ...]

DASHES = {'t': '-', 's': '--', 'b': ':'}
SETTING = ('device', 'batch', 'mode', 'precision', 'run')
MODES = ('inference', 'train')
PRECISIONS = {'fp32': 'float32', 'amp': 'autocast'}


def read_rows(paths: Sequence[Path]) -> tuple[list[Row], list[str]]:
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
        name = machine.get('gpu') or f'{machine["cpu"]}, {machine["threads"]} threads'
        machines.append(name.replace('(R)', ''))
        rows += [dict(row, device=data['device']) for row in data['results']]
    return [row for row in rows if not row['model'].endswith('-nocore')], machines


def name_of(model: str) -> str:
    """Return a model's name for readers: 'VMamba-T' for 'vmamba-t'."""
    family, scale, *rest = model.split('-')
    return '-'.join((plotting.family_of(family) or family, scale.upper(), *rest))


def settings_text(setting: Setting) -> str:
    """Return a setting in words."""
    _, batch, mode, precision, run = setting
    mode = {'train': 'training step'}.get(mode, mode)
    return f'{mode}, batch {batch}, {PRECISIONS.get(precision, precision)}, {run}'


def panels_of(rows: Sequence[Row]) -> dict[Setting, list[Row]]:
    """Return the rows of each setting."""
    panels: dict[Setting, list[Row]] = {}
    for row in rows:
        panels.setdefault(tuple(row[key] for key in SETTING), []).append(row)
    return panels


def draw_panel(ax: Axes, rows: Sequence[Row], setting: Setting) -> list[plotting.Label]:
    """Draw the time per megapixel of each model, and return the labels of the lines.

    A flat line is a model whose time grows with the pixels.
    """
    models = list(dict.fromkeys(row['model'] for row in rows))
    colors = plotting.colors_of(models)
    sides, labels = set(), []
    for model in models:
        points = sorted(
            (math.sqrt(row['height'] * row['width']), row['ns_per_pixel'])
            for row in rows
            if row['model'] == model
        )
        scale = model.split('-')[1]
        ax.plot(*zip(*points, strict=True), f'o{DASHES[scale]}', color=colors[model])
        labels.append((*points[-1], name_of(model), colors[model]))
        sides.update(side for side, _ in points)
    ax.set_xscale('log')
    ax.set_xlim(min(sides) * 0.9, max(sides) * 1.1)
    ax.set_ylim(0, 1.1 * max(row['ns_per_pixel'] for row in rows))
    ax.set_xticks(sorted(sides), [f'{side:.0f}' for side in sorted(sides)])
    ax.minorticks_off()
    ax.set(title=settings_text(setting), xlabel='image side (px)')
    return labels


def draw_latency(rows: Sequence[Row], machines: Sequence[str]) -> Figure:
    """Draw a panel for each setting with at least three sizes, or else for all."""
    panels = panels_of(rows)
    several = {k: part for k, part in panels.items() if len({row['size'] for row in part}) > 2}
    panels = several or panels
    lines = (len(panels) + 1) // 2
    columns = min(len(panels), 2)
    figure = Figure(figsize=(7.6, 3.2 * lines + 0.2))
    axes = figure.subplots(lines, columns, squeeze=False, sharey=True).flat
    labels = [draw_panel(ax, panels[key], key) for ax, key in zip(axes, panels, strict=False)]
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    for ax in axes[::columns]:
        ax.set_ylabel('time (ms per megapixel)')
    figure.supxlabel(note(machines), x=0.01, ha='left', size=9, color='#444444')
    figure.draw_without_rendering()
    for ax, part in zip(axes, labels, strict=False):
        plotting.label_line_ends(ax, part)
    return figure


def draw_speed(rows: Sequence[Row], machines: Sequence[str], baseline: str) -> Figure:
    """Draw the speed of each model over a baseline's, for eager float32, as bars with their times.

    Raises:
        SystemExit: If the baseline was not measured in eager float32.
    """
    rows = [row for row in rows if row['precision'] == 'fp32' and row['run'] == 'eager']
    rows = [row for row in rows if row['mode'] in MODES]
    groups: dict[tuple, dict[str, float]] = {}
    for row in rows:
        key = MODES.index(row['mode']), row['height'], row['width'], row['batch']
        groups.setdefault(key, {})[row['model']] = row['median_ms']
    groups = {key: times for key, times in sorted(groups.items()) if baseline in times}
    if not groups:
        raise SystemExit(f'the files have no results of {baseline} in eager float32')
    models = list(dict.fromkeys(model for times in groups.values() for model in times))
    colors = plotting.colors_of(models)
    figure = Figure(figsize=(8, 2.8))
    ax = figure.subplots()
    width = 0.8 / len(models)
    for i, times in enumerate(groups.values()):
        for j, (model, ms) in enumerate((m, times[m]) for m in models if m in times):
            x, speed = i + (j - (len(models) - 1) / 2) * width, times[baseline] / ms
            ax.bar(x, speed, 0.92 * width, color=colors[model])
            ax.text(x, speed + 0.03, f'{speed:.2f}x', ha='center', va='bottom', size=9)
            ax.text(x, 0.08, time_text(ms), ha='center', rotation=90, size=9, color='white')
    ax.axhline(1, color='#444444', linewidth=0.8, linestyle='--')
    ax.set_xticks(range(len(groups)), [group_text(*key) for key in groups])
    ax.tick_params(axis='x', length=0)
    ax.grid(visible=False)
    ax.set_yticks([0, 1], ['0', '1x'])
    ax.set_ylabel(f'speed over {name_of(baseline)}')
    ax.set_xlim(-0.6, len(groups) - 0.4)
    ax.set_ylim(0, 1.35 * max(times[baseline] / min(times.values()) for times in groups.values()))
    ax.legend(
        handles=[Patch(label=name_of(model)) for model in models],
        labelcolor=[colors[model] for model in models],
        prop=dict(size=11, weight='bold'),
        loc='upper left',
        ncols=len(models),
        columnspacing=1.5,
        handlelength=0,
        handletextpad=0,
        borderpad=0,
        frameon=False,
    )
    if sentence := takeaway(groups, models, baseline):
        figure.suptitle(f'On a {rows[0]["device"].upper()}, {sentence}', x=0.01, ha='left')
    text = f'{note(machines)}, float32, eager. The times are per batch.'
    figure.supxlabel(text, x=0.01, ha='left', size=9, color='#444444')
    return figure


def takeaway(
    groups: Mapping[tuple, Mapping[str, float]], models: Sequence[str], baseline: str
) -> str | None:
    """Return the range of a model's speed over a baseline's in inference, in a sentence.

    The model is the first one, other than the baseline, that all inference groups have. The result
    is None if there is no such model.
    """
    inference = [times for (mode, *_), times in groups.items() if mode == 0]
    for model in models if inference else ():
        if model != baseline and all(model in times for times in inference):
            ratios = [times[baseline] / times[model] for times in inference]
            span = ' to '.join(dict.fromkeys(f'{r:.2f}' for r in (min(ratios), max(ratios))))
            speed = f'{span} times as fast as {name_of(baseline)}'
            return f'{name_of(model)} runs {speed} in inference'
    return None


def group_text(mode: int, height: int, width: int, batch: int) -> str:
    """Return the label of a group of bars."""
    return f'{height} x {width} px\n{("inference", "training")[mode]}, batch {batch}'


def time_text(ms: float) -> str:
    """Return a time with three digits."""
    return f'{ms:.3g} ms' if ms < 999.5 else f'{ms / 1e3:.3g} s'


def note(machines: Sequence[str]) -> str:
    """Return the machines and how they measured."""
    return f'{"; ".join(dict.fromkeys(machines))}; PyTorch, medians of interleaved rounds'


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument('files', nargs='+', type=Path, metavar='JSON')
    parser.add_argument('--out', type=plotting.png_path, required=True, metavar='PNG')
    parser.add_argument(
        '--speed-over', metavar='MODEL', help='draw the speed over that of a model, as in swin-t'
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Read the files and write the plot."""
    args = parse_args(argv)
    logging.basicConfig(level=logging.INFO, format='%(message)s')
    rows, machines = read_rows(args.files)
    if not rows:
        raise SystemExit('the files have no results')
    plotting.use_style()
    if args.speed_over:
        figure = draw_speed(rows, machines, args.speed_over)
    else:
        figure = draw_latency(rows, machines)
    plotting.save(figure, args.out)
    logger.info('wrote %s', args.out)
    return 0


if __name__ == '__main__':
    sys.exit(main())
