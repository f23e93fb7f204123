"""Shared by the tools in this folder: plots of the tables that ``compare_throughput.py`` prints."""

import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmvmamba.analysis import plotting

Row = Mapping[str, Any]

TITLES = dict(
    models='Models',
    scan='Scan pattern',
    orders='Other scan orders',
    init='Initialization of the SSM',
    d_state='States per channel',
    ratios='Ratios of the MLP and the SSM',
    activation='Activation function',
    out_norm='Output normalization',
    steps='Acceleration steps, from vanilla VMamba-T to VMamba-T',
)
TOP1 = 'ImageNet top-1 (%)'
DOWNSTREAM = dict(
    box_ap=('COCO, Mask R-CNN 1x', 'box AP (%)'), miou=('ADE20K, UperNet 160k', 'mIoU (%)')
)
PUBLISHED = dict(paper_inference='inference', paper_train='training')
MEASURED = dict(inference_images_per_s='inference', train_images_per_s='training')
SPEEDS = PUBLISHED | MEASURED
COLUMNS = dict(
    top1='published: top-1 (%)',
    paper_inference='published: A100\ninference (images/s)',
    paper_train='published: A100\ntraining (images/s)',
    inference_images_per_s='measured:\ninference (images/s)',
    train_images_per_s='measured:\ntraining (images/s)',
    flops='multiply-adds (G)',
)
#: Inches in the picture of the tables.
WIDTH, HEADER, ROW = 7.6, 0.62, 0.22


def draw(tables: Mapping[str, Sequence[Row]], machine: str, settings: str) -> dict[str, Figure]:
    """Draw tables by name, and return each picture by the suffix of its file.

    The imagenet table is drawn as accuracy over throughput, and as results on COCO and ADE20K over
    accuracy. The other tables are bars and dots with their values.

    Args:
        tables (Mapping): The rows of each table.
        machine (str): The machine on which the rows were measured.
        settings (str): The settings of these measurements.
    """
    pictures: dict[str, Figure] = {}
    if rows := tables.get('imagenet'):
        pictures[''] = draw_throughput(rows, machine, settings)
        pictures['_downstream'] = draw_downstream(rows)
    if others := {name: rows for name, rows in tables.items() if name != 'imagenet'}:
        pictures['_tables' if pictures else ''] = draw_tables(others, machine, settings)
    return pictures


def has(rows: Sequence[Row], key: str) -> bool:
    """Tell whether any row has a value."""
    return any(row.get(key) is not None for row in rows)


# ---- accuracy over throughput --------------------------------------------------------------------


def draw_throughput(rows: Sequence[Row], machine: str, settings: str) -> Figure:
    """Draw accuracy over each throughput that the rows have, or over the multiply-adds."""
    keys = [key for key in SPEEDS if has(rows, key)] or ['flops']
    lines = (len(keys) + 1) // 2
    figure = Figure(figsize=(7.6, 3.3 * lines + 0.3))
    axes = list(figure.subplots(lines, min(len(keys), 2), squeeze=False).flat)
    labels = []
    for ax, key in zip(axes, keys, strict=False):
        labels.append(draw_families(ax, rows, key, 'top1'))
        ax.set_ylabel(TOP1)
        if key in PUBLISHED:
            ax.set_title(f'Published: {SPEEDS[key]} on an A100')
            ax.set_xlabel('images/s (224x224, batch 128)')
        elif key in MEASURED:
            ax.set_title(f'Measured: {SPEEDS[key]}')
            ax.set_xlabel(f'images/s ({settings})\n{machine}')
        else:
            ax.set_xlabel('multiply-adds (G)')
    for ax in axes[len(keys) :]:
        ax.set_axis_off()
    figure.supxlabel(note_on(rows), x=0.01, ha='left', size=9, color='#444444')
    label(figure, axes, labels)
    return figure


