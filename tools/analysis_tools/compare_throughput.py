"""Measure the paper's table of ImageNet classifiers on this machine, next to the paper's numbers.

Parameters, FLOPs, and the throughput of inference and of training (forward and backward, without
an optimizer) of all models in turn. The paper's throughputs are of one A100, so only ratios of two
models can be compared. The picture has the paper's accuracy over the throughput and, with
--downstream, its results on COCO and ADE20K over its accuracy on ImageNet.

Example:
    python tools/analysis_tools/compare_throughput.py --batch-size 128
    python tools/analysis_tools/compare_throughput.py Swin-T ConvNeXt-T 'VMamba-T (s1l8)' --compile
    python tools/analysis_tools/compare_throughput.py Swin-T my_package.nets:build small CONFIG
    python tools/analysis_tools/compare_throughput.py --downstream --modes
"""

import argparse

import figures
import throughput
import tradeoff
from mmengine.logging import MMLogger
from paper import IMAGENET, Reported

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
    parser = figures.make_parser(__doc__, 'work_dirs/throughput.json')
    parser.add_argument(
        'models',
        nargs='*',
        metavar='MODEL',
        help=f'one or more of {", ".join(row.name for row in IMAGENET)} (default: all), or '
        f'{figures.MODEL_HELP}',
    )
    parser.add_argument(
        '--downstream',
        action='store_true',
        help='quote the box AP of Mask R-CNN (1x) on COCO and the mIoU of UperNet on ADE20K too',
    )
    figures.add_size(parser, 224)
    throughput.add_arguments(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    figures.set_up(args)
    settings = throughput.read_settings(args, args.size)
    models = [NAMES.get(name.lower(), Reported(name, name)) for name in args.models] or IMAGENET
    specs = [row.model for row in models]
    measured = throughput.compare(specs, settings, args.modes)
    downstream = DOWNSTREAM if args.downstream else {}
    rows = [row.row(measured[row.model], *downstream) for row in models]
    MMLogger.get_current_instance().info(
        f'{settings.text}\n{throughput.format_table(rows, COLUMNS | downstream)}\n'
        "Columns headed 'paper' are quoted, not measured."
    )
    groups = [tradeoff.speed_group(settings.text, rows)]
    if any(row.get(key) is not None for row in rows for key in downstream):
        title = "the paper's: Mask R-CNN 1x on COCO, UperNet 160k on ADE20K, one scale"
        groups.append(tradeoff.downstream_group(title, rows))
    results = dict(tool='compare_throughput', settings=settings.asdict(), results=rows)
    figures.write(args, results, tradeoff.draw(groups))


if __name__ == '__main__':
    errors.run(main, ValueError, TypeError)
