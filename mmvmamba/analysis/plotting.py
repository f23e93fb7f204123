"""Style, colors and labels that all plots of this project share. Needs Matplotlib."""

import argparse
import io
import itertools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib import font_manager, patheffects, rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Annotation
from matplotlib.transforms import Transform
from PIL import Image

Label = tuple[float, float, str, str]  # x, y, text, color

#: One color for each family of networks.
COLORS = {
    'VMamba': '#C8102E',
    'Vanilla-VMamba': '#D9730D',
    'Swin': '#1F6FB4',
    'ConvNeXt': '#2A8C3C',
    'DeiT': '#7B4FB0',
    'XCiT': '#0E8C8C',
    'HiViT': '#B0418B',
    'Vim': '#94740A',
    'S4ND': '#4A4A4A',
    'ResNet': '#6B7F99',
}
OTHER_COLORS = ('#8C564B', '#17A2B8', '#7F7F7F', '#A6A21B', '#5B8DEF')
#: Words in the name of a network that tell its family; the first match counts.
_WORDS = {
    'vanilla': 'Vanilla-VMamba',
    's4nd': 'S4ND',
    'vmamba': 'VMamba',
    'convnext': 'ConvNeXt',
    'hivit': 'HiViT',
    'xcit': 'XCiT',
    'deit': 'DeiT',
    'swin': 'Swin',
    'resnet': 'ResNet',
    'vim': 'Vim',
}
#: Most bytes of a file with 256 colors.
LARGE = 200_000
#: Sides of a point on which its label may be, the best first.
SIDES = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
SIDES += tuple((x, 1.9 * y) for x, y in SIDES[2:])


def use_style() -> None:
    """Set Matplotlib's defaults to those of this project's plots."""
    matplotlib.style.use(Path(__file__).with_name('plots.mplstyle'))


def family_of(name: str) -> str | None:
    """Return the family of a network, one of :data:`COLORS`, or None for others."""
    words = re.split(r'[\W_]+', name.lower())
    return next((f for w, f in _WORDS.items() if any(word.startswith(w) for word in words)), None)


def colors_of(names: Iterable[str]) -> dict[str, str]:
    """Return the color of each network: that of its family, or one that no family has."""
    others = itertools.cycle(OTHER_COLORS)
    return {name: COLORS.get(family_of(name) or '') or next(others) for name in names}


def label_line_ends(ax: Axes, labels: Sequence[Label]) -> None:
    """Write a label to the right of the end of each line, without overlaps.

    Call it after ``figure.draw_without_rendering()``, when scales, limits and layout are final.
    """
    points = _in_points(ax, [label[:2] for label in labels])
    low, high = _in_points(ax, [(0, 0), (1, 1)], ax.transAxes)[:, 1]
    gap = 1.3 * _label_size()
    order = np.argsort(points[:, 1], kind='stable')
    heights = points[order, 1].copy()
    for i in range(1, len(heights)):
        heights[i] = max(heights[i], heights[i - 1] + gap)
    # Centered on the ends of the lines, but inside the axes.
    shift = (heights - points[order, 1]).mean()
    heights -= np.clip(shift, heights[-1] - high, max(heights[0] - low, heights[-1] - high))
    for i, height in zip(order, heights, strict=True):
        _write(ax, labels[i], (8, height - points[i, 1]), 'left')


def label_points(ax: Axes, labels: Sequence[Label]) -> None:
    """Write a label next to each point, on the side where it covers the fewest lines and labels.

    Call it after ``figure.draw_without_rendering()``, when scales, limits and layout are final.
    """
    points = _in_points(ax, [label[:2] for label in labels])
    corners = _in_points(ax, [(0, 0), (1, 1)], ax.transAxes)
    lines = np.concatenate([np.repeat(points, 8, 0), *(_sample(ax, line) for line in ax.lines)])
    near = 0.5 * rcParams['lines.markersize'] + 2
    taken = np.empty((0, 2, 2))
    for point, label in zip(points, labels, strict=True):
        half = np.array([0.29 * len(label[2]), 0.6]) * _label_size()
        best = None
        for rank, (dx, dy) in enumerate(SIDES):
            offset = np.array([dx * (half[0] + (near if dy == 0 else 0)), dy * (half[1] + near)])
            box = np.array([point + offset - half, point + offset + half])
            outside = np.maximum(corners[0] - box[0], 0) + np.maximum(box[1] - corners[1], 0)
            shared = np.minimum(taken[:, 1], box[1]) - np.maximum(taken[:, 0], box[0])
            covered = np.maximum(shared, 0).prod(1).sum() / (4 * half.prod())
            crossed = ((lines > box[0]) & (lines < box[1])).all(1).sum()
            cost = 10 * outside.sum() + 60 * covered + crossed + 0.6 * rank
            if best is None or cost < best[0]:
                best = cost, offset, box
        _, offset, box = best
        taken = np.concatenate([taken, box[None]])
        _write(ax, label, tuple(offset), 'center').set_in_layout(False)


def _label_size() -> float:
    return font_manager.FontProperties(size=rcParams['ytick.labelsize']).get_size_in_points()


def _in_points(ax: Axes, places: Any, transform: Transform | None = None) -> np.ndarray:
    """Return places on the axes (N, 2) in points of the figure."""
    return (transform or ax.transData).transform(places) * 72 / ax.figure.dpi


def _sample(ax: Axes, line: Line2D) -> np.ndarray:
    """Return points along a line, a few points of the figure apart."""
    ends = _in_points(ax, line.get_xydata())
    steps = np.linspace(0, 1, 40)[:, None]
    return np.concatenate([a + (b - a) * steps for a, b in itertools.pairwise(ends)] or [ends])


def _write(ax: Axes, label: Label, offset: tuple[float, float], align: str) -> Annotation:
    x, y, text, color = label
    halo = patheffects.withStroke(linewidth=2.5, foreground='white')
    return ax.annotate(
        text, (x, y), offset, textcoords='offset points', ha=align, va='center',
        fontsize=_label_size(), color=color, annotation_clip=False, path_effects=[halo],
    )  # fmt: skip


def png_path(text: str) -> Path:
    """Parse the path of a PNG file on the command line."""
    path = Path(text)
    if path.suffix.lower() != '.png':
        raise argparse.ArgumentTypeError(f'must end in .png, but got {text!r}')
    return path


def save(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG of at most 256 colors, or fewer if the file is large for a page."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png')
    with Image.open(buffer) as image:
        image = image.convert('RGB')
    path.parent.mkdir(parents=True, exist_ok=True)
    for colors, method in ((256, Image.Quantize.MEDIANCUT), (128, Image.Quantize.MAXCOVERAGE)):
        few = image.quantize(colors, method=method, dither=Image.Dither.NONE)
        few.save(path, format='PNG', optimize=True)
        if path.stat().st_size <= LARGE:
            break
