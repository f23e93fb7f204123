"""Measures how models scale with the size of their images, and draws it.

Parameters, multiply-adds, inference, training and peak memory over the size, with the exponent p of
each that grows as pixels^p; with a data set and checkpoints the accuracy too, without fine-tuning.
The models of a size run in turn, in one process; a training step is forward and backward.

Example:
    python tools/analysis_tools/resolution_scaling.py tiny deit-small_4xb256_in1k \
        swin-tiny_16xb64_in1k swin-tiny_16xb64_in1k+window_size=scaled \
        convnext-tiny_32xb128_in1k xcit-small-12-p16_3rdparty_in1k --sizes 224 384 512 768
    python tools/analysis_tools/resolution_scaling.py CONFIG --checkpoint epoch_300.pth \
        --dataset data/imagenet/val --sizes 224 288 384 512 640 768 --no-train
"""

import argparse
import logging
import os
from collections.abc import Sequence

# Without it the profiler writes lines of its own at each use; it is read when torch is imported.
os.environ.setdefault('KINETO_LOG_LEVEL', '99')

import torch  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from mmengine.logging import MMLogger  # noqa: E402

from mmvmamba.analysis import figures, measure  # noqa: E402
from mmvmamba.analysis.flops import count_multiply_adds  # noqa: E402
from mmvmamba.analysis.measure import MIB, Row, parse_size, size_text  # noqa: E402
from mmvmamba.analysis.models import (  # noqa: E402
    CHECKPOINT_HELP,
    MODEL_HELP,
    AnalysisModel,
    load_model,
)
from mmvmamba.analysis.scaling import evaluation_loader, growth_exponent, top1_accuracy  # noqa: E402
from mmvmamba.engine import errors  # noqa: E402
from mmvmamba.engine.errors import UserError  # noqa: E402

SIZES = ((224, 224), (384, 384), (512, 512), (768, 768), (1024, 1024), (1536, 1536))
#: What is drawn: the key of a row, its name, and the key whose growth is fitted.
PANELS = (
    ('gflops', 'multiply-adds (G)', 'gflops'),
    ('inference_ms', 'inference (ms / image)', 'inference_ms'),
    ('train_ms', 'training (ms / image)', 'train_ms'),
    ('inference_mib', 'peak memory, inference (MiB)', 'inference_extra_mib'),
    ('train_mib', 'peak memory, training (MiB)', 'train_extra_mib'),
    ('top1', 'top-1 accuracy (%)', None),
)
COLUMNS = 3


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('models', nargs='+', metavar='MODEL', help=MODEL_HELP)
    add(
        '--sizes',
        nargs='+',
        type=parse_size,
        default=SIZES,
        metavar='SIZE',
        help='224 or 800x1333 (default: 224 384 512 768 1024 1536)',
    )
    add('--batch-size', type=int, default=1, help='images at a time (default: 1)')
    add('--precision', choices=('fp32', 'amp'), default='fp32')
    add('--run', choices=('eager', 'compiled'), default='eager', help='with torch.compile or not')
    add(
        '--seconds',
        type=float,
        default=5,
        help='for each comparison, warm-up excluded (default: 5)',
    )
    add('--min-rounds', type=int, default=3, help='the least rounds of a comparison (default: 3)')
    add('--threads', type=int, help="CPU threads (default: PyTorch's choice)")
    add('--no-train', action='store_true', help='leave out what concerns training')
    add('--no-memory', action='store_true', help='leave out the peak memory')
    add(
        '--checkpoint',
        nargs='+',
        metavar='FILE',
        help=f"for each model, in order, {CHECKPOINT_HELP}, or 'none'",
    )
    add(
        '--dataset',
        help='a folder with a folder of images for each class, or the config of a classifier '
        'with test data: draws the accuracy of the models with checkpoints',
    )
    figures.add_arguments(parser, 'work_dirs/resolution_scaling.png')
    return parser.parse_args()


def check_args(args: argparse.Namespace) -> None:
    """Checks what is right or wrong beside other arguments."""
    files = args.checkpoint or ['none'] * len(args.models)
    if len(files) != len(args.models):
        raise UserError(
            f'--checkpoint must name one for each of the {len(args.models)} models, but has '
            f'{len(files)}'
        )
    args.checkpoint = [None if file == 'none' else file for file in files]
    if args.batch_size < 1:
        raise UserError('--batch-size must be at least 1')
    if args.dataset and not any(args.checkpoint):
        raise UserError('--dataset needs --checkpoint: random weights have no accuracy')
    oblong = [size_text(*size) for size in args.sizes if size[0] != size[1]]
    if args.dataset and oblong:
        raise UserError(f'--dataset needs square --sizes, but got {oblong}')
    args.sizes = sorted(set(args.sizes), key=lambda size: size[0] * size[1])


def build(
    args: argparse.Namespace, size: Sequence[int], device: torch.device
) -> list[AnalysisModel]:
    """All models for images of this size."""
    models = []
    for spec, checkpoint in zip(args.models, args.checkpoint, strict=True):
        torch.manual_seed(args.seed)
        models.append(load_model(spec, checkpoint, size=size).to(device))
    return models