def draw_downstream(rows: Sequence[Row]) -> Figure:
    """Draw the published results on COCO and ADE20K over those on ImageNet."""
    figure = Figure(figsize=(7.6, 3.6))
    axes = figure.subplots(1, 2)
    labels = []
    for ax, (key, (title, unit)) in zip(axes, DOWNSTREAM.items(), strict=True):
        labels.append(draw_families(ax, rows, 'top1', key))
        ax.set(title=title, xlabel=TOP1, ylabel=unit)
    quoted = [row for row in rows if row.get('box_ap') is not None]
    figure.supxlabel(note_on(quoted), x=0.01, ha='left', size=9, color='#444444')
    label(figure, axes, labels)
    return figure


def note_on(rows: Sequence[Row]) -> str:
    """Explain the markers, and list the models that have no accuracy."""
    notes = []
    if any(series_of(row['name']).endswith(' s2') for row in rows):
        notes.append('VMamba (s1), filled: ssm_ratio 1. VMamba (s2), hollow: ssm_ratio 2.')
    missing = [row['name'] for row in rows if row.get('top1') is None]
    if missing:
        notes.append(f'Not shown, because no top-1 is quoted: {", ".join(missing)}.')
    return '\n'.join(textwrap.fill(note, 105) for note in notes)


def draw_families(ax: Axes, rows: Sequence[Row], x: str, y: str) -> list[plotting.Label]:
    """Draw a line for the sizes of each family, and return the labels of its points."""
    series: dict[str, list[Row]] = {}
    for row in rows:
        if row.get(x) is not None and row.get(y) is not None:
            series.setdefault(series_of(row['name']), []).append(row)
    colors = plotting.colors_of(series)
    labels = []
    for name, part in series.items():
        scale = 1e9 if x == 'flops' else 1
        points = [(row[x] / scale, row[y]) for row in part]
        hollow = dict(markerfacecolor='white') if name.endswith(' s2') else {}
        ax.plot(*zip(*points, strict=True), 'o-', color=colors[name], **hollow)
        for i, (point, row) in enumerate(zip(points, part, strict=True)):
            size = re.search(r'-([TSB])\d*( \(|$)', row['name'])
            text = size[1] if i and size else re.sub(r'l\d+\)$', ')', row['name'])
            labels.append((*point, text, colors[name]))
    ax.margins(0.08, 0.12)
    left, right = ax.get_xlim()
    ax.set_xlim(left, right + 0.42 * (right - left))  # for the name of the fastest
    return labels


def series_of(name: str) -> str:
    """Return the name of a model without its size, such as 'Swin' or 'VMamba s2' (ssm_ratio 2)."""
    size_left_out = re.sub(r'-[TSB]\d*(?= |$)', '', name)
    return re.sub(r' \((s\d)l\d+\)$', r' \1', size_left_out)


def label(figure: Figure, axes: Sequence[Axes], labels: Sequence[Sequence[plotting.Label]]) -> None:
    """Write the labels of the points of each panel, when its place is known."""
    figure.draw_without_rendering()
    for ax, part in zip(axes, labels, strict=False):
        if part:
            plotting.label_points(ax, part)


# ---- tables --------------------------------------------------------------------------------------


