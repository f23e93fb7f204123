"""Measure and plot how models scale with the image size.

The plot shows parameters, multiply-adds, inference, training and peak memory over the size, and the
exponent p of quantities that grow as pixels^p. With a dataset and checkpoints, it also shows the
accuracy without fine-tuning. The models run in turn for each size, in one process. A training step
is a forward and a backward pass.

Example:
    python tools/analysis_tools/resolution_scaling.py tiny deit-small_4xb256_in1k \
        swin-tiny_16xb64_in1k swin-tiny_16xb64_in1k+window_size=scaled \
        convnext-tiny_32xb128_in1k xcit-small-12-p16_3rdparty_in1k --sizes 224 384 512 768
    python tools/analysis_tools/resolution_scaling.py CONFIG --checkpoint epoch_300.pth \
        --dataset data/imagenet/val --sizes 224 288 384 512 640 768 --modes
"""

import argparse
import logging
import math
import os
import statistics
from collections.abc import Sequence

# Read when torch is imported: keeps the profiler from logging each use.
os.environ['KINETO_LOG_LEVEL'] = '99'

import figures
import throughput
import torch
from accuracy import top1_accuracy
from analysis_model import AnalysisModel, load_model
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from mmengine.logging import MMLogger
from paper import display_name
from throughput import Settings

from mmvmamba.analysis import measure, plotting
from mmvmamba.analysis.measure import Row, parse_size, size_text
from mmvmamba.engine import errors
from mmvmamba.engine.errors import UserError

SIZES = (224, 384, 512, 768, 1024, 1536)
#: Panels of the plot: key of a row, title, unit, and the key whose growth is fitted.
PANELS = (
    ('flops', 'multiply-adds (G)', 1e9, 'flops'),
    ('inference_ms', 'inference (ms per image)', 1, 'inference_ms'),
    ('train_ms', 'training step (ms per image)', 1, 'train_ms'),
    ('inference_mib', 'peak memory of inference (MiB)', 1, 'inference_extra_mib'),
    ('train_mib', 'peak memory of training (MiB)', 1, 'train_extra_mib'),
    ('top1', 'top-1 accuracy (%)', 1, None),
)
COLUMNS = 2
DASHES = ('-', '--', ':', '-.')  # of the models of one family


def parse_args() -> argparse.Namespace:
    parser = figures.make_parser(__doc__, 'work_dirs/resolution_scaling.png')
    add = parser.add_argument
    add('models', nargs='+', metavar='MODEL', help=figures.MODEL_HELP)
    figures.add_checkpoints(parser)
    add('--dataset', help='folder with one subfolder of images per class, to test the checkpoints')
    add(
        '--sizes',
        type=parse_size,
        nargs='+',
        metavar='SIZE',
        default=[(side, side) for side in SIZES],
        help=f'image sizes, such as 800x1333 (default: {" ".join(map(str, SIZES))})',
    )
    throughput.add_arguments(parser)
    return parser.parse_args()


def check_args(args: argparse.Namespace) -> None:
    """Check options against each other, and sort the sizes."""
    args.checkpoint = figures.read_checkpoints(args)
    if args.dataset and not any(args.checkpoint):
        raise UserError('--dataset needs --checkpoint: random weights have no accuracy')
    oblong = [size_text(*size) for size in args.sizes if size[0] != size[1]]
    if args.dataset and oblong:
        raise UserError(f'--dataset needs square --sizes, but got {oblong}')
    args.sizes = sorted(set(args.sizes), key=math.prod)


def build(args: argparse.Namespace, size: Sequence[int]) -> dict[str, AnalysisModel]:
    """Build all models for images of a size, in the order of the command line, by name."""
    models: dict[str, AnalysisModel] = {}
    for i, (spec, file) in enumerate(zip(args.models, args.checkpoint, strict=True), 1):
        torch.manual_seed(args.seed)
        model = load_model(spec, file, size=size)
        name = f'{model.name} ({model.weights})' if file else model.name
        # Files in different folders may have the same name, and a model may be given twice.
        models[f'{name} #{i}' if name in models else name] = model
    return models


def measure_size(args: argparse.Namespace, settings: Settings) -> list[Row]:
    """Return a row for each model at one size."""
    size = settings.size
    models = build(args, size)
    rows: dict[str, Row] = {}
    for (name, model), file in zip(models.items(), args.checkpoint, strict=True):
        rows[name] = dict(model=name, size=size_text(*size), pixels=math.prod(size))
        rows[name] |= throughput.count(model, size)
        settings.move(model)
        # Before the steps of training, which change the statistics of a BatchNorm.
        if args.dataset and file:
            data = args.dataset, size[0], settings.batch_size
            rows[name]['top1'] = round(top1_accuracy(model, *data, args.device), 3)
    for mode in args.modes:
        found = throughput.measure_mode(models, settings, mode, memory=True)
        for name, row in found.items():
            rows[name] |= row
    return list(rows.values())


