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

from mmvmamba.analysis import measure
from mmvmamba.analysis.measure import Call, Row

#: The first kind one of whose words is in an operator's name is taken.
KINDS = {
    'scan': ('_scan',),
    'matrix product': ('addmm', 'aten::mm', 'bmm', 'mkl_linear', 'linear_pointwise', '_linear'),
    'convolution': ('conv', 'depthwise_silu'),
    'normalization': ('norm',),
    'attention': ('scaled_dot_product', 'softmax'),
    'activation': ('gelu', 'silu', 'relu'),
    'copy': ('copy', 'clone', 'contiguous', 'cat', 'stack', 'roll', 'pad', 'index'),
    'addition': ('aten::add', 'aten::sub'),
    'sum': ('aten::sum', 'mean'),
}
PRODUCTS = ('matrix product', 'convolution')
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


def kind_of(name: str) -> str:
    """The kind of an operator, 'other' where none fits."""
    for kind, words in KINDS.items():
        if any(word in name for word in words):
            return kind
    return 'other'


def profile_passes(call: Call, device: torch.device, steps: int) -> list[Row]:
    """Operators of a call with the time (ms) each takes by itself, the slowest first."""
    for _ in range(2):
        call()
    on_gpu = device.type == 'cuda'
    with torch.autograd.profiler.profile(use_device='cuda' if on_gpu else None) as profile:
        for _ in range(steps):
            call()
    rows = []
    for event in profile.key_averages():
        time = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        row = dict(kind=kind_of(event.key), operator=event.key)
        rows.append(row | dict(passes=event.count / steps, ms=time / 1e3 / steps))
    total = sum(row['ms'] for row in rows)
    for row in rows:
        row['share'] = row['ms'] / total
    return sorted(rows, key=lambda row: -row['ms'])


def add_by_kind(rows: Sequence[Row]) -> list[Row]:
    """Sums passes, times and shares of the operators of each kind, the slowest kind first."""
    kinds: dict[str, Row] = {}
    for row in rows:
        kind = kinds.setdefault(row['kind'], dict(kind=row['kind'], passes=0, ms=0, share=0))
        for key in ('passes', 'ms', 'share'):
            kind[key] += row[key]
    return sorted(kinds.values(), key=lambda row: -row['ms'])


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = common.base_parser(__doc__.split('\n\n')[0], seconds=10)
    add = parser.add_argument
    add('--model', default='vmamba-t', choices=backbone.model_names(), metavar='MODEL')
    add('--sizes', nargs='+', type=measure.parse_size, default=[(224, 224)])
    add('--batch-size', type=int, default=1)
    add('--modes', nargs='+', choices=('inference', 'train'), default=['inference', 'train'])
    add('--precision', choices=('fp32', 'amp'), default='fp32')
    add('--detail', action='store_true', help='each operator, not only the kinds')
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Profiles and returns the rows of all operators."""
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
                model, images, train=mode == 'train', amp=args.precision != 'fp32', compile=False
            )
            rows = [where | row for row in profile_passes(call, device, steps)]
            kinds = [where | row for row in add_by_kind(rows)]
            common.write_table(rows[:30] if args.detail else kinds, COLUMNS)
            rest = sum(row['share'] for row in kinds if row['kind'] not in PRODUCTS)
            summary.append(
                f'{args.model} at {where["size"]}, {mode}: {100 * rest:.1f} % of the time is '
                'neither a matrix product nor a convolution'
            )
            all_rows += rows
    common.finish(args, 'passes', device, all_rows, summary)
    return all_rows


if __name__ == '__main__':
    sys.exit(not main())
