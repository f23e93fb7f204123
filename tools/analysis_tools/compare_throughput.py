"""Measures the paper's table of ImageNet classifiers on this machine, with its figures beside.

Parameters, FLOPs, and the throughput of inference and of training (forward and backward, without
an optimizer) of all models in turn. The paper's are of one A100; only the ratios of two models can
be compared with ours.

Example:
    python tools/analysis_tools/compare_throughput.py --batch-size 128
    python tools/analysis_tools/compare_throughput.py Swin-T ConvNeXt-T 'VMamba-T (s1l8)' --compile
    python tools/analysis_tools/compare_throughput.py Swin-T my_package.nets:build small CONFIG
"""

import argparse
from typing import Any

from mmengine.logging import MMLogger

from mmvmamba.analysis import figures, throughput
from mmvmamba.analysis.models import MODEL_HELP
from mmvmamba.analysis.paper import IMAGENET, Reported
from mmvmamba.engine import errors

NAMES = {row.name.lower(): row for row in IMAGENET}
COLUMNS = dict(
    name='model',
    params='params (M)',
    flops='GFLOPs',
    top1='paper: top-1',
    inference_images_per_s='inference (images/s)',
    paper_inference='paper: A100',
    train_images_per_s='training (images/s)',
    paper_train='paper: A100',
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'models',
        nargs='*',
        metavar='MODEL',
        help=f'of {", ".join(row.name for row in IMAGENET)} (default: all of these); or '
        f'{MODEL_HELP}'.replace('%', '%%'),
    )
    throughput.add_arguments(parser)
    figures.add_arguments(parser, 'work_dirs/throughput.json')
    return parser.parse_args()


def rows_of(models: list[str]) -> list[Reported]:
    """The rows of the paper's table, or rows without its figures for other models."""
    return [NAMES.get(name.lower(), Reported(name, name)) for name in models] or list(IMAGENET)


def with_paper(row: Reported, measured: dict[str, Any]) -> dict[str, Any]:
    """A row of the output."""
    paper = dict(top1=row.top1, paper_inference=row.inference, paper_train=row.train)
    return dict(name=row.name, model=row.model, **measured, **paper)


def main() -> None:
    args = parse_args()
    device = figures.set_up(args)
    settings = throughput.read_settings(args, device)
    reported = rows_of(args.models)
    measured = throughput.compare(
        [row.model for row in reported],
        settings,
        device,
        args.modes,
        args.seconds,
        args.min_rounds,
    )
    rows = [with_paper(row, measured[row.model]) for row in reported]
    MMLogger.get_current_instance().info(
        f'{settings.text}\n{throughput.format_table(rows, COLUMNS)}\n'
        "Columns headed 'paper' are quoted, not measured."
    )
    results = dict(tool='compare_throughput', settings=throughput.describe(settings), results=rows)
    figures.write_table(args.out, device, results)


if __name__ == '__main__':
    errors.run(main)
