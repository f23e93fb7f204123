"""Check the data of a config: annotation files, images, label maps and classes."""

import argparse

from mmengine.registry import init_default_scope

from mmvmamba.engine import cli, console, errors
from mmvmamba.engine.checks.classes import check_dataset_classes
from mmvmamba.engine.checks.configs import check_data
from mmvmamba.engine.checks.datasets import STAGES, check_datasets
from mmvmamba.engine.errors import UserError


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    cli.add_config_arguments(parser)
    parser.add_argument(
        '--stages', nargs='+', choices=STAGES, default=STAGES, help='data loaders (default: all)'
    )
    parser.add_argument(
        '--sample',
        type=int,
        default=64,
        help='number of images to decode in each dataset, 0 for all (default: 64)',
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if args.sample < 0:
        raise UserError(f'--sample must not be negative, but got {args.sample}')
    with console.concise():
        check(args)


def check(args: argparse.Namespace) -> None:
    cfg = cli.load_config(args)
    init_default_scope(cli.task_of(cfg) or 'mmengine')
    check_data(cfg, *args.stages)
    report = check_datasets(cfg, tuple(args.stages), args.sample or None)
    groups = list(report.groups())
    for group in groups:
        print(f'{group.severity}: {group}')
    count = len(list(report.groups('error')))
    if count:
        raise UserError(f'the data has {count} kind(s) of errors; see above')
    for stage in args.stages:  # as the tools do when they build the datasets
        check_dataset_classes((cfg.get(f'{stage}_dataloader') or {}).get('dataset'))
    decoded = f'up to {args.sample} images' if args.sample else 'all images'
    print(f'no errors; {decoded} of each dataset were decoded')


if __name__ == '__main__':
    errors.run(main)
