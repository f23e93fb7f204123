"""Prints the paper's ablation tables: sizes counted, speeds measured here, accuracies quoted.

The models of a table run in turn; rows that share a model show the same figures. Accuracies and
throughputs of an A100 are the paper's. The picture has these accuracies over the throughput.

Example:
    python tools/analysis_tools/ablation_table.py
    python tools/analysis_tools/ablation_table.py steps --modes inference --batch-size 32
    python tools/analysis_tools/ablation_table.py scan init --modes
"""

import argparse
from collections.abc import Sequence
from typing import Any

from mmengine.logging import MMLogger

from mmvmamba.analysis import figures, throughput, tradeoff
from mmvmamba.analysis.paper import ABLATIONS
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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ', '.join(ABLATIONS)
    parser.add_argument(
        'tables', nargs='*', metavar='TABLE', help=f'of {names} (default: all of these)'
    )
    throughput.add_arguments(parser)
    figures.add_arguments(parser, 'work_dirs/ablations.json')
    return parser.parse_args()


def check_tables(tables: Sequence[str]) -> list[str]:
    """The tables to print, each once."""
    for name in tables:
        if name not in ABLATIONS:
            raise errors.UserError(f'TABLE must be one of {list(ABLATIONS)}, but got {name!r}')
    return list(dict.fromkeys(tables)) or list(ABLATIONS)


def rows_of(table: str, measured: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of a table with what was measured and what the paper says."""
    return [
        dict(table=table, name=row.name, model=row.model, **measured[row.model])
        | dict(top1=row.top1, paper_inference=row.inference, paper_train=row.train)
        for row in ABLATIONS[table]
    ]


def main() -> None:
    args = parse_args()
    tables = check_tables(args.tables)
    device = figures.set_up(args)
    settings = throughput.read_settings(args, device)
    logger = MMLogger.get_current_instance()
    rows, groups = [], []
    for table in tables:
        specs = [row.model for row in ABLATIONS[table]]
        measured = throughput.compare(
            specs, settings, device, args.modes, args.seconds, args.min_rounds
        )
        part = rows_of(table, measured)
        columns = COLUMNS | (A100 if any(row['paper_inference'] for row in part) else {})
        logger.info(f'{table}\n{throughput.format_table(part, columns)}')
        rows += part
        groups.append(tradeoff.speed_group(f'{table}: {settings.text}', part))
    logger.info("Columns headed 'paper' are quoted, not measured.")
    results = dict(tool='ablation_table', settings=throughput.describe(settings), results=rows)
    figures.write_table(args.out, device, results, tradeoff.draw(groups))


if __name__ == '__main__':
    errors.run(main)
