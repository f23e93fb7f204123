"""Shared by the tools in this folder: size and speed of several models, measured side by side."""

from __future__ import annotations

import argparse
import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import figures
import torch
from analysis_model import AnalysisModel, load_model
from mmengine.logging import MMLogger

from mmvmamba.analysis import measure
from mmvmamba.analysis.flops import count_multiply_adds
from mmvmamba.analysis.measure import MIB, Call, Row, size_text

MODES = ('inference', 'train')


@dataclass(frozen=True)
class Settings:
    """Settings that all models of a comparison share."""

    size: tuple[int, int]  # height and width of the images
    batch_size: int
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
    def memory_format(self) -> torch.memory_format:
        """The memory format of images and weights."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def asdict(self) -> dict[str, Any]:
        """Return the settings for a JSON file."""
        return asdict(self) | dict(size=size_text(*self.size))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that :func:`read_settings` reads, but for the size, and ``--modes``."""
    add, positive, on_off = parser.add_argument, figures.positive, argparse.BooleanOptionalAction
    add('--batch-size', type=positive, help='images at a time (default: 128 on a GPU, 8 on a CPU)')
    add('--amp', action=on_off, default=True, help='mixed precision instead of float32')
    add('--compile', action='store_true', help='compile the models with torch.compile')
    add('--channels-last', action=on_off, default=True, help='images and weights in NHWC memory')
    add('--tf32', action=on_off, default=True, help='round the float32 products of a GPU to TF32')
    add(
        '--modes',
        nargs='*',
        choices=MODES,
        default=list(MODES),
        help='timed modes; none without a value (default: inference train)',
    )
    add('--seconds', type=float, default=60, help='for all rounds of a mode (default: 60)')
    add('--min-rounds', type=positive, default=5, help='the least rounds of a mode (default: 5)')
    add('--threads', type=positive, help="CPU threads (default: PyTorch's choice)")


def read_settings(
    args: argparse.Namespace, device: torch.device, size: tuple[int, int]
) -> Settings:
    """Set the number of threads, and return the settings that were given to a tool."""
    if args.threads:
        torch.set_num_threads(args.threads)
    values = {f.name: getattr(args, f.name) for f in fields(Settings) if f.name != 'size'}
    # That of a GPU is the paper's.
    values['batch_size'] = args.batch_size or (8 if device.type == 'cpu' else 128)
    return Settings(size, **values)


def compare(
    specs: Sequence[str], settings: Settings, device: torch.device, modes: Sequence[str] = MODES
) -> dict[str, Row]:
    """Return the results of :func:`count` and :func:`measure_mode` for models, by specification."""
    logger = MMLogger.get_current_instance()
    specs = list(dict.fromkeys(specs))
    logger.info(f'{len(specs)} models, {settings.text}')
    rows: dict[str, Row] = {}
    models: dict[str, AnalysisModel] = {}
    for spec in figures.track(specs):
        model = load_model(spec, size=settings.size)
        rows[spec] = count(model, settings.size)
        if modes:
            models[spec] = model.to(device).to(memory_format=settings.memory_format)
    for mode in modes:
        logger.info(f'{mode}: rounds of all models in turn')
        found = measure_mode(models, settings, device, mode)
        for spec, row in rows.items():
            row |= found[spec]
    return rows


def count(model: AnalysisModel, size: tuple[int, int]) -> Row:
    """Return ``params`` and ``flops`` (multiply-adds for an image) of a model on the CPU.

    A copy on the meta device is counted, where nothing is computed. Models that make tensors of
    their own or ask for values cannot run there and are counted on the CPU. On a GPU attention
    would be one of several ops.
    """
    try:
        shapes = copy.deepcopy(model).to('meta')
        counter = count_multiply_adds(shapes, torch.zeros(1, 3, *size, device='meta'))
    except (RuntimeError, TypeError) as error:
        MMLogger.get_current_instance().info(
            f'{model.name} runs to be counted: on the meta device it raises {type(error).__name__}'
        )
        counter = count_multiply_adds(model, torch.zeros(1, 3, *size))
    return dict(params=sum(p.numel() for p in model.parameters()), flops=counter.total)


def measure_mode(
    models: Mapping[str, AnalysisModel],
    settings: Settings,
    device: torch.device,
    mode: str,
    memory: bool = False,
) -> dict[str, Row]:
    """Time steps of all models in turn.

    Returns:
        dict[str, Row]: By model ``<mode>_ms`` for an image, ``<mode>_images_per_s`` and
        ``<mode>_spread`` and, with ``memory``, ``<mode>_extra_mib`` (the peak above the weights)
        and ``<mode>_mib``. All are None if the GPU's memory is too small.
    """
    keys = ['ms', 'images_per_s', 'spread'] + ['extra_mib', 'mib'] * memory
    rows: dict[str, Row] = {name: {f'{mode}_{key}': None for key in keys} for name in models}
    with _tf32(settings.tf32):
        calls = _make_calls(models, settings, device, mode == 'train')
        times = measure.interleave(
            calls, device, settings.seconds, settings.min_rounds, track=figures.track
        )
        for name, samples in times.items():
            result = measure.summarise(samples)
            values = [
                round(result['median_ms'] / settings.batch_size, 4),
                round(1e3 * settings.batch_size / result['median_ms'], 3),
                result['spread'],
            ]
            if memory:
                extra = measure.extra_memory(calls[name], device)
                weights = measure.model_bytes(models[name])
                values += [round(extra / MIB, 2), round((extra + weights) / MIB, 2)]
            rows[name] = dict(zip(rows[name], values, strict=True))
    return rows


def _make_calls(
    models: Mapping[str, AnalysisModel], settings: Settings, device: torch.device, train: bool
) -> dict[str, Call]:
    """Return a step of each model on the same random images."""
    if settings.compile:
        measure.allow_recompilation()
    images = torch.randn(settings.batch_size, 3, *settings.size, device=device)
    images = images.contiguous(memory_format=settings.memory_format)
    options = dict(train=train, amp=settings.amp, compile=settings.compile)
    return {
        name: measure.make_call(model.train(train), images, **options)
        for name, model in models.items()
    }


@contextlib.contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    """Allow or forbid TF32 in products and convolutions; restore the setting at the end."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision('high' if allowed else 'highest')
    torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def format_table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    """Return rows as an aligned Markdown table of the ``columns``, with their headings."""
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