def draw_tables(tables: Mapping[str, Sequence[Row]], machine: str, settings: str) -> Figure:
    """Draw the accuracy and the throughputs of each table, two tables in a line if both are narrow.

    All accuracies have one scale.
    """
    accuracies = [row['top1'] for rows in tables.values() for row in rows if row.get('top1')]
    limits = (min(accuracies), max(accuracies)) if accuracies else (0, 1)
    lines: list[list[str]] = []
    for name, rows in tables.items():
        narrow = not any(has(rows, key) for key in SPEEDS)
        if narrow and lines and len(lines[-1]) == 1 and not has_speeds(tables[lines[-1][0]]):
            lines[-1].append(name)
        else:
            lines.append([name])
    heights = [
        HEADER + 0.15 * has_speeds(tables[line[0]]) + ROW * max(len(tables[name]) for name in line)
        for line in lines
    ]
    note = any(has(rows, key) for rows in tables.values() for key in MEASURED)
    figure = Figure(figsize=(WIDTH, sum(heights) + 0.4 * note), layout='none')
    top = figure.get_figheight()
    for line, height in zip(lines, heights, strict=True):
        for i, name in enumerate(line):
            wide = has_speeds(tables[name])
            same = [rows for rows in tables.values() if has_speeds(rows) == wide]
            names = 0.25 + 0.073 * max(len(row['name']) for rows in same for row in rows)
            width = WIDTH if wide else WIDTH / 2
            place = i * width, top, width, names
            draw_table(figure, tables[name], TITLES.get(name, name), place, limits)
        top -= height
    if note:
        figure.text(
            0.02, 0.1 / figure.get_figheight(), f'Measured on {machine}: {settings}', size=9
        )
    return figure


def has_speeds(rows: Sequence[Row]) -> bool:
    """Tell whether any row has a throughput."""
    return any(has(rows, key) for key in SPEEDS)


def draw_table(
    figure: Figure,
    rows: Sequence[Row],
    title: str,
    place: tuple[float, float, float, float],
    limits: tuple[float, float],
) -> None:
    """Draw a table at a ``place`` in inches: its left, its top, its width and that of its names."""
    left, top, width, names = place
    keys = [key for key in ('top1', *SPEEDS) if has(rows, key)] or ['flops']
    step = (width - names) / len(keys)
    bottom = top - HEADER - 0.15 * has_speeds(rows) - ROW * len(rows)
    size = figure.get_figwidth(), figure.get_figheight()
    figure.text((left + 0.12) / size[0], (top - 0.25) / size[1], title, weight='bold', size=11)
    for i, key in enumerate(keys):
        box = left + names + i * step, bottom, step - 0.12, ROW * len(rows)
        ax = figure.add_axes([part / size[j % 2] for j, part in enumerate(box)])
        draw_values(ax, rows, key, limits)
        ax.set_yticks(range(len(rows)), [] if i else [row['name'] for row in rows])


def draw_values(ax: Axes, rows: Sequence[Row], key: str, limits: tuple[float, float]) -> None:
    """Draw a column: accuracies as dots on a scale with ``limits``, the rest as bars from zero."""
    specs = [row.get('model', row['name']) for row in rows]
    colors = plotting.colors_of(specs)
    scale, digits = (1e9, '.2f') if key == 'flops' else (1, '.2f' if key == 'top1' else '.4g')
    for i, (row, spec) in enumerate(zip(rows, specs, strict=True)):
        if row.get(key) is None:
            continue
        value = row[key] / scale
        if key == 'top1':
            ax.plot(value, i, 'o', color=colors[spec])
        else:
            ax.barh(i, value, height=0.6, color=colors[spec], alpha=0.8)
        text, options = f'{value:{digits}}', dict(textcoords='offset points', va='center', size=9)
        ax.annotate(text, (value, i), (6, 0), **options)
    if key != 'top1':
        limits = 0, max(row[key] for row in rows if row.get(key) is not None) / scale
    span = limits[1] - limits[0] or 1
    # Room for a value on the right.
    ax.set_xlim(limits[0] - 0.05 * span * (key == 'top1'), limits[1] + 38 * span / pixels(ax))
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_xticks([])
    ax.tick_params(length=0)
    ax.grid(axis='x', visible=False)
    ax.spines[:].set_visible(False)
    ax.set_title(COLUMNS[key], size=9, weight='normal', color='#444444', pad=2)


def pixels(ax: Axes) -> float:
    """Return the width of axes in hundredths of an inch, less that of a value."""
    return 100 * ax.get_position().width * ax.figure.get_figwidth() - 38
