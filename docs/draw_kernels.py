"""Draws the pictures of docs/ops.md: `python docs/draw_kernels.py`."""

from pathlib import Path

import matplotlib

matplotlib.use('Agg')

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes

from mmvmamba.ops import SCAN_PATTERNS, cross_scan

OUT = Path(__file__).parent / 'images'
BLUE, ORANGE, GREY, GREEN = '#3465a4', '#ce5c00', '#babdb6', '#4e9a06'
ORDERS = ('0: rows', '1: columns', '2: rows, reversed', '3: columns, reversed')
#: Bytes for each element of the map, from the input of the cross-scan to the sum of the directions.
AUTHORS = {
    'cross-scan': 10,
    'x_proj': 8,
    'time steps': 16,
    'scan, in': 16,
    'scan, out': 16,
    'merge': 20,
}
OURS = {'x': 10, 'proj': 4, 'y': 2}


def draw_orders() -> None:
    """The path of each direction, as `cross_scan` itself walks it."""
    height, width = 4, 5
    numbers = torch.arange(height * width, dtype=torch.float64).reshape(1, 1, height, width)
    paths = cross_scan(numbers, SCAN_PATTERNS['cross'])[0, :, 0].long()
    figure, axes = plt.subplots(1, 4, figsize=(11, 2.9), layout='constrained')
    for ax, path, title in zip(axes, paths, ORDERS, strict=True):
        y, x = (path // width).numpy(), (path % width).numpy()
        ax.plot(x, y, color=GREY, linewidth=1, zorder=1)
        ax.scatter(x, y, s=330, c=np.arange(len(x)), cmap='Blues', vmin=-8, edgecolors=BLUE)
        for step, (column, row) in enumerate(zip(x, y, strict=True)):
            color = 'white' if step > 9 else 'black'
            ax.text(column, row, step, ha='center', va='center', fontsize=8, color=color)
        ax.set(title=title, xlim=(-0.6, width - 0.4), ylim=(height - 0.4, -0.6), aspect='equal')
        ax.axis('off')
    figure.savefig(OUT / 'scan_orders.png', dpi=110, bbox_inches='tight')


def draw_registered() -> None:
    """The paths of the registered orders."""
    side, names = 14, ('diagonal', 'snake', 'local_window', 'hilbert')
    numbers = torch.arange(side**2, dtype=torch.float64).reshape(1, 1, side, side)
    figure, axes = plt.subplots(1, 4, figsize=(11, 3.1), layout='constrained')
    for ax, name in zip(axes, names, strict=True):
        path = cross_scan(numbers, [name])[0, 0, 0].long()
        y, x = (path // side).numpy(), (path % side).numpy()
        ax.plot(x, y, color=GREY, linewidth=1.2, zorder=1)
        ax.scatter(x, y, s=22, c=np.arange(len(x)), cmap='Blues', vmin=-80, zorder=2)
        ax.scatter(x[0], y[0], s=70, c=ORANGE, zorder=3)
        ax.scatter(x[-1], y[-1], s=90, facecolors='none', edgecolors=ORANGE, linewidths=2)
        ax.set(xlim=(-0.8, side - 0.2), ylim=(side - 0.2, -0.8), aspect='equal')
        ax.set_title(f'{name!r}', fontsize=12, family='monospace')
        ax.axis('off')
    figure.savefig(OUT / 'registered_orders.png', dpi=110, bbox_inches='tight')


def draw_boxes(ax: Axes, y: float, color: str, labels: list[str]) -> None:
    for i, label in enumerate(labels):
        ax.add_patch(plt.Rectangle((i * 3, y), 2.6, 0.7, facecolor=color, edgecolor='black'))
        ax.text(i * 3 + 1.3, y + 0.35, label, ha='center', va='center', fontsize=9)


def draw_chunks() -> None:
    """The three steps of the chunked scan."""
    figure, ax = plt.subplots(figsize=(11, 3.6), layout='constrained')
    arrow = dict(arrowstyle='->', color='black')
    draw_boxes(ax, 3, '#d3e0ef', [f'chunk {i}: scan from 0' for i in range(4)])
    draw_boxes(
        ax,
        1.5,
        '#fbe3cf',
        ['$h_0 = e_0$', *(f'$h_{i} = p_{i}\\,h_{i - 1} + e_{i}$' for i in (1, 2, 3))],
    )
    draw_boxes(
        ax, 0, '#dcebcb', [f'scan again from {start}' for start in ('0', '$h_0$', '$h_1$', '$h_2$')]
    )
    for i in range(4):
        ax.annotate('', (i * 3 + 1.3, 2.25), (i * 3 + 1.3, 2.95), arrowprops=arrow)
        ax.text(i * 3 + 1.4, 2.6, f'end $e_{i}$, decay $p_{i}$', fontsize=8, va='center')
        if i < 3:
            ax.annotate('', (i * 3 + 3, 1.85), (i * 3 + 2.6, 1.85), arrowprops=arrow)
            ax.annotate('', (i * 3 + 4.3, 0.75), (i * 3 + 2.4, 1.45), arrowprops=arrow)
    for y, text in ((3.35, 'all at once'), (1.85, 'one after the other'), (0.35, 'all at once')):
        ax.text(-0.3, y, text, ha='right', va='center', fontsize=9)
    ax.set(xlim=(-2.6, 11.8), ylim=(-0.2, 3.9))
    ax.axis('off')
    figure.savefig(OUT / 'chunked_scan.png', dpi=110)


def draw_bytes() -> None:
    """Bytes to and from memory of the core's forward."""
    figure, ax = plt.subplots(figsize=(11, 2.4), layout='constrained')
    bars = {
        "the authors' code": AUTHORS,
        'ss2d_scan on a GPU': OURS,
        'read and write once': {'x, y': 4},
    }
    for row, steps in enumerate(bars.values()):
        left = 0
        for i, (name, size) in enumerate(steps.items()):
            color = plt.colormaps['tab20c'](row * 4 + i % 4)
            ax.barh(row, size, left=left, color=color, edgecolor='white')
            label = f'{name}\n{size}' if size > 4 else str(size)
            ax.text(left + size / 2, row, label, ha='center', va='center', fontsize=7.5)
            left += size
        ax.text(
            left + 1, row, f'{left}', va='center', fontsize=10, family='sans-serif', weight='bold'
        )
    ax.set_yticks(range(len(bars)), list(bars))
    ax.invert_yaxis()
    ax.set(
        xlabel='bytes for each element of the map, forward, 16-bit input and output', xlim=(0, 94)
    )
    ax.spines[['top', 'right']].set_visible(False)
    figure.savefig(OUT / 'core_bytes.png', dpi=110)


if __name__ == '__main__':
    draw_orders()
    draw_registered()
    draw_chunks()
    draw_bytes()
