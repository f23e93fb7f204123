"""Draw the activation map of a patch of an image in a block of VMamba.

The scan is written as attention: QK^T without and with the decay, for each scanning path and
summed, and the rollout over the blocks of the stage. The attention of a DeiT is drawn for
comparison. Red is positive and blue is negative; maps that cannot be negative are drawn from dark
to bright. The JSON file also contains the maps in the order of each path.

Example:
    python tools/analysis_tools/activation_map.py photo.jpg CONFIG epoch_300.pth --query 120 200
    python tools/analysis_tools/activation_map.py photo.jpg tiny none --query 120 200 --stage 1 \
        --compare deit-small_4xb256_in1k --compare-checkpoint pretrained
"""

import argparse
import functools
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import figures
import numpy as np
import torch
from analysis_model import load_model
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from mmengine.logging import MMLogger
from paper import display_name
from PIL import Image

from mmvmamba.analysis.activation_map import Maps, rollout
from mmvmamba.analysis.measure import parse_size, size_text
from mmvmamba.analysis.recording import record
from mmvmamba.engine import errors
from mmvmamba.engine.errors import UserError

SHORT_SIDE, DIVISOR = 224, 32
COLUMNS = 5
TITLES = dict(qk='QKᵀ', decay='with decay', softmax='softmax')
SIGNED, POSITIVE = 'RdBu_r', 'magma'


@dataclass
class QueriedPatch:
    """The maps of a model's blocks, and the queried patch in those of one ``block``."""

    model: str
    weights: str
    blocks: list[Maps]
    block: int
    y: int
    x: int

    def __post_init__(self) -> None:
        self.maps = self.blocks[self.block]
        self.query = self.y * self.maps.shape[1] + self.x


def parse_args() -> argparse.Namespace:
    parser = figures.make_parser(__doc__, 'work_dirs/activation_map.png')
    add = parser.add_argument
    add('image', type=Path, help='input image')
    add('config', help=figures.MODEL_HELP)
    add('checkpoint', help=f"{figures.CHECKPOINT_HELP}; 'none' for random weights")
    add('--query', type=int, nargs=2, required=True, metavar=('Y', 'X'), help='pixel of the image')
    add('--stage', type=int, default=2, help='stage, from 0 (default: 2)')
    add('--block', type=int, default=-1, help='block in the stage (default: -1, the last)')
    add(
        '--size',
        type=parse_size,
        help='input size, e.g. 224 or 224x320 (default: a short side of 224)',
    )
    add(
        '--no-rollout',
        action='store_true',
        help='skip the rollout, whose cost grows with the square of the number of patches',
    )
    add('--compare', metavar='MODEL', help='a DeiT, e.g. deit-small_4xb256_in1k')
    add('--compare-checkpoint', default='none', help='its weights (default: none)')
    add('--compare-block', type=int, default=-1, help='its block (default: -1, the last)')
    return parser.parse_args()


def image_size(image: Image.Image) -> tuple[int, int]:
    """Return a height and width close to the image's aspect ratio."""
    scale = SHORT_SIDE / min(image.size)
    width, height = (max(1, round(scale * side / DIVISOR)) * DIVISOR for side in image.size)
    return height, width


def record_maps(
    args: argparse.Namespace, spec: str, checkpoint: str, block: int, image: Image.Image
) -> QueriedPatch:
    """Run a model on the image and record the maps of its blocks."""
    size = args.size or image_size(image)
    torch.manual_seed(args.seed)
    file = None if checkpoint == 'none' else checkpoint
    model = load_model(spec, file, to_map=True, size=size).to(args.device)
    resized = figures.to_tensor(image.resize(size[::-1], Image.Resampling.BICUBIC))
    pixels = model.normalize(resized.to(args.device))
    blocks = record(model.net, args.stage, lambda: model(pixels))
    count = len(blocks)
    if not -count <= block < count:
        raise UserError(f'--block must be in [{-count}, {count - 1}], but got {block}')
    rows, columns = blocks[block].shape
    MMLogger.get_current_instance().info(
        f'{model.name}, {model.weights}: a map of {size_text(rows, columns)}'
    )
    y, x = (q + 0.5 for q in args.query)
    y, x = int(y / image.height * rows), int(x / image.width * columns)
    return QueriedPatch(model.name, model.weights, blocks, block % count, y, x)


def compute(patch: QueriedPatch, with_rollout: bool) -> dict[str, Any]:
    """Return all maps of a patch by form and name."""
    maps, query = patch.maps, patch.query
    pictures: dict[str, Any] = {}
    for form in maps.forms:
        pictures[form] = dict(
            path_order=[maps.in_path_order(path, query, form) for path in maps.paths],
            image_order=[maps.in_image_order(path, query, form) for path in maps.paths],
            summed=maps.summed(query, form),
        )
        if with_rollout:
            track = functools.partial(figures.track, f'rollout of {patch.model}')
            pictures[form]['rollout'] = rollout(patch.blocks, query, form, track)
    return pictures


