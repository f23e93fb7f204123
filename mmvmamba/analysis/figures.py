"""What the tools share: their options, and a picture or a table with its numbers beside it."""

from __future__ import annotations

import argparse
import csv
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from mmengine.logging import MMLogger
from mmengine.utils import ProgressBar
from PIL import Image, ImageOps
from torch import Tensor

from .measure import describe_run

SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp')
#: What there is without a folder of images: photographs in scikit-image's wheel.
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
DPI = 110
TABLE_HELP = ('the numbers', 'the same as a table, .csv, and a picture, .png')


def add_arguments(parser: argparse.ArgumentParser, out: str) -> None:
    """Adds ``--out``, ``--device`` and ``--seed``, which :func:`set_up` reads.

    Args:
        parser (argparse.ArgumentParser): The tool's.
        out (str): The default of ``--out``, a picture (.png) or numbers alone (.json).
    """
    parser.set_defaults(out_suffix=Path(out).suffix)
    picture = out.endswith('.png')
    what, beside = ('the picture', 'its numbers as .json') if picture else TABLE_HELP
    parser.add_argument(
        '--out',
        type=Path,
        default=Path(out),
        metavar='PNG' if picture else 'JSON',
        help=f'{what}, beside it {beside} (default: {out})',
    )
    parser.add_argument('--device', help='cpu, cuda, cuda:1, ...; by default a GPU if there is one')
    parser.add_argument(
        '--seed', type=int, default=0, help='of the weights that are not loaded (default: 0)'
    )


def set_up(args: argparse.Namespace) -> torch.device:
    """Starts the log, seeds the weights and returns the device.

    Raises:
        ValueError: If the device is not here, or ``--out`` has another suffix.
    """
    MMLogger.get_instance('mmvmamba', logger_name='mmvmamba')
    logging.basicConfig(level=logging.INFO, format='%(message)s')
    if args.out.suffix.lower() != args.out_suffix:
        raise ValueError(f'--out must end in {args.out_suffix}, but got {str(args.out)!r}')
    torch.manual_seed(args.seed)
    name = args.device or ('cuda' if torch.cuda.is_available() else 'cpu')
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
        if device.index is not None and device.type == 'cuda':
            torch.cuda.set_device(device)  # that of all calls that name none
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f'--device {name!r} cannot be used: {reason}') from error
    return device


def write_figure(
    figure: Figure, out: Path, device: torch.device, results: Mapping[str, Any]
) -> None:
    """Writes a picture, and beside it a JSON file of the numbers, the machine and the versions.

    Args:
        figure (Figure): What is drawn.
        out (Path): The PNG file; the numbers are in a file of its name with the suffix .json.
        device (torch.device): Where the numbers were computed.
        results (Mapping): The numbers.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=DPI, bbox_inches='tight')
    write_json(out.with_suffix('.json'), device, results)
    MMLogger.get_current_instance().info(f'wrote {out} and {out.with_suffix(".json")}')


def write_json(path: Path, device: torch.device, results: Mapping[str, Any]) -> None:
    """Writes numbers below the machine and the versions that they belong to."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(dict(describe_run(device), **results), indent=1)
    path.write_text(text + '\n', encoding='utf-8')


def write_table(
    out: Path, device: torch.device, results: Mapping[str, Any], figure: Figure
) -> None:
    """Writes a JSON file, and beside it a CSV file of its rows and a picture of them.

    Args:
        out (Path): The JSON file.
        device (torch.device): Where the numbers were computed.
        results (Mapping): The numbers; ``results`` among them are the rows.
        figure (Figure): What is drawn of them.
    """
    write_json(out, device, results)
    rows = results['results']
    table = out.with_suffix('.csv')
    with table.open('w', newline='', encoding='utf-8') as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)
    picture = out.with_suffix('.png')
    figure.savefig(picture, dpi=DPI, bbox_inches='tight')
    MMLogger.get_current_instance().info(f'wrote {out}, {table} and {picture}')


def track(items: Sequence[Any]) -> Iterator[Any]:
    """Yields the items and shows a bar of those that are done."""
    with progress(len(items)) as tick:
        for item in items:
            yield item
            tick()


@contextmanager
def progress(total: int) -> Iterator[Callable[[], None]]:
    """Shows a bar of so many steps, which what it gives takes."""
    bar = ProgressBar(total)
    yield bar.update
    bar.file.write('\n')


def sample_photographs(count: int) -> list[Path]:
    """The first of :data:`PHOTOGRAPHS`.

    Raises:
        ValueError: If scikit-image is not installed.
    """
    try:
        import skimage
    except ImportError as error:
        raise ValueError('--images must name a folder where scikit-image is missing') from error
    folder = Path(skimage.__file__).parent / 'data'
    return [folder / name for name in PHOTOGRAPHS[:count]]


def find_images(folder: Path, count: int) -> list[Path]:
    """Images of a folder and those inside it, evenly spaced in the order of their paths.

    A folder of classes gives as many of each, not all of the first.

    Raises:
        ValueError: If the folder does not exist or holds none.
    """
    if not folder.is_dir():
        raise ValueError(f'the folder of images {str(folder)!r} does not exist')
    found = sorted(path for path in folder.rglob('*') if path.suffix.lower() in SUFFIXES)
    if not found:
        raise ValueError(f'{str(folder)!r} holds no image with one of {SUFFIXES}')
    count = min(count, len(found))
    return [found[i * len(found) // count] for i in range(count)]


def read_image(path: Path) -> Image.Image:
    """Reads an image as RGB, upright where its EXIF data says how it was taken.

    Raises:
        ValueError: If it does not exist or cannot be read.
    """
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert('RGB')
    except OSError as error:
        raise ValueError(f'image {str(path)!r} cannot be read: {error}') from error


def to_tensor(image: Image.Image) -> Tensor:
    """A picture as an RGB tensor (1, 3, H, W), uint8."""
    data = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return data.view(1, image.height, image.width, 3).permute(0, 3, 1, 2)


def rounded(values: Tensor, digits: int = 6) -> list:
    """A tensor as nested lists of numbers with so many significant digits."""
    if values.dim() > 1:
        return [rounded(row, digits) for row in values]
    return [float(f'{value:.{digits}g}') for value in values.tolist()]
