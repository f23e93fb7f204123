"""Count the parameters and the multiply-adds of a classifier, detector or segmentor."""

import argparse

from mmvmamba.analysis.model_flops import Complexity, count_config
from mmvmamba.engine import cli, errors


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    cli.add_config_arguments(parser)
    parser.add_argument(
        '--shape',
        type=int,
        nargs=2,
        metavar=('H', 'W'),
        help='size of the image (default: 224 224 for classification, 800 1280 for detection and '
        '512 2048 for segmentation, as in the paper)',
    )
    parser.add_argument('--by-op', action='store_true', help='list the cost of each op')
    return parser.parse_args()


def report(result: Complexity, by_op: bool) -> str:
    height, width = result.shape
    lines = [
        f'Input shape: {height} x {width}',
        f'Parameters: {result.params:,} ({result.params / 1e6:.3f} M)',
        f'FLOPs: {result.flops / 1e9:.9f} G (one multiply-add is one)',
    ]
    if result.published != result.flops:
        lines.append(
            f'FLOPs as published: {result.published / 1e9:.3f} G (the products around the scans '
            'rounded to four digits)'
        )
    if by_op:
        lines += [f'  {op}: {count / 1e9:.6f} G' for op, count in result.by_op.most_common()]
    return '\n'.join(lines)


def main() -> None:
    args = parse_args()
    print(report(count_config(cli.load_config(args), args.shape), args.by_op))


if __name__ == '__main__':
    errors.run(main, ValueError, TypeError)