def measure_calls(
    args: argparse.Namespace, models: list[AnalysisModel], images: torch.Tensor, mode: str
) -> list[Row]:
    """Time and peak memory of one step of each model, in turn; {} for one that found no memory."""
    train = mode == 'train'
    if args.run == 'compiled':
        measure.allow_recompilation()
    calls = {}
    for i, model in enumerate(models):
        model.train(train)
        calls[str(i)] = measure.make_call(model, images, train, args.precision, args.run)
    times = measure.interleave(calls, images.device, args.seconds, args.min_rounds)
    rows: list[Row] = []
    for i, model in enumerate(models):
        row: Row = {}
        if str(i) in times:
            found = measure.summarise(times[str(i)])
            row[f'{mode}_ms'] = round(found['median_ms'] / len(images), 4)
            row[f'{mode}_images_per_s'] = round(1e3 * len(images) / found['median_ms'], 3)
            row[f'{mode}_spread'] = found['spread']
            if not args.no_memory:
                extra = measure.extra_memory(calls[str(i)], images.device)
                row[f'{mode}_extra_mib'] = round(extra / MIB, 2)
                row[f'{mode}_mib'] = round((extra + measure.model_bytes(model)) / MIB, 2)
        rows.append(row)
        model.eval()
    return rows


def measure_size(args: argparse.Namespace, size: Sequence[int], device: torch.device) -> list[Row]:
    """One row for each model at one size."""
    models = build(args, size, device)
    images = torch.randn(args.batch_size, 3, *size, device=device)
    names = (
        f'{model.name} ({os.path.basename(file)})' if file else model.name
        for model, file in zip(models, args.checkpoint, strict=True)
    )
    pixels = size[0] * size[1]
    rows: list[Row] = [dict(model=name, size=size_text(*size), pixels=pixels) for name in names]
    for mode in ('inference',) if args.no_train else ('inference', 'train'):
        for row, found in zip(rows, measure_calls(args, models, images, mode), strict=True):
            row.update(found)
    for row, model, file in zip(rows, models, args.checkpoint, strict=True):
        if args.dataset and file:
            loader = evaluation_loader(args.dataset, size[0], args.batch_size)
            row['top1'] = round(top1_accuracy(model, loader, device), 3)
        row['params'] = sum(p.numel() for p in model.parameters())
        # Nothing is computed on the meta device; it is the last that the model is used for.
        counted = count_multiply_adds(model.to('meta'), torch.zeros(1, 3, *size, device='meta'))
        row['gflops'] = round(counted.total / 1e9, 6)
    return rows


def exponents(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """For each model the exponent of each cost that was measured at two sizes or more.

    That of the memory is the exponent of what is used above the weights.
    """
    found: dict[str, dict[str, float]] = {}
    for model in dict.fromkeys(row['model'] for row in rows):
        found[model] = {}
        for key in (key for _, _, key in PANELS if key):
            points = [row for row in rows if row['model'] == model and row.get(key, 0) > 0]
            if len({row['pixels'] for row in points}) > 1:
                pixels, costs = [row['pixels'] for row in points], [row[key] for row in points]
                found[model][key] = round(growth_exponent(pixels, costs), 3)
    return found


def draw_panel(
    place: Axes, rows: Sequence[Row], panel: tuple, powers: dict[str, dict[str, float]]
) -> None:
    """One quantity over the side of a square of as many pixels, a line for each model."""
    key, title, fitted = panel
    ticks = sorted({row['pixels'] ** 0.5 for row in rows})
    for i, model in enumerate(dict.fromkeys(row['model'] for row in rows)):
        own = [row for row in rows if row['model'] == model and key in row]
        points = [(row['pixels'] ** 0.5, row[key]) for row in own]
        power = powers[model].get(fitted)
        label = model if power is None else f'{model}: pixels$^{{{power:.2f}}}$'
        if points:
            place.plot(*zip(*points, strict=True), 'o-', markersize=3, color=f'C{i}', label=label)
    place.set_xscale('log')
    if key != 'top1':
        place.set_yscale('log')
    place.set_xticks(ticks, [f'{tick:.0f}' for tick in ticks], fontsize=7)
    place.minorticks_off()
    place.grid(alpha=0.3)
    place.set_title(title, fontsize=9)
    place.set_xlabel('image side (pixels)', fontsize=8)
    place.legend(fontsize=6)


def draw(rows: Sequence[Row], powers: dict[str, dict[str, float]]) -> Figure:
    """A panel for each quantity that was measured."""
    panels = [panel for panel in PANELS if any(panel[0] in row for row in rows)]
    columns = min(COLUMNS, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(4.3 * columns, 3.6 * lines), layout='constrained')
    axes = figure.subplots(lines, columns, squeeze=False)
    for place in axes.flat[len(panels) :]:
        place.set_axis_off()
    for place, panel in zip(axes.flat, panels, strict=False):
        draw_panel(place, rows, panel, powers)
    return figure


def log_rows(rows: Sequence[Row]) -> None:
    """One line for each model."""
    for row in rows:
        text = ', '.join(f'{key} {value}' for key, value in row.items() if key != 'model')
        MMLogger.get_current_instance().info(f'  {row["model"]}: {text}')


def main() -> None:
    args = parse_args()
    check_args(args)
    device = figures.set_up(args)
    logging.getLogger('mmvmamba.analysis').setLevel(logging.WARNING)
    if args.threads:
        torch.set_num_threads(args.threads)
    rows: list[Row] = []
    for i, size in enumerate(args.sizes):
        progress = f'size {size_text(*size)}, {i + 1} of {len(args.sizes)}'
        MMLogger.get_current_instance().info(progress)
        part = measure_size(args, size, device)
        log_rows(part)
        rows += part
    powers = exponents(rows)
    results = dict(
        tool='resolution_scaling',
        batch_size=args.batch_size,
        precision=args.precision,
        run=args.run,
        checkpoints=[file and os.path.basename(file) for file in args.checkpoint],
        dataset=args.dataset and os.path.basename(os.path.normpath(args.dataset)),
        exponents=powers,
        results=rows,
    )
    figures.write_figure(draw(rows, powers), args.out, device, results)


if __name__ == '__main__':
    errors.run(main)
