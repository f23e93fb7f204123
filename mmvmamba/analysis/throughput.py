"""Size and speed of several models, measured alike and beside each other."""

from __future__ import annotations

import argparse
import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from mmengine.logging import MMLogger

from . import measure
from .figures import track
from .flops import count_multiply_adds
from .measure import Call, Row, parse_size, size_text
from .models import AnalysisModel, load_model

MODES = {'inference': False, 'train': True}
#: Images at a time, by the type of the device; that of a GPU is the paper's.
BATCH_SIZES = {'cpu': 8, 'cuda': 128}


@dataclass(frozen=True)
class Settings:
    """What all models of a comparison have in common.

    Args:
        size (tuple[int, int]): Height and width of the images.
        batch_size (int): Images at a time.
        amp (bool): Autocast, to float16 on a GPU and to bfloat16 on a CPU, or float32.
        compile (bool): ``torch.compile`` or eager mode.
        channels_last (bool): Memory format of images and weights.
        tf32 (bool): Whether a GPU rounds float32 products to TF32.
    """

    size: tuple[int, int]
    batch_size: int
    amp: bool = True
    compile: bool = False
    channels_last: bool = True
    tf32: bool = True

    @property
    def text(self) -> str:
        """The settings in a line."""
        return (
            f'{size_text(*self.size)}, batch {self.batch_size}, '
            f'{"AMP" if self.amp else "float32"}, {"compiled" if self.compile else "eager"}, '
            f'channels {"last" if self.channels_last else "first"}, '
            f'TF32 {"on" if self.tf32 else "off"}; training is forward and backward without an '
            'optimizer; medians of interleaved rounds'
        )


def add_arguments(parser: argparse.ArgumentParser, sizes: Sequence[int] | None = None) -> None:
    """Adds the options that :func:`read_settings` reads, and how long to measure.

    Args:
        parser (argparse.ArgumentParser): The tool's.
        sizes (Sequence[int], optional): The default of ``--sizes``. Defaults to None, ``--size``.
    """
    add = parser.add_argument
    kind = dict(type=parse_size, metavar='SIZE')
    if sizes is None:
        add('--size', default=(224, 224), help='224 or 800x1333 (default: 224)', **kind)
    else:
        shown = ' '.join(map(str, sizes))
        default = [(side, side) for side in sizes]
        add(
            '--sizes',
            nargs='+',
            default=default,
            help=f'such as 800x1333 (default: {shown})',
            **kind,
        )
    add('--batch-size', type=int, help='images at a time (default: 128 on a GPU, 8 on a CPU)')
    add('--no-amp', action='store_true', help='float32 instead of mixed precision')
    add('--compile', action='store_true', help='compile the models with torch.compile')
    add('--no-channels-last', action='store_true', help='images and weights in NCHW memory')
    add('--no-tf32', action='store_true', help='full float32 products on a GPU')
    add(
        '--modes',
        nargs='*',
        choices=MODES,
        default=list(MODES),
        help='what is timed; without a value nothing is (default: inference train)',
    )
    add('--seconds', type=float, default=60, help='for all rounds of a mode (default: 60)')
    add('--min-rounds', type=int, default=5, help='the least rounds of a mode (default: 5)')
    add('--threads', type=int, help="CPU threads; the default is PyTorch's choice")


def read_settings(
    args: argparse.Namespace, device: torch.device, size: tuple[int, int] | None = None
) -> Settings:
    """The settings that were given to a tool.

    Args:
        args (argparse.Namespace): What :func:`add_arguments` defined.
        device (torch.device): Where the models run.
        size (tuple[int, int], optional): One of ``--sizes``. Defaults to None, ``--size``.

    Raises:
        ValueError: If a number is too small.
    """
    for name in ('batch_size', 'min_rounds', 'threads'):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f'--{name.replace("_", "-")} must be at least 1, but got {value}')
    if args.threads:
        torch.set_num_threads(args.threads)
    return Settings(
        size=size or args.size,
        batch_size=args.batch_size or BATCH_SIZES.get(device.type, BATCH_SIZES['cuda']),
        amp=not args.no_amp,
        compile=args.compile,
        channels_last=not args.no_channels_last,
        tf32=not args.no_tf32,
    )


