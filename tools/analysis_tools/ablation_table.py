"""Print the paper's ablation tables: sizes counted, speeds measured here, accuracies quoted.

The models of a table run in turn; rows that share a model show the same numbers. Accuracies and
throughputs of an A100 are the paper's. The picture has these accuracies over the throughput.

Example:
    python tools/analysis_tools/ablation_table.py
    python tools/analysis_tools/ablation_table.py steps --modes inference --batch-size 32
    python tools/analysis_tools/ablation_table.py scan init --modes
"""

import argparse

import figures
import throughput
import tradeoff
from mmengine.logging import MMLogger
from paper import ABLATIONS

from mmvmamba.engine import errors

COLUMNS = dict(
    name='model',
    params='params (M)',
    flops='GFLOPs',
    inference_images_per_s='inference (images/s)',
    train_images_per_s='training (images/s)',
    top1='paper: top-1',
)
A100 = dict(paper_inference='paper: A100 inference', paper_train='paper: A100 training')


def parse_args() -> argparse.Namespace:
    parser = figures.make_parser(__doc__, 'work_dirs/ablations.json')
    parser.add_argument(
        'tables',
        nargs='*',
        metavar='TABLE',
        help=f'one or more of {", ".join(ABLATIONS)} (default: all)',
    )
    figures.add_size(parser, 224)
    throughput.add_arguments(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    tables = list(dict.fromkeys(args.tables)) or list(ABLATIONS)
    for name in tables:
        if name not in ABLATIONS:
            raise errors.UserError(f'TABLE must be one of {list(ABLATIONS)}, but got {name!r}')
    figures.set_up(args)
    settings = throughput.read_settings(args, args.size)
    logger = MMLogger.get_current_instance()
    rows, groups = [], []
    for table in tables:
        specs = [row.model for row in ABLATIONS[table]]
        measured = throughput.compare(specs, settings, args.modes)
        part = [dict(table=table) | row.row(measured[row.model]) for row in ABLATIONS[table]]
        columns = COLUMNS | (A100 if any(row['paper_inference'] for row in part) else {})
        logger.info(f'{table}\n{throughput.format_table(part, columns)}')
        rows += part
        groups.append(tradeoff.speed_group(f'{table}: {settings.text}', part))
    logger.info("Columns headed 'paper' are quoted, not measured.")
    results = dict(tool='ablation_table', settings=settings.asdict(), results=rows)
    figures.write(args, results, tradeoff.draw(groups))


if __name__ == '__main__':
    errors.run(main, ValueError, TypeError)
