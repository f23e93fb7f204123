"""Draw the effective receptive fields of several models side by side.

A model with a checkpoint is drawn before and after training. A circle shows the radius in pixels
that holds 50% of the gradient; the JSON file contains the share within other radii.

Example:
    python tools/analysis_tools/erf.py resnet50_8xb32_in1k swin-tiny_16xb64_in1k tiny --size 512
    python tools/analysis_tools/erf.py tiny+ssm_init=random tiny+ssm_init=zero tiny --images photos
    python tools/analysis_tools/erf.py CONFIG CONFIG2 --checkpoint epoch_12.pth none
"""

import argparse
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import figures
import torch
from analysis_model import load_model
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Circle
from mmengine.logging import MMLogger
from paper import display_name
from PIL import Image, ImageOps

from mmvmamba.analysis.erf import ReceptiveField, receptive_field
from mmvmamba.analysis.measure import size_text
from mmvmamba.engine import errors
from mmvmamba.engine.errors import UserError

SHARES = (0.5, 0.9, 0.99)
MAX_COLUMNS = 5
SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp')
#: Images in the wheel of scikit-image, used if no folder is given.
PHOTOGRAPHS = (
    *(f'{name}.png' for name in 'astronaut brick camera chelsea coffee coins grass gravel'.split()),
    *('hubble_deep_field.jpg', 'motorcycle_left.png', 'rocket.jpg'),
)


@dataclass
class Panel:
    """One field: a model with its initial weights or those of its checkpoint."""

    model: str
    state: str
    field: ReceptiveField


def parse_args() -> argparse.Namespace:
    parser = figures.make_parser(__doc__, 'work_dirs/erf.png')
    add = parser.add_argument
    add('models', nargs='+', metavar='CONFIG_OR_ARCH', help=figures.MODEL_HELP)
    figures.add_checkpoints(parser)
    add('--labels', nargs='+', help='name of each model in the plot')
    add('--trained', help='label of the trained weights (default: the file name)')
    add(
        '--images',
        type=Path,
        metavar='DIR',
        help="folder of images, sampled evenly (default: scikit-image's samples)",
    )
    add(
        '--num-images',
        type=figures.positive,
        default=50,
        help='maximum number of images (default: 50)',
    )
    figures.add_size(parser, 1024)
    add('--batch-size', type=figures.positive, default=1, help='batch size (default: 1)')
    return parser.parse_args()


def find_images(folder: Path | None, count: int) -> list[Path]:
    """Return evenly spaced images of a folder, so that all classes appear, or the samples."""
    if folder is None:
        import skimage

        return [Path(skimage.__file__).parent / 'data' / name for name in PHOTOGRAPHS[:count]]
    found = sorted(path for path in folder.rglob('*') if path.suffix.lower() in SUFFIXES)
    if not found:
        formats = ', '.join(SUFFIXES)
        raise UserError(f'--images must be a folder with {formats} files, but got {str(folder)!r}')
    count = min(count, len(found))
    return [found[i * len(found) // count] for i in range(count)]


def read_images(args: argparse.Namespace) -> torch.Tensor:
    """Read the center of each image at the size, as RGB (N, 3, H, W), uint8."""
    images = map(figures.read_image, find_images(args.images, args.num_images))
    images = [ImageOps.fit(image, args.size[::-1], Image.Resampling.BICUBIC) for image in images]
    return torch.cat([figures.to_tensor(image) for image in images])


def compute(args: argparse.Namespace, images: torch.Tensor) -> list[list[Panel]]:
    """Return the receptive fields of each model, before and after training if it is trained."""
    models = []
    for i, (spec, checkpoint) in enumerate(zip(args.models, args.checkpoint, strict=True)):
        panels = []
        for file in [None, checkpoint] if checkpoint else [None]:
            torch.manual_seed(args.seed)
            model = load_model(spec, file, to_map=True, size=args.size).to(args.device)
            model.requires_grad_(False)
            name = args.labels[i] if args.labels else model.name
            state = args.trained or f'weights: {model.weights}' if file else model.weights
            MMLogger.get_current_instance().info(f'{name}, {state}: {len(images)} images')
            batches = figures.track(name, images.split(args.batch_size))
            field = receptive_field(model, (model.normalize(b.to(args.device)) for b in batches))
            panels.append(Panel(name, state, field))
        models.append(panels)
    return models


def numbers(panel: Panel) -> dict[str, Any]:
    """Return the entry of a panel in the JSON file."""
    corner = math.hypot(*panel.field.gradient.shape) / 2
    radii = [2**i for i in range(2, math.ceil(math.log2(corner)) + 1)]
    shares = panel.field.share_within(radii)
    return dict(
        model=panel.model,
        state=panel.state,
        center=[round(pixel, 2) for pixel in panel.field.center],
        share_within={str(r): round(share, 6) for r, share in zip(radii, shares, strict=True)},
        radius_of_share={str(s): round(panel.field.radius_of(s), 2) for s in SHARES},
    )


def draw(models: Sequence[Sequence[Panel]]) -> Figure:
    """Draw the models in rows of similar length, each trained panel below the untrained one."""
    lines = math.ceil(len(models) / MAX_COLUMNS)
    columns = math.ceil(len(models) / lines)
    height = max(map(len, models))
    side = 7.6 / max(columns, 3)
    figure = Figure(figsize=(columns * side, lines * height * (side + 0.5) + 0.9))
    axes = figure.subplots(lines * height, columns, squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    for i, panels in enumerate(models):
        for panel, ax in zip(panels, axes[i // columns * height :, i % columns], strict=False):
            image = draw_panel(ax, panel)
    bar = figure.colorbar(image, ax=axes, location='bottom', aspect=50, shrink=0.7, pad=0.02)
    bar.set_label(
        'gradient relative to its maximum, to the power 0.2\n'
        'Circle: radius (px) that holds 50% of the gradient'
    )
    return figure


def draw_panel(ax: Axes, panel: Panel) -> AxesImage:
    """Draw a panel with a circle that holds half of its mass, and the radius below."""
    ax.set_axis_on()
    ax.set(xticks=[], yticks=[])
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    image = ax.imshow(panel.field.picture().numpy(), vmin=0, vmax=1)
    name = textwrap.fill(display_name(panel.model), 22)
    ax.set_title(f'{name}\n{panel.state}', fontsize=8.5, loc='center', pad=3)
    radius = panel.field.radius_of(0.5)
    y, x = panel.field.center
    for color, width in (('black', 2.2), ('white', 1.1)):
        ax.add_patch(Circle((x, y), radius, fill=False, color=color, linewidth=width))
    ax.set_xlabel(f'50% within {radius:.0f} px', fontsize=9, labelpad=3)
    return image


def main() -> None:
    args = parse_args()
    args.checkpoint = figures.read_checkpoints(args)
    figures.check_one_for_each('--labels', args.labels, args.models)
    figures.set_up(args)
    images = read_images(args)
    models = compute(args, images)
    results = dict(
        tool='erf',
        size=size_text(*args.size),
        images=len(images),
        results=[numbers(panel) for panels in models for panel in panels],
    )
    figures.write(args, results, draw(models))


if __name__ == '__main__':
    errors.run(main, ValueError, TypeError, ImportError)
