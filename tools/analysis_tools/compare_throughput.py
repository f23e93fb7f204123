"""Measures the paper's table of ImageNet classifiers on this machine, with its figures beside.

Parameters, FLOPs, and the throughput of inference and of training (forward and backward, without
an optimizer) of all models in turn. The paper's are of one A100; only the ratios of two models can
be compared with ours. The picture has the paper's accuracy over the throughput, and with
--downstream what it reports on COCO and ADE20K over its accuracy on ImageNet.

Example:
    python tools/analysis_tools/compare_throughput.py --batch-size 128
    python tools/analysis_tools/compare_throughput.py Swin-T ConvNeXt-T 'VMamba-T (s1l8)' --compile
    python tools/analysis_tools/compare_throughput.py Swin-T my_package.nets:build small CONFIG
    python tools/analysis_tools/compare_throughput.py --downstream --modes
"""

import argparse
from typing import Any

from mmengine.logging import MMLogger

from mmvmamba.analysis import figures, throughput, tradeoff
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
DOWNSTREAM = dict(box_ap='paper: box AP', miou='paper: mIoU')


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
    parser.add_argument(
        '--downstream',
        action='store_true',
        help='quote the box AP of Mask R-CNN (1x) on COCO and the mIoU of UperNet on ADE20K too',
    )
    throughput.add_arguments(parser)
    figures.add_arguments(parser, 'work_dirs/throughput.json')
    return parser.parse_args()


def rows_of(models: list[str]) -> list[Reported]:
    """The rows of the paper's table, or rows without its figures for other models."""
    return [NAMES.get(name.lower(), Reported(name, name)) for name in models] or list(IMAGENET)


def with_paper(row: Reported, measured: dict[str, Any], downstream: bool) -> dict[str, Any]:
    """A row of the output."""
    paper = dict(top1=row.top1, paper_inference=row.inference, paper_train=row.train)
    if downstream:
        paper |= dict(box_ap=row.box_ap, miou=row.miou)
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
    rows = [with_paper(row, measured[row.model], args.downstream) for row in reported]
    columns = COLUMNS | (DOWNSTREAM if args.downstream else {})
    MMLogger.get_current_instance().info(
        f'{settings.text}\n{throughput.format_table(rows, columns)}\n'
        "Columns headed 'paper' are quoted, not measured."
    )
    results = dict(tool='compare_throughput', settings=throughput.describe(settings), results=rows)
    groups = [tradeoff.speed_group(settings.text, rows)]
    if any(row.get(key) is not None for row in rows for key in DOWNSTREAM):
        title = "the paper's: Mask R-CNN 1x on COCO, UperNet 160k on ADE20K, one scale"
        groups.append(tradeoff.downstream_group(title, rows))
    figures.write_table(args.out, device, results, tradeoff.draw(groups))


if __name__ == '__main__':
    errors.run(main)
