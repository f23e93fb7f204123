"""Shared by the tools in this folder: size and speed of several models, measured side by side."""

import argparse
import copy
import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import figures
import torch
from analysis_model import AnalysisModel, load_model
from mmengine.logging import MMLogger

from mmvmamba.analysis import measure
from mmvmamba.analysis.flops import count_multiply_adds
from mmvmamba.analysis.measure import MIB, Row, size_text

MODES = ('inference', 'train')


@dataclass(frozen=True)
class Settings:
    """Settings that all models of a comparison share."""

    size: tuple[int, int]  # height and width of the images
    batch_size: int
    device: torch.device
    amp: bool = True  # autocast, to float16 on a GPU and to bfloat16 on a CPU
    compile: bool = False
    channels_last: bool = True  # images and weights
    tf32: bool = True  # in the float32 products of a GPU
    seconds: float = 60  # rough duration of all rounds of a mode
    min_rounds: int = 5

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

    @property
    def short(self) -> str:
        """The size, the batch and the precision, for plots."""
        run = ', compiled' if self.compile else ''
        precision = 'AMP' if self.amp else 'float32'
        return f'{size_text(*self.size)} px, batch {self.batch_size}, {precision}{run}'

    def move(self, value: AnalysisModel | torch.Tensor) -> Any:
        """Return a model or images on the device and in the memory format."""
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return value.to(self.device).to(memory_format=layout)

    def asdict(self) -> dict[str, Any]:
        """Return the settings for a JSON file."""
        values = asdict(self) | dict(size=size_text(*self.size))
        del values['device']
        return values


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that :func:`read_settings` reads, but for the size, and ``--modes``."""
    add, positive, on_off = parser.add_argument, figures.positive, argparse.BooleanOptionalAction
    add('--batch-size', type=positive, help='batch size (default: 128 on a GPU, 8 on a CPU)')
    add('--amp', action=on_off, default=True, help='use mixed precision instead of float32')
    add('--compile', action='store_true', help='compile the models with torch.compile')
    add(
        '--channels-last',
        action=on_off,
        default=True,
        help='use channels-last memory for images and weights',
    )
    add('--tf32', action=on_off, default=True, help='use TF32 for float32 products on a GPU')
    add(
        '--modes',
        nargs='*',
        choices=MODES,
        default=MODES,
        help='modes to time, or none (default: both)',
    )
    add('--seconds', type=float, default=60, help='duration of all rounds of a mode (default: 60)')
    add(
        '--min-rounds',
        type=positive,
        default=5,
        help='minimum number of rounds of a mode (default: 5)',
    )
    add('--threads', type=positive, help="CPU threads (default: PyTorch's choice)")


def read_settings(args: argparse.Namespace, size: tuple[int, int]) -> Settings:
    """Set the threads and TF32 of PyTorch, and return the settings that were given to a tool."""
    torch.set_float32_matmul_precision('high' if args.tf32 else 'highest')
    torch.backends.cudnn.allow_tf32 = args.tf32
    if args.threads:
        torch.set_num_threads(args.threads)
    values = {f.name: getattr(args, f.name) for f in fields(Settings) if f.name != 'size'}
    # That of a GPU is the paper's.
    values['batch_size'] = args.batch_size or (8 if args.device.type == 'cpu' else 128)
    return Settings(size, **values)


def compare(specs: Sequence[str], settings: Settings, modes: Sequence[str]) -> dict[str, Row]:
    """Return the results of :func:`count` and :func:`measure_mode` for models, by specification."""
    logger = MMLogger.get_current_instance()
    specs = list(dict.fromkeys(specs))
    logger.info(f'{len(specs)} models, {settings.text}')
    rows: dict[str, Row] = {}
    models: dict[str, AnalysisModel] = {}
    for spec in figures.track('building the models', specs):
        model = load_model(spec, size=settings.size)
        rows[spec] = count(model, settings.size)
        if modes:
            models[spec] = settings.move(model)
    for mode in modes:
        logger.info(f'{mode}: timing all models in turn')
        for spec, found in measure_mode(models, settings, mode).items():
            rows[spec] |= found
    return rows


def count(model: AnalysisModel, size: tuple[int, int]) -> Row:
    """Return ``params`` and ``flops`` (multiply-adds for an image) of a model on the CPU.

    A copy on the meta device is counted, where nothing is computed. On a GPU attention would be one
    of several ops.
    """
    try:
        shapes = copy.deepcopy(model).to('meta')
        counter = count_multiply_adds(shapes, torch.zeros(1, 3, *size, device='meta'))
    except (RuntimeError, TypeError):  # the model makes tensors of its own or asks for values
        counter = count_multiply_adds(model, torch.zeros(1, 3, *size))
    return dict(params=sum(p.numel() for p in model.parameters()), flops=counter.total)


def measure_mode(
    models: Mapping[str, AnalysisModel], settings: Settings, mode: str, memory: bool = False
) -> dict[str, Row]:
    """Time steps of all models in turn, on the same random images.

    The rows have ``<mode>_ms`` for an image, ``<mode>_images_per_s`` and ``<mode>_spread`` and,
    with ``memory``, ``<mode>_extra_mib`` (the peak above the weights) and ``<mode>_mib``. All are
    None if the GPU's memory is too small.
    """
    keys = ['ms', 'images_per_s', 'spread'] + ['extra_mib', 'mib'] * memory
    rows: dict[str, Row] = {name: {f'{mode}_{key}': None for key in keys} for name in models}
    batch_size, device = settings.batch_size, settings.device
    images = settings.move(torch.randn(batch_size, 3, *settings.size, device=device))
    train = mode == 'train'
    run = 'compiled' if settings.compile else 'eager'
    options = dict(train=train, amp=settings.amp, run=run)
    if settings.compile:
        measure.allow_recompilation()
    calls = {
        name: measure.make_call(model.train(train), images, **options)
        for name, model in models.items()
    }
    how_long = settings.seconds, settings.min_rounds
    track = functools.partial(figures.track, f'{mode}, {size_text(*settings.size)}')
    times = measure.interleave(calls, device, *how_long, track=track)
    for name, samples in times.items():
        result = measure.summarize(samples)
        ms = result['median_ms'] / batch_size
        values = [round(ms, 4), round(1e3 / ms, 3), result['spread']]
        if memory:
            extra = measure.extra_memory(calls[name], device)
            weights = measure.model_bytes(models[name])
            values += [round(extra / MIB, 2), round((extra + weights) / MIB, 2)]
        rows[name] = dict(zip(rows[name], values, strict=True))
    return rows


def format_table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    """Return rows as an aligned Markdown table of those ``columns`` that have values."""
    columns = {k: v for k, v in columns.items() if any(row.get(k) is not None for row in rows)}
    lines = [list(columns.values())]
    lines += [[_cell(key, row.get(key)) for key in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ['-' * width for width in widths])
    return '\n'.join(
        f'| {" | ".join([first.ljust(widths[0]), *map(str.rjust, others, widths[1:])])} |'
        for first, *others in lines
    )


def _cell(key: str, value: Any) -> str:
    if value is None:
        return '-'
    if key == 'params':
        return f'{value / 1e6:.1f}'
    if key == 'flops':
        return f'{value / 1e9:.2f}'
    if key.endswith('images_per_s') and value >= 100:
        return f'{value:.0f}'
    return f'{value:.2f}' if isinstance(value, float) else str(value)