def compare(
    specs: Sequence[str],
    settings: Settings,
    device: torch.device,
    modes: Sequence[str] = tuple(MODES),
    seconds: float = 60,
    min_rounds: int = 5,
) -> dict[str, Row]:
    """Counts models and times them in turn.

    Args:
        specs (Sequence[str]): Models as :func:`mmvmamba.analysis.models.load_model` takes them.
        settings (Settings): What they have in common.
        device (torch.device): Where they run.
        modes (Sequence[str]): Of 'inference' and 'train'. Defaults to both.
        seconds (float): About how long the rounds of a mode take. Defaults to 60.
        min_rounds (int): The least rounds. Defaults to 5.

    Returns:
        dict[str, Row]: By model ``params``, ``flops`` (multiply-adds for an image) and for each
        mode ``<mode>_images_per_s`` and ``<mode>_spread``, the interquartile range over the
        median; None where the GPU's memory is too small.
    """
    logger = MMLogger.get_current_instance()
    specs = list(dict.fromkeys(specs))
    logger.info(f'{len(specs)} models, {settings.text}')
    rows: dict[str, Row] = {}
    models: dict[str, AnalysisModel] = {}
    for spec in track(specs):
        model = load_model(spec, size=settings.size)
        rows[spec] = count(model, settings.size)
        if modes:
            models[spec] = place(model, settings, device)
    with tf32(settings.tf32):
        for mode in modes:
            logger.info(f'{mode}: rounds of all models in turn')
            calls = make_calls(models, settings, device, mode)
            times = measure.interleave(calls, device, seconds, min_rounds, track=track)
            for spec, row in rows.items():
                row |= _speed(mode, settings.batch_size, times.get(spec))
    return rows


def count(model: AnalysisModel, size: tuple[int, int]) -> Row:
    """``params`` and ``flops`` (multiply-adds for an image) of a model.

    It must be on the CPU. A copy on the meta device is counted, where nothing is computed, or else
    the model itself: some make tensors of their own, or ask for values. On a GPU attention would be
    one of several ops.
    """
    try:
        shapes = copy.deepcopy(model).to('meta')
        counter = count_multiply_adds(shapes, torch.zeros(1, 3, *size, device='meta'))
    except (RuntimeError, TypeError) as error:
        MMLogger.get_current_instance().info(
            f'{model.name} runs to be counted: on shapes alone {type(error).__name__}'
        )
        counter = count_multiply_adds(model, torch.zeros(1, 3, *size))
    return dict(params=sum(p.numel() for p in model.parameters()), flops=counter.total)


def place(model: AnalysisModel, settings: Settings, device: torch.device) -> AnalysisModel:
    """Moves a model to where and to how it is measured."""
    memory = torch.channels_last if settings.channels_last else torch.contiguous_format
    return model.to(device).to(memory_format=memory)


def make_calls(
    models: Mapping[str, AnalysisModel], settings: Settings, device: torch.device, mode: str
) -> dict[str, Call]:
    """A step of each model, whose mode it sets, on the same random images.

    Args:
        models (Mapping[str, AnalysisModel]): What :func:`place` returned, by name.
        settings (Settings): What they have in common.
        device (torch.device): Where they are.
        mode (str): 'inference' or 'train'.
    """
    if settings.compile:
        measure.allow_recompilation()
    memory = torch.channels_last if settings.channels_last else torch.contiguous_format
    images = torch.randn(settings.batch_size, 3, *settings.size, device=device)
    images = images.contiguous(memory_format=memory)
    train = MODES[mode]
    how = ('amp' if settings.amp else 'fp32', 'compiled' if settings.compile else 'eager')
    return {
        spec: measure.make_call(model.train(train), images, train, *how)
        for spec, model in models.items()
    }


def _speed(mode: str, batch_size: int, times: Sequence[float] | None) -> Row:
    if not times:
        return {f'{mode}_images_per_s': None, f'{mode}_spread': None}
    result = measure.summarise(times)
    images_per_s = batch_size / result['median_ms'] * 1e3
    return {f'{mode}_images_per_s': round(images_per_s, 2), f'{mode}_spread': result['spread']}


@contextlib.contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Sets TF32 of products and convolutions, and puts back what was."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision('high' if allowed else 'highest')
    torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def describe(settings: Settings) -> dict[str, Any]:
    """The settings for a JSON file."""
    return asdict(settings) | dict(size=size_text(*settings.size))


def format_table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    """Rows as a table in Markdown, whose columns line up.

    Args:
        rows (Sequence[Mapping]): The rows.
        columns (Mapping[str, str]): Keys of a row and their headings.
    """
    lines = [list(columns.values())]
    lines += [[_cell(key, row.get(key)) for key in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ['-' * width for width in widths])
    texts = []
    for line in lines:
        cells = [line[0].ljust(widths[0])]
        cells += [cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True)]
        texts.append('| ' + ' | '.join(cells) + ' |')
    return '\n'.join(texts)


def _cell(key: str, value: Any) -> str:
    if value is None:
        return '-'
    if key in ('params', 'flops'):
        return f'{value / 1e6:.1f}' if key == 'params' else f'{value / 1e9:.2f}'
    if key.endswith('images_per_s'):
        return f'{value:.0f}' if value >= 100 else f'{value:.2f}'
    return f'{value:.2f}' if isinstance(value, float) else str(value)
