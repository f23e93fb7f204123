"""Shared by the tools in this folder: options, images, and plots saved with their numbers."""

import argparse
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from matplotlib.figure import Figure
from mmengine.logging import MMLogger
from PIL import Image, ImageOps
from torch import Tensor

from mmvmamba.analysis import plotting
from mmvmamba.analysis.measure import parse_size
from mmvmamba.engine.errors import UserError
from mmvmamba.engine.run_summary import count
from mmvmamba.environment import describe_machine, describe_run
from mmvmamba.progress import Progress

Item = TypeVar('Item')

MODEL_HELP = (
    'an architecture of this package (tiny, vanilla_base, ...), a model name of mmpretrain, a '
    'config (a path or mmvmamba::...) or package.module:callable; +key=value after it sets an '
    'argument of the backbone or of the callable: tiny+ssm_init=zero, '
    'swin-tiny_16xb64_in1k+window_size=scaled'
)
CHECKPOINT_HELP = "a file or a URL, 'pretrained' for the weights that mmpretrain publishes"


def make_parser(description: str, out: str) -> argparse.ArgumentParser:
    """Return a parser with ``--out``, ``--device`` and ``--seed``."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--out',
        type=plotting.png_path,
        default=Path(out),
        metavar='PNG',
        help=f'output image; the numbers go to a JSON file next to it (default: {out})',
    )
    parser.add_argument('--device', help='cpu, cuda, cuda:1, ... (default: a GPU if available)')
    parser.add_argument(
        '--seed', type=int, default=0, help='random seed of the weights (default: 0)'
    )
    return parser


def add_size(parser: argparse.ArgumentParser, side: int) -> None:
    """Add ``--size`` with a square by default."""
    parser.add_argument(
        '--size',
        type=parse_size,
        default=(side, side),
        help=f'image size, e.g. {side} or 800x1333 (default: {side})',
    )


def add_checkpoints(parser: argparse.ArgumentParser) -> None:
    """Add ``--checkpoint``, which :func:`read_checkpoints` reads."""
    parser.add_argument(
        '--checkpoint',
        nargs='+',
        metavar='FILE',
        help=f"for each model, in order, {CHECKPOINT_HELP}, or 'none'",
    )


def read_checkpoints(args: argparse.Namespace) -> list[str | None]:
    """Return the checkpoint of each of ``args.models``, or None."""
    check_one_for_each('--checkpoint', args.checkpoint, args.models)
    files = args.checkpoint or ['none'] * len(args.models)
    return [None if file == 'none' else file for file in files]


def check_one_for_each(option: str, values: Sequence | None, models: Sequence[str]) -> None:
    """Check that an option has one value for each model."""
    if values is not None and len(values) != len(models):
        raise UserError(
            f'{option} must have a value for each of {len(models)} models, but got {len(values)}'
        )


def positive(text: str) -> int:
    """Parse an integer of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'must be an integer of at least 1, but got {text!r}')
    return int(text)


def set_up(args: argparse.Namespace) -> None:
    """Start the log, set the style of plots, seed the weights and look up the device."""
    MMLogger.get_instance('mmvmamba', logger_name='mmvmamba')
    logging.basicConfig(level=logging.INFO, format='%(message)s')
    plotting.use_style()
    torch.manual_seed(args.seed)
    name = args.device or ('cuda' if torch.cuda.is_available() else 'cpu')
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f'--device {name!r} cannot be used: {reason}') from error
    if device.type == 'cuda' and device.index is not None:
        torch.cuda.set_device(device)  # the default of calls without a device
    args.device = device


def track(task: str, items: Sequence[Item]) -> Iterator[Item]:
    """Yield items, and log how many are done and the time left."""
    progress = Progress(task, len(items), MMLogger.get_current_instance().info)
    for item in items:
        yield item
        progress.step()


def write(
    args: argparse.Namespace, results: Mapping[str, Any], pictures: Figure | Mapping[str, Figure]
) -> None:
    """Write plots, and a JSON file of the numbers, the machine and the versions.

    The key of each of several plots is added to the name in ``--out``.
    """
    if isinstance(pictures, Figure):
        pictures = {'': pictures}
    numbers = args.out.with_suffix('.json')
    files = {args.out.with_stem(args.out.stem + suffix): fig for suffix, fig in pictures.items()}
    for path, figure in files.items():
        plotting.save(figure, path)
    text = json.dumps(dict(describe_run(args.device), **results), indent=1)
    numbers.write_text(text + '\n', encoding='utf-8')
    MMLogger.get_current_instance().info(f'wrote {", ".join(map(str, [*files, numbers]))}')


def machine_text(device: torch.device) -> str:
    """Return the GPU, or the CPU and its threads, without trademarks."""
    machine = describe_machine(device)
    cpu = f'{machine["cpu"]}, {count(machine["threads"], "thread")}'
    return (machine.get('gpu') or cpu).replace('(R)', '').replace('(TM)', '')


def read_image(path: Path) -> Image.Image:
    """Read an image as RGB, upright if its EXIF data has an orientation."""
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert('RGB')
    except OSError as error:
        raise UserError(f'image {str(path)!r} cannot be read: {error}') from error


def to_tensor(image: Image.Image) -> Tensor:
    """Return an RGB image as a tensor (1, 3, H, W), uint8."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
