"""Where the time of a VMamba goes: the passes of a forward and a backward, by kind.

PyTorch's profiler times each operator without the operators inside it; the table adds these times
by kind. "passes" counts the calls of an operator in one step. The profiler adds some microseconds
to each call: shares are to be read at sizes where a call takes much longer.

Examples:
    python benchmarks/passes.py --sizes 224 768
    python benchmarks/passes.py --model swin-t --modes inference --detail
"""

import argparse
import sys
from collections.abc import Sequence

import backbone
import common
import torch
from common import logger
from profiling import add_by_kind, profile_passes, rest_share

from mmvmamba.analysis import measure
from mmvmamba.analysis.measure import Row

COLUMNS = dict(
    model='model',
    size='size',
    mode='mode',
    kind='kind',
    operator='operator',
    passes='passes',
    ms='ms',
    share='share',
)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = common.base_parser(__doc__.split('\n\n')[0], seconds=10)
    add = parser.add_argument
    add('--model', default='vmamba-t', choices=backbone.model_names(), metavar='MODEL')
    add('--sizes', nargs='+', type=measure.parse_size, default=[(224, 224)])
    add('--batch-size', type=int, default=1)
    add('--modes', nargs='+', choices=('inference', 'train'), default=['inference', 'train'])
    add('--precision', choices=('fp32', 'amp'), default='fp32')
    add('--detail', action='store_true', help='list each operator, not only the kinds')
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Profile the model and return the rows of all operators."""
    args = parse_args(argv)
    device = common.set_up(args)
    steps = 2 if args.quick else 10
    all_rows, summary = [], []
    for size in args.sizes:
        for mode in args.modes:
            where = dict(model=args.model, size=measure.size_text(*size), mode=mode)
            logger.info('%(model)s at %(size)s, %(mode)s', where)
            model = backbone.build_model(args.model, size, backbone.find_peers())
            model.train(mode == 'train')
            model.to(device)
            images = torch.randn(args.batch_size, 3, *size, device=device)
            call = measure.make_call(
                model, images, train=mode == 'train', amp=args.precision != 'fp32'
            )
            rows = [where | row for row in profile_passes(call, device, steps)]
            kinds = [where | row for row in add_by_kind(rows)]
            common.write_table(rows[:30] if args.detail else kinds, COLUMNS)
            rest = f'{100 * rest_share(rows):.1f} % of the time'
            summary.append(
                f'{args.model} at {where["size"]}, {mode}: {rest} is neither a matrix product '
                'nor a convolution'
            )
            all_rows += rows
    common.finish(args, 'passes', device, all_rows, summary)
    return all_rows


if __name__ == '__main__':
    sys.exit(not main())
