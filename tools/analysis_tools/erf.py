"""Draw the effective receptive fields of several models side by side.

A model with a checkpoint has two pictures: before and after training. The numbers beside them are
the share of the gradient's mass within each distance of the centre.

Example:
    python tools/analysis_tools/erf.py resnet50_8xb32_in1k swin-tiny_16xb64_in1k tiny --size 512
    python tools/analysis_tools/erf.py tiny+ssm_init=random tiny+ssm_init=zero tiny --images photos
    python tools/analysis_tools/erf.py CONFIG CONFIG2 --checkpoint epoch_12.pth none
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import figures
import torch
from analysis_model import load_model
from matplotlib.figure import Figure
from mmengine.logging import MMLogger
from PIL import Image, ImageOps

from mmvmamba.analysis.erf import ReceptiveField, receptive_field
from mmvmamba.analysis.measure import parse_size, size_text
from mmvmamba.engine import errors
from mmvmamba.engine.errors import UserError

SHARES = (0.5, 0.9, 0.99)
MAX_COLUMNS = 5
SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp')
#: Photographs in the wheel of scikit-image, used without a folder of images.
PHOTOGRAPHS = (
    'astronaut.png',
    'brick.png',
    'camera.png',
    'chelsea.png',
    'coffee.png',
    'coins.png',
    'grass.png',
    'gravel.png',
    'hubble_deep_field.jpg',
    'motorcycle_left.png',
    'rocket.jpg',
)


@dataclass
class Panel:
    """One picture: a model of the command line, with or without its checkpoint."""

    index: int
    model: str
    trained: bool
    state: str
    field: ReceptiveField


def parse_args() -> argparse.Namespace:
    parser = figures.make_parser(__doc__, 'work_dirs/erf.png')
    add = parser.add_argument
    add('models', nargs='+', metavar='CONFIG_OR_ARCH', help=figures.MODEL_HELP)
    figures.add_checkpoints(parser)
    add('--labels', nargs='+', help='name of each model in the picture')
    add(
        '--trained',
        help="name of the checkpoints' weights in the picture (default: that of the file)",
    )
    add(
        '--images',
        type=Path,
        metavar='DIR',
        help='photographs, of which --num-images are taken at even distances '
        f"(default: {len(PHOTOGRAPHS)} of scikit-image's samples)",
    )
    add('--num-images', type=int, default=50, help='the most images (default: 50)')
    add('--size', type=parse_size, default=(1024, 1024), help='1024 or 800x1024 (default: 1024)')
    add('--batch-size', type=int, default=1, help='images at a time (default: 1)')
    return parser.parse_args()


def sample_photographs(count: int) -> list[Path]:
    """Return the first of :data:`PHOTOGRAPHS`."""
    try:
        import skimage
    except ImportError as error:
        raise UserError('--images must name a folder if scikit-image is not installed') from error
    folder = Path(skimage.__file__).parent / 'data'
    return [folder / name for name in PHOTOGRAPHS[:count]]


def find_images(folder: Path, count: int) -> list[Path]:
    """Return images of a folder and its subfolders, evenly spaced in the order of their paths.

    Of a folder of classes these are as many of each class.
    """
    if not folder.is_dir():
        raise UserError(f'the folder of images {str(folder)!r} does not exist')
    found = sorted(path for path in folder.rglob('*') if path.suffix.lower() in SUFFIXES)
    if not found:
        raise UserError(f'{str(folder)!r} has no image with one of {SUFFIXES}')
    count = min(count, len(found))
    return [found[i * len(found) // count] for i in range(count)]


def read_images(args: argparse.Namespace) -> torch.Tensor:
    """Read the middle of each photograph at the size, as RGB (N, 3, H, W), uint8."""
    height, width = args.size
    if args.images is None:
        paths = sample_photographs(args.num_images)
    else:
        paths = find_images(args.images, args.num_images)
    images = []
    for path in paths:
        image = figures.read_image(path)
        image = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
        images.append(figures.to_tensor(image))
    return torch.cat(images)


def compute(
    args: argparse.Namespace,
    device: torch.device,
    checkpoints: Sequence[str | None],
    images: torch.Tensor,
) -> list[Panel]:
    """Return the receptive fields of all models, before and after training."""
    panels = []
    for i, (spec, checkpoint) in enumerate(zip(args.models, checkpoints, strict=True)):
        for file in [None, checkpoint] if checkpoint else [None]:
            torch.manual_seed(args.seed)
            model = load_model(spec, file, output='map', size=args.size).to(device)
            model.requires_grad_(False)
            name = args.labels[i] if args.labels else model.name
            state = args.trained or f'weights: {model.weights}' if file else model.weights
            MMLogger.get_current_instance().info(f'{name}, {state}: {len(images)} images')
            batches = figures.track(images.split(args.batch_size))
            field = receptive_field(model, (model.normalise(b.to(device)) for b in batches))
            panels.append(Panel(i, name, file is not None, state, field))
    return panels


def numbers(panel: Panel) -> dict[str, Any]:
    """Return the entry of a picture in the JSON file."""
    corner = math.hypot(*panel.field.gradient.shape) / 2
    radii = [2**i for i in range(2, math.ceil(math.log2(corner)) + 1)]
    shares = panel.field.share_within(radii)
    return dict(
        model=panel.model,
        state=panel.state,
        centre=[round(pixel, 2) for pixel in panel.field.centre],
        share_within={str(r): round(share, 6) for r, share in zip(radii, shares, strict=True)},
        radius_of_share={str(s): round(panel.field.radius_of(s), 2) for s in SHARES},
    )


def grid_of(panels: Sequence[Panel]) -> list[list[Panel | None]]:
    """Arrange models in rows of similar length, untrained above trained if there are trained."""
    after = {panel.index: panel for panel in panels if panel.trained}
    models = [panel for panel in panels if not panel.trained]
    lines = math.ceil(len(models) / MAX_COLUMNS)
    columns = math.ceil(len(models) / lines)
    grid: list[list[Panel | None]] = []
    for i in range(0, len(models), columns):
        part = models[i : i + columns]
        grid.append(list(part))
        if after:
            grid.append([after.get(panel.index) for panel in part])
    return grid


def draw(panels: Sequence[Panel]) -> Figure:
    """Draw each panel above the radii of shares of its mass."""
    grid = grid_of(panels)
    columns = max(map(len, grid))
    figure = Figure(figsize=(2.4 * columns, 3.1 * len(grid)), layout='constrained')
    axes = figure.subplots(len(grid), columns, squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    for row, row_axes in zip(grid, axes, strict=True):
        for panel, ax in zip(row, row_axes, strict=False):
            if panel is None:
                continue
            ax.set_axis_on()
            ax.set_xticks([])
            ax.set_yticks([])
            ax.imshow(panel.field.picture().numpy(), cmap='magma', vmin=0, vmax=1)
            ax.set_title(f'{panel.model}\n{panel.state}', fontsize=8)
            radii = ', '.join(f'{100 * s:g} %: {panel.field.radius_of(s):.0f}' for s in SHARES)
            ax.set_xlabel(f'mass within pixels\n{radii}', fontsize=7)
    return figure


def main() -> None:
    args = parse_args()
    checkpoints = figures.read_checkpoints(args)
    figures.check_one_for_each('--labels', args.labels, args.models)
    figures.check_positive(args, 'num_images', 'batch_size')
    device = figures.set_up(args)
    images = read_images(args)
    panels = compute(args, device, checkpoints, images)
    results = dict(
        tool='erf',
        size=size_text(*args.size),
        images=len(images),
        results=[numbers(panel) for panel in panels],
    )
    figures.write(args.out, device, results, draw(panels))


if __name__ == '__main__':
    errors.run(main, ValueError, TypeError)