def growth_exponent(pixels: Sequence[float], costs: Sequence[float]) -> float:
    """Return the p of costs that grow as pixels^p, by least squares of the logarithms."""
    x, y = ([math.log(value) for value in values] for values in (pixels, costs))
    return statistics.linear_regression(x, y).slope


def exponents(rows: Sequence[Row]) -> dict[str, dict[str, Row]]:
    """Fit the p of costs that grow as pixels^p, of models that were measured at several sizes."""
    found: dict[str, dict[str, Row]] = {}
    for model in dict.fromkeys(row['model'] for row in rows):
        found[model] = {}
        for key in (key for *_, key in PANELS if key):
            points = [row for row in rows if row['model'] == model and (row.get(key) or 0) > 0]
            if len({row['pixels'] for row in points}) > 1:
                pixels, costs = [row['pixels'] for row in points], [row[key] for row in points]
                found[model][key] = dict(
                    p=round(growth_exponent(pixels, costs), 3),
                    sizes=[row['size'] for row in points],
                )
    return found


def power_text(power: Row, sizes: int) -> str:
    """Return an exponent, with the sizes of its fit unless these are all ``sizes``."""
    fitted = '' if len(power['sizes']) == sizes else f'; {", ".join(power["sizes"])}'
    return f'({power["p"]:.2f}{fitted})'


def draw_panel(
    ax: Axes, rows: Sequence[Row], panel: tuple, powers: dict[str, dict[str, Row]]
) -> list[plotting.Label]:
    """Draw a line for each model over the side of a square of as many pixels; return its labels."""
    key, title, unit, fitted = panel
    names = {model: f'{display_name(model):.32}' for model in powers}
    colors = plotting.colors_of(names.values())
    ticks = sorted({row['pixels'] ** 0.5 for row in rows})
    labels, drawn = [], []
    for model, name in names.items():
        points = [
            (row['pixels'] ** 0.5, row[key] / unit)
            for row in rows
            if row['model'] == model and row.get(key) is not None
        ]
        if not points:
            continue
        style = DASHES[drawn.count(colors[name]) % len(DASHES)]
        drawn.append(colors[name])
        ax.plot(*zip(*points, strict=True), f'o{style}', color=colors[name], markersize=4)
        power = powers[model].get(fitted)
        text = f'{name} {power_text(power, len(ticks))}' if power else name
        labels.append((*points[-1], text, colors[name]))
    ax.set_xscale('log')
    if fitted:
        ax.set_yscale('log')
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    ax.set_xticks(ticks, [f'{tick:.0f}' for tick in ticks])
    ax.minorticks_off()
    ax.yaxis.set_major_formatter('{x:g}')
    ax.set(title=title, xlabel='image side (px)')
    return labels


def draw(rows: Sequence[Row], powers: dict[str, dict[str, Row]], heading: str) -> Figure:
    """Draw a panel for each quantity that was measured."""
    panels = [panel for panel in PANELS if any(row.get(panel[0]) is not None for row in rows)]
    columns = min(COLUMNS, len(panels))
    lines = math.ceil(len(panels) / columns)
    height = max(2.6, 0.17 * len(powers) + 0.9)
    figure = Figure(figsize=(3.8 * columns, height * lines + 0.5))
    axes = figure.subplots(lines, columns, squeeze=False).flat
    labels = [draw_panel(ax, rows, panel, powers) for ax, panel in zip(axes, panels, strict=False)]
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    figure.supxlabel(heading, x=0.01, ha='left', size=9, color='#444444')
    figure.draw_without_rendering()
    for ax, part in zip(axes, labels, strict=False):
        plotting.label_line_ends(ax, part)
    return figure


def main() -> None:
    args = parse_args()
    check_args(args)
    figures.set_up(args)
    logger = MMLogger.get_current_instance()
    logging.getLogger(measure.__name__).setLevel(logging.WARNING)
    rows: list[Row] = []
    for i, size in enumerate(args.sizes):
        settings = throughput.read_settings(args, size)
        logger.info(f'{i + 1} of {len(args.sizes)}: {settings.text}')
        for row in measure_size(args, settings):
            text = ', '.join(f'{key} {value}' for key, value in row.items() if key != 'model')
            logger.info(f'  {row["model"]}: {text}')
            rows.append(row)
    powers = exponents(rows)
    results = dict(
        tool='resolution_scaling',
        settings=settings.asdict() | dict(size=None),
        checkpoints=[file and os.path.basename(file) for file in args.checkpoint],
        dataset=args.dataset and os.path.basename(os.path.normpath(args.dataset)),
        exponents=powers,
        results=rows,
    )
    heading = f'{figures.machine_text(args.device)}, batch {settings.batch_size}, '
    heading += f'{"AMP" if settings.amp else "float32"}{", compiled" * settings.compile}\n'
    heading += 'In parentheses: p of a cost that grows as (number of pixels) to the power p; '
    heading += 'memory is fitted without the weights'
    figures.write(args, results, draw(rows, powers, heading))


if __name__ == '__main__':
    errors.run(main, ValueError, TypeError)
