"""Draw the pictures of docs/ops.md and docs/scans.md: `python docs/draw_kernels.py`."""

from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from mmvmamba.analysis import plotting
from mmvmamba.ops import SCAN_PATTERNS, cross_scan

OUT = Path(__file__).parent / 'images'
BLUE, ORANGE, GRAY = '#1F6FB4', '#D9730D', '#B5B5B5'
ORDERS = ('0: rows', '1: columns', '2: rows, reversed', '3: columns, reversed')
#: Bytes for each element of the map, from the input of the cross-scan to the sum of the directions.
AUTHORS = {
    'cross-\nscan': 10,
    'x_proj': 8,
    'time steps': 16,
    'scan, in': 16,
    'scan, out': 16,
    'merge': 20,
}
OURS = {'x': 10, 'proj': 4, 'y': 2}


def draw_orders() -> None:
    """Draw the path of each direction, in the order of `cross_scan`."""
    height, width = 4, 5
    numbers = torch.arange(height * width, dtype=torch.float64).reshape(1, 1, height, width)
    paths = cross_scan(numbers, SCAN_PATTERNS['cross'])[0, :, 0].long()
    figure = Figure(figsize=(7.6, 2))
    for ax, path, title in zip(figure.subplots(1, 4), paths, ORDERS, strict=True):
        y, x = (path // width).numpy(), (path % width).numpy()
        ax.plot(x, y, color=GRAY, linewidth=1, zorder=1)
        ax.scatter(x, y, s=190, c=np.arange(len(x)), cmap='Blues', vmin=-8, edgecolors=BLUE)
        for step, (column, row) in enumerate(zip(x, y, strict=True)):
            color = 'white' if step > 9 else 'black'
            ax.text(column, row, step, ha='center', va='center_baseline', fontsize=9, color=color)
        ax.set(xlim=(-0.6, width - 0.4), ylim=(height - 0.4, -0.6), aspect='equal')
        ax.set_title(title, fontsize=10, loc='center')
        ax.axis('off')
    plotting.save(figure, OUT / 'scan_orders.png')


def draw_registered() -> None:
    """Draw the paths of the registered orders."""
    side, names = 14, ('diagonal', 'snake', 'local_window', 'hilbert')
    numbers = torch.arange(side**2, dtype=torch.float64).reshape(1, 1, side, side)
    figure = Figure(figsize=(7.6, 2.2))
    for ax, name in zip(figure.subplots(1, 4), names, strict=True):
        path = cross_scan(numbers, [name])[0, 0, 0].long()
        y, x = (path // side).numpy(), (path % side).numpy()
        ax.plot(x, y, color=GRAY, linewidth=1, zorder=1)
        ax.scatter(x, y, s=16, c=np.arange(len(x)), cmap='Blues', vmin=-80, zorder=2)
        ax.scatter(x[0], y[0], s=55, c=ORANGE, zorder=3)
        ax.scatter(x[-1], y[-1], s=70, facecolors='none', edgecolors=ORANGE, linewidths=2, zorder=3)
        ax.set(xlim=(-0.8, side - 0.2), ylim=(side - 0.2, -0.8), aspect='equal')
        ax.set_title(f'{name!r}', fontsize=10, loc='center', family='monospace')
        ax.axis('off')
    plotting.save(figure, OUT / 'registered_orders.png')


def draw_boxes(ax: Axes, y: float, color: str, labels: list[str]) -> None:
    """Draw a row of boxes with labels."""
    style = dict(boxstyle='round,pad=0,rounding_size=0.1', facecolor=color, edgecolor='#888888')
    for i, label in enumerate(labels):
        ax.add_patch(FancyBboxPatch((i * 3, y), 2.6, 0.7, **style))
        ax.text(i * 3 + 1.3, y + 0.35, label, ha='center', va='center')


def draw_chunks() -> None:
    """Draw the three steps of the chunked scan."""
    figure = Figure(figsize=(7.6, 2.9))
    ax = figure.subplots()
    arrow = dict(arrowstyle='->', color='#444444')
    draw_boxes(ax, 3, '#D3E3F3', [f'scan chunk {i}\nfrom 0' for i in range(4)])
    states = ['$h_0 = e_0$', *(f'$h_{i} = p_{i}\\,h_{i - 1} + e_{i}$' for i in (1, 2, 3))]
    draw_boxes(ax, 1.5, '#FBE3CF', states)
    starts = ('0', '$h_0$', '$h_1$', '$h_2$')
    draw_boxes(ax, 0, '#DCEBDC', [f'scan again\nfrom {start}' for start in starts])
    for i in range(4):
        ax.annotate('', (i * 3 + 1.3, 2.25), (i * 3 + 1.3, 2.95), arrowprops=arrow)
        ax.text(i * 3 + 1.42, 2.6, f'$e_{i}$, $p_{i}$', va='center')
        if i < 3:
            ax.annotate('', (i * 3 + 3, 1.85), (i * 3 + 2.6, 1.85), arrowprops=arrow)
            ax.annotate('', (i * 3 + 4.3, 0.75), (i * 3 + 2.4, 1.45), arrowprops=arrow)
    for y, text in ((3.35, '1. in parallel'), (1.85, '2. in sequence'), (0.35, '3. in parallel')):
        ax.text(-0.3, y, text, ha='right', va='center')
    ax.set(xlim=(-2.5, 11.8), ylim=(-0.1, 3.8))
    ax.axis('off')
    plotting.save(figure, OUT / 'chunked_scan.png')


def draw_bytes() -> None:
    """Draw the bytes to and from memory of the core's forward pass."""
    figure = Figure(figsize=(7.6, 2.5))
    ax = figure.subplots()
    bars = {
        "the authors' code": ('#6B7F99', AUTHORS),
        'ss2d_scan on a GPU': (plotting.COLORS['VMamba'], OURS),
        'lower bound:\nread and write once': (plotting.COLORS['ConvNeXt'], {'x, y': 4}),
    }
    for row, (color, steps) in enumerate(bars.values()):
        left = 0
        for name, size in steps.items():
            ax.barh(row, size, left=left, color=color, edgecolor='white', linewidth=1.5)
            if size > 7:
                label = f'{name}\n{size}'
                ax.text(
                    left + size / 2, row, label, ha='center', va='center', color='white', size=9
                )
            left += size
        small = ', '.join(f'{name} {size}' for name, size in steps.items() if size < 8)
        ax.text(left + 1, row, f'{left}', va='center', size=11, weight='bold')
        if small and len(steps) > 1:
            ax.text(left + 5.5, row, f'(with {small})', va='center', size=9, color='#444444')
    ax.set_yticks(range(len(bars)), list(bars), size=10)
    ax.invert_yaxis()
    ax.grid(axis='y', visible=False)
    ax.set(xlabel='bytes per element of the map (forward pass, 16-bit input and output)')
    ax.set(xlim=(0, 92))
    plotting.save(figure, OUT / 'core_bytes.png')


if __name__ == '__main__':
    plotting.use_style()
    draw_orders()
    draw_registered()
    draw_chunks()
    draw_bytes()
