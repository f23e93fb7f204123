"""Draws the effective receptive fields of several models side by side.

With checkpoints, a model has two pictures: before and after training. The numbers beside them
say which share of the gradient's mass lies within which distance of the centre.

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

import torch
from matplotlib.figure import Figure
from mmengine.logging import MMLogger
from PIL import Image, ImageOps

from mmvmamba.analysis import figures
from mmvmamba.analysis.erf import ReceptiveField, receptive_field
from mmvmamba.analysis.measure import parse_size, size_text
from mmvmamba.analysis.models import CHECKPOINT_HELP, MODEL_HELP, load_model
from mmvmamba.engine import errors
from mmvmamba.engine.errors import UserError

SHARES = (0.5, 0.9, 0.99)
MAX_COLUMNS = 5


@dataclass
class Panel:
    """One picture: a model, the i-th that was given, without or with its checkpoint."""

    place: int
    model: str
    trained: bool
    state: str
    field: ReceptiveField

    @property
    def title(self) -> str:
        return f'{self.model}\n{self.state}'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('models', nargs='+', metavar='CONFIG_OR_ARCH', help=MODEL_HELP)
    add(
        '--checkpoint',
        nargs='+',
        metavar='FILE',
        help=f"for each model, in order, {CHECKPOINT_HELP}, or 'none'",
    )
    add('--labels', nargs='+', help='for each model, what it is called in the picture')
    add(
        '--trained',
        help="what a checkpoint's weights are called in the picture (default: its name)",
    )
    add(
        '--images',
        type=Path,
        metavar='DIR',
        help='photographs, of which --num-images are taken at even distances '
        f"(default: {len(figures.PHOTOGRAPHS)} of scikit-image's samples)",
    )
    add('--num-images', type=int, default=50, help='at most so many of them (default: 50)')
    add('--size', type=parse_size, default=(1024, 1024), help='1024 or 800x1024 (default: 1024)')
    add('--batch-size', type=int, default=1, help='images at a time (default: 1)')
    figures.add_arguments(parser, 'work_dirs/erf.png')
    return parser.parse_args()


def check_args(args: argparse.Namespace) -> None:
    """Checks what is right or wrong beside the list of models."""
    for name in ('checkpoint', 'labels'):
        given = getattr(args, name)
        if given is not None and len(given) != len(args.models):
            raise UserError(
                f'--{name} must name one for each of the {len(args.models)} models, but has '
                f'{len(given)}'
            )
    for name in ('num_images', 'batch_size'):
        if getattr(args, name) < 1:
            raise UserError(f'--{name.replace("_", "-")} must be at least 1')


def read_images(args: argparse.Namespace) -> torch.Tensor:
    """The middle of each photograph at the size, as RGB (N, 3, H, W), uint8."""
    height, width = args.size
    if args.images is None:
        paths = figures.sample_photographs(args.num_images)
    else:
        paths = figures.find_images(args.images, args.num_images)
    images = []
    for path in paths:
        image = figures.read_image(path)
        image = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
        images.append(figures.to_tensor(image))
    return torch.cat(images)


def compute(args: argparse.Namespace, device: torch.device, images: torch.Tensor) -> list[Panel]:
    """The receptive fields of all models in all their states."""
    panels = []
    checkpoints = args.checkpoint or [None] * len(args.models)
    for i, (spec, checkpoint) in enumerate(zip(args.models, checkpoints, strict=True)):
        for file in [None] if checkpoint in (None, 'none') else [None, checkpoint]:
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


def radii_of(size: Sequence[int]) -> list[int]:
    """Powers of two up to the corner."""
    corner = math.hypot(*size) / 2
    return [2**i for i in range(2, math.ceil(math.log2(corner)) + 1)]


def numbers(panel: Panel, size: Sequence[int]) -> dict[str, Any]:
    """What the JSON file says of a picture."""
    radii = radii_of(size)
    shares = panel.field.share_within(radii)
    return dict(
        model=panel.model,
        state=panel.state,
        centre=[round(place, 2) for place in panel.field.centre],
        share_within={str(r): round(share, 6) for r, share in zip(radii, shares, strict=True)},
        radius_of_share={str(s): round(panel.field.radius_of(s), 2) for s in SHARES},
    )


def grid_of(panels: Sequence[Panel]) -> list[list[Panel | None]]:
    """Models in lines of like length; where some are trained, untrained above trained."""
    after = {panel.place: panel for panel in panels if panel.trained}
    models = [panel for panel in panels if not panel.trained]
    lines = math.ceil(len(models) / MAX_COLUMNS)
    columns = math.ceil(len(models) / lines)
    grid: list[list[Panel | None]] = []
    for i in range(0, len(models), columns):
        part = models[i : i + columns]
        grid.append(list(part))
        if after:
            grid.append([after.get(panel.place) for panel in part])
    return grid


def draw(panels: Sequence[Panel]) -> Figure:
    """One picture for each panel, with the radii of shares of the mass below it."""
    grid = grid_of(panels)
    columns = max(map(len, grid))
    figure = Figure(figsize=(2.4 * columns, 3.1 * len(grid)), layout='constrained')
    axes = figure.subplots(len(grid), columns, squeeze=False)
    for row, places in zip(grid, axes, strict=True):
        for place in places:
            place.set_axis_off()
        for panel, place in zip(row, places, strict=False):
            if panel is None:
                continue
            place.set_axis_on()
            place.set_xticks([])
            place.set_yticks([])
            place.imshow(panel.field.picture().numpy(), cmap='magma', vmin=0, vmax=1)
            place.set_title(panel.title, fontsize=8)
            radii = ', '.join(f'{100 * s:g} %: {panel.field.radius_of(s):.0f}' for s in SHARES)
            place.set_xlabel(f'mass within pixels\n{radii}', fontsize=7)
    return figure


def main() -> None:
    args = parse_args()
    check_args(args)
    device = figures.set_up(args)
    images = read_images(args)
    panels = compute(args, device, images)
    results = dict(
        tool='erf',
        size=size_text(*args.size),
        images=len(images),
        results=[numbers(panel, args.size) for panel in panels],
    )
    figures.write_figure(draw(panels), args.out, device, results)


if __name__ == '__main__':
    errors.run(main)
