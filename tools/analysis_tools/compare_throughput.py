"""Repeat the paper's tables on this machine, next to the published numbers.

The tables show parameters, FLOPs, and the throughput of inference and training (forward and
backward pass, no optimizer). The models of a table run in turn; rows that share a model show the
same numbers. The published throughputs are for one A100, so compare only ratios between models. The
plots show the published accuracy over the throughput, and the published results on COCO and ADE20K.

Example:
    python tools/analysis_tools/compare_throughput.py --batch-size 128
    python tools/analysis_tools/compare_throughput.py Swin-T ConvNeXt-T 'VMamba-T (s1l8)' --compile
    python tools/analysis_tools/compare_throughput.py Swin-T my_package.nets:build small CONFIG
    python tools/analysis_tools/compare_throughput.py steps scan --modes inference --batch-size 32
"""

import argparse
import csv
from collections.abc import Sequence
from dataclasses import asdict

import figures
import throughput
import tradeoff
from mmengine.logging import MMLogger
from paper import TABLES, Reported

from mmvmamba.engine import errors

COLUMNS = dict(
    name='model',
    params='params (M)',
    flops='GFLOPs',
    top1='paper: top-1',
    inference_images_per_s='inference (images/s)',
    paper_inference='paper: A100 inference',
    train_images_per_s='training (images/s)',
    paper_train='paper: A100 training',
    box_ap='paper: box AP',
    miou='paper: mIoU',
)


def parse_args() -> argparse.Namespace:
    parser = figures.make_parser(__doc__, 'work_dirs/throughput.png')
    parser.add_argument(
        'models',
        nargs='*',
        default=['imagenet'],
        metavar='TABLE_OR_MODEL',
        help=f'a table of the paper, {", ".join(TABLES)}; a model of its imagenet table, such as '
        f'Swin-T; or {figures.MODEL_HELP} (default: imagenet)',
    )
    figures.add_size(parser, 224)
    throughput.add_arguments(parser)
    return parser.parse_args()


def find_tables(words: Sequence[str]) -> dict[str, Sequence[Reported]]:
    """Return the tables that are named, and one of the models that are named, by name."""
    tables = {word: TABLES[word] for word in words if word in TABLES}
    reported = {row.name.lower(): row for row in TABLES['imagenet']}
    models = [word for word in words if word not in TABLES]
    rows = [reported.get(word.lower(), Reported(word, word)) for word in models]
    return tables | ({'models': rows} if rows else {})


def main() -> None:
    args = parse_args()
    figures.set_up(args)
    settings = throughput.read_settings(args, args.size)
    tables = {}
    for name, table in find_tables(args.models).items():
        measured = throughput.compare([row.model for row in table], settings, args.modes)
        part = [dict(table=name) | asdict(row) | measured[row.model] for row in table]
        text = throughput.format_table(part, COLUMNS)
        MMLogger.get_current_instance().info(f'{name}\n{text}')
        tables[name] = part
    rows = [row for part in tables.values() for row in part]
    results = dict(tool='compare_throughput', settings=settings.asdict(), results=rows)
    pictures = tradeoff.draw(tables, figures.machine_text(args.device), settings.short)
    figures.write(args, results, pictures)
    with args.out.with_suffix('.csv').open('w', newline='', encoding='utf-8') as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


if __name__ == '__main__':
    errors.run(main, ValueError, TypeError)
