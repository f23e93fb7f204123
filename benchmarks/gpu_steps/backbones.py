"""Step 6: VMamba-T beside Swin-T and ConvNeXt-T, all under the same settings."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Iterator, Sequence

import backbone
import torch
from gpu_report import BACKBONE_SETTINGS

from gpu_steps.context import NEEDS_CUDA, Context, Item, Row, skip
from mmvmamba.analysis import measure

PEERS = ('swin-t', 'convnext-t')


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
    try:
        rows, missing = measure_models(context, setting, ['vmamba-t', *PEERS])
    except Exception as error:  # a peer may fail in any way; where VMamba-T does, it does so again
        traceback.print_exc()
        if 'CUDA error' in str(error):
            raise
        rows, missing = measure_models(context, setting, ['vmamba-t'])
        missing |= dict.fromkeys(PEERS, f'{type(error).__name__}: {error}'.splitlines()[0])
    if 'vmamba-t' in missing:
        raise RuntimeError(f'VMamba-T was not measured: {missing["vmamba-t"]}')
    return rows + [dict(model=n, status='skipped', reason=why) for n, why in missing.items()]


def measure_models(
    context: Context, setting: tuple, names: Sequence[str]
) -> tuple[list[Row], dict[str, str]]:
    """The rows of models, and the reason for each that has none."""
    size, batch, mode, run = setting
    shape = measure.parse_size(size)
    arguments = ['--device', context.device, '--seconds', '4' if context.cuda else '0']
    arguments += ['--min-rounds', '3' if context.cuda else '1', '--channels-last', '--tf32']
    args = backbone.parse_args([*arguments, '--models', *names, '--baseline', 'vmamba-t'])
    backbone.allow_tf32(args.tf32)
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    rows = backbone.compare(args, torch.device(context.device), shape, batch, mode, 'amp', run)
    missing = [name for name in names if name not in {row['model'] for row in rows}]
    reasons = backbone.build_models(missing, shape, args.peers)[1]
    return rows, {name: reasons.get(name, 'too large for the GPU') for name in missing}
