"""Shared by the tools in this folder: plots of the paper's accuracies over throughput."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

Row = Mapping[str, Any]

#: Axis label and unit of each key of a row that can be drawn.
LABELS = dict(
    top1=('paper: ImageNet top-1 (%)', 1),
    inference_images_per_s=('inference (images/s)', 1),
    train_images_per_s=('training (images/s)', 1),
    paper_inference=('paper: inference on an A100 (images/s)', 1),
    paper_train=('paper: training on an A100 (images/s)', 1),
    flops=('multiply-adds (G)', 1e9),
    box_ap=('paper: COCO box AP', 1),
    miou=('paper: ADE20K mIoU', 1),
)
SPEEDS = ('inference_images_per_s', 'train_images_per_s', 'paper_inference', 'paper_train')
DOWNSTREAM = ('box_ap', 'miou')
DOWNSTREAM_TITLE = "the paper's: Mask R-CNN 1x on COCO, UperNet 160k on ADE20K, one scale"
MARKERS = 'os^Dv'


@dataclass(frozen=True)
class Group:
    """A line of panels of the same rows; ``panels`` are the keys of x and y, one of them 'top1'."""

    title: str
    rows: Sequence[Row]
    panels: Sequence[tuple[str, str]]


def groups_of(title: str, rows: Sequence[Row]) -> list[Group]:
    """Return accuracy over each throughput, or else the multiply-adds, and results as a backbone.

    Only throughputs and results that the rows have are drawn.
    """
    keys = [key for key in SPEEDS if _has(rows, key)] or ['flops']
    groups = [Group(title, rows, [(key, 'top1') for key in keys])]
    if rows := [row for row in rows if _has([row], *DOWNSTREAM)]:
        groups.append(Group(DOWNSTREAM_TITLE, rows, [('top1', key) for key in DOWNSTREAM]))
    return groups


def draw(groups: Sequence[Group]) -> Figure:
    """Draw a line of panels for each group, with its names on the right.

    A model without an accuracy on ImageNet is drawn as a line.
    """
    columns = max(len(group.panels) for group in groups)
    tallest = max(len(group.rows) for group in groups)
    height = max(2.6, 0.16 * tallest + 0.6)
    figure = Figure(figsize=(3.3 * columns + 1.8, height * len(groups)), layout='constrained')
    lines = figure.subfigures(len(groups), 1, squeeze=False).flat
    for part, group in zip(lines, groups, strict=True):
        axes = part.subplots(1, columns, squeeze=False)[0]
        for ax, panel in zip(axes, group.panels, strict=False):
            _draw_panel(ax, group.rows, *panel)
        for ax in axes[len(group.panels) :]:
            ax.set_axis_off()
        names = [Line2D([], [], **_style(i, row)) for i, row in enumerate(group.rows)]
        part.legend(handles=names, loc='outside right upper', fontsize=6)
        part.suptitle(group.title.replace('; ', '\n'), fontsize=7)
    return figure


def _has(rows: Sequence[Row], *keys: str) -> bool:
    return any(row.get(key) is not None for row in rows for key in keys)


def _style(i: int, row: Row) -> dict[str, Any]:
    style = dict(label=row['name'], color=f'C{i % 10}')
    if row.get('top1') is None:
        return style | dict(linestyle=(':', '-.')[i // 10 % 2], linewidth=1)
    return style | dict(linestyle='', marker=MARKERS[i // 10 % 5], markersize=4)


def _draw_panel(ax: Axes, rows: Sequence[Row], x: str, y: str) -> None:
    for i, row in enumerate(rows):
        other = y if x == 'top1' else x
        if row.get(other) is None:
            continue
        points = {key: row[key] / LABELS[key][1] for key in (x, y) if row.get(key) is not None}
        if len(points) == 2:
            ax.plot(points[x], points[y], **_style(i, row))
        else:
            line = ax.axhline if other == y else ax.axvline
            line(points[other], **_style(i, row))
    ax.set_xlabel(LABELS[x][0], fontsize=7)
    ax.set_ylabel(LABELS[y][0], fontsize=7)
    ax.tick_params(labelsize=6)
    ax.grid(alpha=0.3)
