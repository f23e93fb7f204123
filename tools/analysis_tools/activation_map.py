"""Draw the activation map of a patch of an image in a block of VMamba.

The scan is written as attention: QK^T without and with the decay, for each scanning path, in the
order of the path and of the image, and summed; then the rollout over the blocks of the stage. The
attention of a DeiT is drawn for comparison. Red is positive, blue negative; maps that cannot be
negative are drawn from dark to bright.

Example:
    python tools/analysis_tools/activation_map.py photo.jpg CONFIG epoch_300.pth --query 120 200
    python tools/analysis_tools/activation_map.py photo.jpg tiny none --query 120 200 --stage 1 \
        --compare deit-small_4xb256_in1k --compare-checkpoint pretrained
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import figures
import numpy as np
import torch
from analysis_model import load_model
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from mmengine.logging import MMLogger
from mmengine.utils import track_iter_progress
from PIL import Image

from mmvmamba.analysis.activation_map import Maps, rollout
from mmvmamba.analysis.measure import parse_size, size_text
from mmvmamba.analysis.recording import record
from mmvmamba.engine import errors
from mmvmamba.engine.errors import UserError

SHORT_SIDE, DIVISOR = 224, 32
COLUMNS = 5
TITLES = dict(qk='$QK^T$', decay='decayed', softmax='softmax')


@dataclass
class QueriedPatch:
    """The maps of a model's blocks, and the queried patch in those of one ``block``."""

    name: str
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
    add('image', type=Path, help='a photograph')
    add('config', help=figures.MODEL_HELP)
    add('checkpoint', help=f"{figures.CHECKPOINT_HELP}; 'none' for random weights")
    add('--query', type=int, nargs=2, required=True, metavar=('Y', 'X'), help='pixel of the photo')
    add('--stage', type=int, default=2, help='the stage, from 0 (default: 2)')
    add('--block', type=int, default=-1, help='the block in the stage (default: -1, the last)')
    add(
        '--size',
        type=parse_size,
        help='input size, e.g. 224 or 224x320 (default: a short side of 224)',
    )
    add(
        '--no-rollout',
        action='store_true',
        help='leave out the rollout, whose time and memory grow with the square of the patches',
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
    name = f'{model.name}, {model.weights}'
    rows, columns = blocks[block].shape
    MMLogger.get_current_instance().info(f'{name}: a map of {size_text(rows, columns)}')
    y, x = (q + 0.5 for q in args.query)
    y, x = int(y / image.height * rows), int(x / image.width * columns)
    return QueriedPatch(name, blocks, block % count, y, x)


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
            pictures[form]['rollout'] = rollout(patch.blocks, query, form, track_iter_progress)
    return pictures


def draw_map(
    ax: Axes,
    values: torch.Tensor,
    title: str,
    patch: QueriedPatch | None = None,
    positive: bool = False,
) -> None:
    """Draw a map, with a frame around the patch, from blue to red, or from dark to bright.

    The latter is for maps that cannot be negative; the patch's own value is not on its scale.
    """
    values = values.cpu().numpy()
    if positive:
        others = np.delete(values, patch.query) if values.size > 1 else values
        ax.imshow(values, cmap='magma', vmin=others.min(), vmax=others.max())
    else:
        limit = np.abs(values).max() or 1.0
        ax.imshow(values, cmap='RdBu_r', vmin=-limit, vmax=limit)
    ax.set_title(title, fontsize=8)
    if patch is not None:
        draw_frame(ax, patch.x - 0.5, patch.y - 0.5, 1, 1)


def draw_frame(ax: Axes, x: float, y: float, width: float, height: float) -> None:
    ax.add_patch(Rectangle((x, y), width, height, fill=False, color='lime', linewidth=1.2))


def draw_image(ax: Axes, image: Image.Image, patch: QueriedPatch) -> None:
    """Draw the photograph with a frame around the query's patch."""
    rows, columns = patch.maps.shape
    height, width = image.height / rows, image.width / columns
    ax.imshow(image)
    ax.set_title(f'patch {patch.y}, {patch.x} of {size_text(rows, columns)}', fontsize=8)
    ax.set_xlabel(patch.name.replace(', ', '\n', 1), fontsize=7)
    draw_frame(ax, patch.x * width - 0.5, patch.y * height - 0.5, width, height)


def draw_paths(axes: np.ndarray, patch: QueriedPatch, form: str, found: dict[str, Any]) -> None:
    """Draw the paths in path order and, below, in image order and summed."""
    title = TITLES[form]
    for k in range(COLUMNS - 1):
        draw_map(axes[0, k], found['path_order'][k], f'{title}, path {k + 1}, path order')
        draw_map(axes[1, k], found['image_order'][k], f'{title}, path {k + 1}', patch)
    axes[0, -1].set_axis_off()
    draw_map(axes[1, -1], found['summed'], f'{title}, sum of the paths', patch)


def draw_summary(axes: np.ndarray, patch: QueriedPatch, pictures: dict[str, Any]) -> None:
    """Draw, for each form, the map of the block and the rollout over the stage."""
    unused = iter(axes)
    for form in patch.maps.forms:
        title = f'{TITLES[form]}, block {patch.block}'
        draw_map(next(unused), pictures[form]['summed'], title, patch, form == 'softmax')
        if 'rollout' in pictures[form]:
            title = f'{TITLES[form]}, rollout'
            draw_map(next(unused), pictures[form]['rollout'], title, patch, positive=True)
    for ax in unused:
        ax.set_axis_off()


def draw(image: Image.Image, results: list[tuple[QueriedPatch, dict[str, Any]]]) -> Figure:
    """Draw for each model a row with the photograph and the summed maps, then its paths."""
    rows = sum(1 if not patch.maps.paths else 2 * len(patch.maps.forms) + 1 for patch, _ in results)
    ratio = image.height / image.width
    size = 2.3 * COLUMNS, (2.3 * max(ratio, 0.8) + 0.35) * rows
    figure = Figure(figsize=size, layout='constrained')
    axes = figure.subplots(rows, COLUMNS, squeeze=False, subplot_kw=dict(xticks=[], yticks=[]))
    row = 0
    for patch, pictures in results:
        draw_image(axes[row, 0], image, patch)
        draw_summary(axes[row, 1:], patch, pictures)
        row += 1
        for form in patch.maps.forms if patch.maps.paths else ():
            draw_paths(axes[row : row + 2], patch, form, pictures[form])
            row += 2
    return figure


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
                model=patch.name,
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