def draw_map(
    ax: Axes, values: torch.Tensor, title: str, patch: QueriedPatch, positive: bool = False
) -> None:
    """Draw a map on the scale of its own largest weight, with a frame around the patch.

    A map that cannot be negative goes from dark to bright. The patch's own value is not on its
    scale, because it would darken the others.
    """
    values = values.cpu().numpy()
    if positive:
        others = np.delete(values, patch.query) if values.size > 1 else values
        ax.imshow(values, cmap=POSITIVE, vmin=others.min(), vmax=others.max())
    else:
        limit = np.abs(values).max() or 1.0
        ax.imshow(values, cmap=SIGNED, vmin=-limit, vmax=limit)
    ax.set_title(title, fontsize=9, loc='center', pad=3)
    draw_frame(ax, patch.x - 0.5, patch.y - 0.5, 1, 1)


def draw_frame(ax: Axes, x: float, y: float, width: float, height: float) -> None:
    ax.add_patch(Rectangle((x, y), width, height, fill=False, color='lime', linewidth=1.5))


def draw_image(ax: Axes, image: Image.Image, patch: QueriedPatch) -> None:
    """Draw the image with a frame around the query's patch."""
    rows, columns = patch.maps.shape
    height, width = image.height / rows, image.width / columns
    ax.imshow(image)
    name = textwrap.fill(display_name(patch.model), 22)
    ax.set_title(f'{name}, block {patch.block}', fontsize=9, loc='center', pad=3)
    ax.set_xlabel(textwrap.fill(patch.weights, 26), fontsize=8)
    draw_frame(ax, patch.x * width - 0.5, patch.y * height - 0.5, width, height)


def draw_summary(axes: np.ndarray, patch: QueriedPatch, pictures: dict[str, Any]) -> None:
    """Draw, for each form, the map of the block and the rollout over the stage."""
    unused = iter(axes)
    of_paths = ', all paths' if patch.maps.paths else ''
    for form in patch.maps.forms:
        title = f'{TITLES[form]}{of_paths}'
        draw_map(next(unused), pictures[form]['summed'], title, patch, form == 'softmax')
        if 'rollout' in pictures[form]:
            title = f'{TITLES[form]}, rollout'
            draw_map(next(unused), pictures[form]['rollout'], title, patch, positive=True)


def draw(image: Image.Image, results: list[tuple[QueriedPatch, dict[str, Any]]]) -> Figure:
    """Draw for each model a row with the image and its maps, then a row for each form."""
    rows = sum(1 + len(patch.maps.forms) * bool(patch.maps.paths) for patch, _ in results)
    side = 7.6 / COLUMNS
    height = (side * max(image.height / image.width, 0.4) + 0.3) * rows + 0.9
    figure = Figure(figsize=(7.6, height))
    axes = figure.subplots(rows, COLUMNS, squeeze=False)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
        ax.grid(visible=False)
        ax.spines[:].set_visible(False)
    row = 0
    for patch, pictures in results:
        draw_image(axes[row, 0], image, patch)
        draw_summary(axes[row, 1:], patch, pictures)
        row += 1
        for form in patch.maps.forms if patch.maps.paths else ():
            axes[row, 0].text(0.5, 0.5, f'{TITLES[form]}\nby path', ha='center', va='center')
            for k, values in enumerate(pictures[form]['image_order'], 1):
                draw_map(axes[row, k], values, f'path {k}', patch)
            row += 1
    add_color_bars(figure, axes)
    return figure


def add_color_bars(figure: Figure, axes: np.ndarray) -> None:
    """Add the two scales of the maps, each relative to its map."""
    signed = ScalarMappable(Normalize(-1, 1), SIGNED)
    positive = ScalarMappable(Normalize(0, 1), POSITIVE)
    options = dict(location='bottom', aspect=28, fraction=0.04, pad=0.02)
    bar = figure.colorbar(signed, ax=axes[:, :3], ticks=[-1, 0, 1], **options)
    bar.set_label('weight, relative to the largest in its map')
    bar = figure.colorbar(positive, ax=axes[:, 3:], ticks=[0, 1], **options)
    bar.set_ticklabels(['least', 'most'])
    bar.set_label('rollout and softmax')


def as_lists(value: Any) -> Any:
    """Return nested tensors as lists of numbers with six significant digits."""
    if isinstance(value, dict):
        return {key: as_lists(part) for key, part in value.items()}
    if isinstance(value, torch.Tensor):
        value = value.tolist()
    return [as_lists(part) for part in value] if isinstance(value, list) else float(f'{value:.6g}')


def main() -> None:
    args = parse_args()
    figures.set_up(args)
    image = figures.read_image(args.image)
    y, x = args.query
    if not (0 <= y < image.height and 0 <= x < image.width):
        size = size_text(image.height, image.width)
        raise UserError(f'--query must be in the image of {size} pixels, but got {args.query}')
    models = [(args.config, args.checkpoint, args.block)]
    if args.compare:
        models.append((args.compare, args.compare_checkpoint, args.compare_block))
    patches = [record_maps(args, *model, image) for model in models]
    found = [(patch, compute(patch, not args.no_rollout)) for patch in patches]
    results = dict(
        tool='activation_map',
        image=args.image.name,
        query=args.query,
        stage=args.stage,
        results=[
            dict(
                model=f'{patch.model}, {patch.weights}',
                block=patch.block,
                shape=patch.maps.shape,
                query=[patch.y, patch.x],
                **as_lists(pictures),
            )
            for patch, pictures in found
        ],
    )
    figures.write(args, results, draw(image, found))


if __name__ == '__main__':
    errors.run(main, ValueError, TypeError)
