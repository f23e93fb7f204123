"""Step 6: VMamba-T beside Swin-T and ConvNeXt-T, all under the same settings."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import backbone
import torch
from gpu_report import BACKBONE_SETTINGS

from gpu_steps.context import NEEDS_CUDA, Context, Item, Row, skip
from mmvmamba.analysis import measure


def items(context: Context) -> Iterator[Item]:
    """Each setting; what takes long to compile comes last."""
    settings = BACKBONE_SETTINGS
    if not context.cuda:
        settings = [('64', 2, mode, 'eager') for mode in ('inference', 'train')]
        yield 'compiled', functools.partial(skip, NEEDS_CUDA)
    for setting in settings:
        size, batch, mode, run = setting
        name = f'{mode}, {size}, batch {batch}, amp, {run}'
        yield name, functools.partial(compare, context, setting)


def compare(context: Context, setting: tuple) -> list[Row]:
    """The rows of ``backbone.py`` at one setting; one with a reason for who is missing."""
    size, batch, mode, run = setting
    shape = measure.parse_size(size)
    arguments = ['--device', context.device, '--seconds', '4' if context.cuda else '0']
    arguments += ['--min-rounds', '3' if context.cuda else '1', '--channels-last', '--tf32']
    arguments += ['--models', 'vmamba-t', 'swin-t', 'convnext-t', '--baseline', 'vmamba-t']
    args = backbone.parse_args(arguments)
    backbone.allow_tf32(args.tf32)
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    rows = backbone.compare(args, torch.device(context.device), shape, batch, mode, 'amp', run)
    missing = set(args.models) - {row['model'] for row in rows}
    if 'vmamba-t' in missing:
        raise RuntimeError('VMamba-T was not measured: the memory of the GPU is too small')
    reasons = backbone.build_models(missing, shape, args.peers)[1]
    return rows + [
        dict(model=name, status='skipped', reason=reasons.get(name, 'too large for the GPU'))
        for name in sorted(missing)
    ]
