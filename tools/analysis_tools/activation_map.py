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
import re
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
from PIL import Image

from mmvmamba.analysis.activation_map import Maps, rollout, rollout_bytes
from mmvmamba.analysis.measure import parse_size, size_text
from mmvmamba.analysis.recording import record
from mmvmamba.engine import errors
from mmvmamba.engine.errors import UserError

SHORT_SIDE, DIVISOR = 224, 32
COLUMNS = 5
TITLES = dict(qk='$QK^T$', decay='decayed', softmax='softmax')


class Patch:
    """The maps of a model's blocks, and the queried patch of the image."""

    def __init__(self, name: str, blocks: list[Maps], block: int, point: tuple[float, float]):
        count = len(blocks)
        if not -count <= block < count:
            raise UserError(f'--block must be in [{-count}, {count - 1}], but got {block}')
        self.name = name
        self.blocks = blocks
        self.block = block % count
        self.maps = blocks[block]
        height, width = self.maps.shape
        self.y, self.x = int(point[0] * height), int(point[1] * width)
        self.query = self.y * width + self.x


def parse_args() -> argparse.Namespace:
    parser = figures.make_parser(__doc__, 'work_dirs/activation_map.png')
    add = parser.add_argument
    add('image', type=Path, help='a photograph')
    add('config', help=figures.MODEL_HELP)
    add('checkpoint', help=f"{figures.CHECKPOINT_HELP}; 'none' for random weights")
    add(
        '--query',
        type=int,
        nargs=2,
        required=True,
        metavar=('Y', 'X'),
        help='pixel of the photograph, from its upper left corner, whose patch is queried',
    )
    add('--stage', type=int, default=2, help='the stage, from 0 (default: 2)')
    add('--block', type=int, default=-1, help='the block in the stage (default: -1, the last)')
    add(
        '--size',
        type=parse_size,
        help='what the photograph is resized to: 224 or 224x320 (default: a short side of '
        f'{SHORT_SIDE}, sides that {DIVISOR} divides)',
    )
    add(
        '--no-rollout',
        action='store_true',
        help='leave out the rollout, whose time and memory grow with the square of the patches; '
        'the maps of the query are fast',
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


def relative_point(query: list[int], image: Image.Image) -> tuple[float, float]:
    """Return the query as fractions of the image's height and width."""
    sides = (image.height, image.width)
    if any(not 0 <= q < side for q, side in zip(query, sides, strict=True)):
        raise UserError(
            f'--query must be in the image of {size_text(*sides)} pixels, but got {query}'
        )
    return tuple((q + 0.5) / side for q, side in zip(query, sides, strict=True))


def find_maps(
    args: argparse.Namespace, spec: str, checkpoint: str, block: int, image: Image.Image
) -> Patch:
    """Run a model on the image."""
    point = relative_point(args.query, image)
    height, width = size = args.size or image_size(image)
    torch.manual_seed(args.seed)
    file = None if checkpoint == 'none' else checkpoint
    model = load_model(spec, file, output='map', size=size).to(args.device)
    resized = figures.to_tensor(image.resize((width, height), Image.Resampling.BICUBIC))
    pixels = model.normalise(resized.to(args.device))
    blocks = record(model.net, args.stage, lambda: model(pixels))
    name = f'{model.name}, {model.weights}'
    MMLogger.get_current_instance().info(f'{name}: a map of {size_text(*blocks[0].shape)}')
    return Patch(name, blocks, block, point)


def available_memory(device: torch.device) -> int | None:
    """Return the bytes that can still be allocated, or None if the system does not say."""
    if device.type == 'cuda':
        return torch.cuda.mem_get_info(device)[0]
    path = Path('/proc/meminfo')
    found = re.search(r'MemAvailable:\s*(\d+)', path.read_text()) if path.exists() else None
    return int(found[1]) * 1024 if found else None


def check_memory(patch: Patch, device: torch.device) -> None:
    """Check that the memory suffices for a rollout, which may take hours until it fails."""
    need, found = rollout_bytes(patch.blocks), available_memory(device)
    if found is not None and need > found:
        raise UserError(
            f'the rollout of a map of {size_text(*patch.maps.shape)} needs about '
            f'{need / 2**30:.1f} GiB of memory, but {found / 2**30:.1f} GiB are free: choose a '
            'later --stage, a smaller --size or --no-rollout'
        )


def compute(patch: Patch, with_rollout: bool) -> dict[str, Any]:
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
            pictures[form]['rollout'] = rollout(patch.blocks, query, form, figures.track)
    return pictures


def draw_map(ax: Axes, values: torch.Tensor, title: str) -> None:
    """Draw positive values red and negative ones blue."""
    values = values.cpu().numpy()
    limit = np.abs(values).max() or 1.0
    ax.imshow(values, cmap='RdBu_r', vmin=-limit, vmax=limit)
    ax.set_title(title, fontsize=8)


def draw_over(ax: Axes, values: torch.Tensor, patch: Patch, title: str) -> None:
    """Draw a map in image order with a frame around the query's patch."""
    draw_map(ax, values, title)
    draw_frame(ax, patch.x - 0.5, patch.y - 0.5, 1, 1)


def draw_positive(ax: Axes, values: torch.Tensor, patch: Patch, title: str) -> None:
    """Draw a map that cannot be negative, on a scale that leaves out the query's own patch."""
    shown = values.flatten().tolist()
    others = shown[: patch.query] + shown[patch.query + 1 :] or shown
    ax.imshow(values.cpu().numpy(), cmap='magma', vmin=min(others), vmax=max(others))
    ax.set_title(title, fontsize=8)
    draw_frame(ax, patch.x - 0.5, patch.y - 0.5, 1, 1)


def draw_frame(ax: Axes, x: float, y: float, width: float, height: float) -> None:
    ax.add_patch(Rectangle((x, y), width, height, fill=False, color='lime', linewidth=1.2))


def draw_image(ax: Axes, image: Image.Image, patch: Patch) -> None:
    """Draw the photograph with a frame around the query's patch."""
    rows, columns = patch.maps.shape
    height, width = image.height / rows, image.width / columns
    ax.imshow(image)
    ax.set_title(f'patch {patch.y}, {patch.x} of {size_text(rows, columns)}', fontsize=8)
    ax.set_xlabel(patch.name.replace(', ', '\n', 1), fontsize=7)
    draw_frame(ax, patch.x * width - 0.5, patch.y * height - 0.5, width, height)


def draw_paths(axes: np.ndarray, patch: Patch, form: str, found: dict[str, Any]) -> None:
    """Draw the paths in path order and, below, in image order and summed."""
    title = TITLES[form]
    for k in range(COLUMNS - 1):
        draw_map(axes[0, k], found['path_order'][k], f'{title}, path {k + 1}, path order')
        draw_over(axes[1, k], found['image_order'][k], patch, f'{title}, path {k + 1}')
    axes[0, -1].set_axis_off()
    draw_over(axes[1, -1], found['summed'], patch, f'{title}, sum of the paths')


def draw_summary(axes: np.ndarray, patch: Patch, pictures: dict[str, Any]) -> None:
    """Draw, for each form, the map of the block and the rollout over the stage."""
    unused = iter(axes)
    for form in patch.maps.forms:
        draw_block = draw_positive if form == 'softmax' else draw_over
        title = f'{TITLES[form]}, block {patch.block}'
        draw_block(next(unused), pictures[form]['summed'], patch, title)
        if 'rollout' in pictures[form]:
            title = f'{TITLES[form]}, rollout'
            draw_positive(next(unused), pictures[form]['rollout'], patch, title)
    for ax in unused:
        ax.set_axis_off()


def draw(image: Image.Image, results: list[tuple[Patch, dict[str, Any]]]) -> Figure:
    """Draw for each model a row with the photograph and the summed maps, then its paths."""
    rows = sum(1 if not patch.maps.paths else 2 * len(patch.maps.forms) + 1 for patch, _ in results)
    ratio = image.height / image.width
    figure = Figure(figsize=(2.3 * COLUMNS, (2.3 * max(ratio, 0.8) + 0.35) * rows))
    figure.set_layout_engine('constrained')
    axes = figure.subplots(rows, COLUMNS, squeeze=False)
    for ax in axes.flat:
        ax.set_xticks([])
        ax.set_yticks([])
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


def numbers(patch: Patch, pictures: dict[str, Any]) -> dict[str, Any]:
    """Return the entry of a model in the JSON file."""
    return dict(
        model=patch.name,
        block=patch.block,
        shape=patch.maps.shape,
        query=[patch.y, patch.x],
        **as_lists(pictures),
    )


def main() -> None:
    args = parse_args()
    args.device = figures.set_up(args)
    image = figures.read_image(args.image)
    models = [(args.config, args.checkpoint, args.block)]
    if args.compare:
        models.append((args.compare, args.compare_checkpoint, args.compare_block))
    patches = [find_maps(args, *model, image) for model in models]
    if not args.no_rollout:
        for patch in patches:
            check_memory(patch, args.device)
    found = [(patch, compute(patch, not args.no_rollout)) for patch in patches]
    results = dict(
        tool='activation_map',
        image=args.image.name,
        query=args.query,
        stage=args.stage,
        results=[numbers(patch, pictures) for patch, pictures in found],
    )
    figures.write(args.out, args.device, results, draw(image, found))


if __name__ == '__main__':
    errors.run(main, ValueError, TypeError)
