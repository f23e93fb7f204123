"""Step 6: VMamba-T with each backend beside Swin-T and ConvNeXt-T, under the same settings."""

import functools
import gc
import time
import traceback
from collections.abc import Iterator, Sequence

import backbone
import torch

from gpu_steps import BACKBONE_SETTINGS
from gpu_steps.backends import BACKENDS, require
from gpu_steps.context import NEEDS_CUDA, Context, Item, Row, Skip, first_line, skip
from mmvmamba.analysis import measure

OURS = {f'vmamba-t-{backend}': backend for backend in BACKENDS}
PEERS = ('swin-t', 'convnext-t')


def items(context: Context) -> Iterator[Item]:
    """List the settings, the compiled ones last."""
    settings = BACKBONE_SETTINGS
    if not context.cuda:
        settings = [('64', 2, mode, 'eager') for mode in ('inference', 'train')]
        yield 'compiled', functools.partial(skip, NEEDS_CUDA)
    for setting in settings:
        size, batch, mode, run = setting
        if run == 'compiled':
            for model in (*OURS, *PEERS):
                function = functools.partial(warm_up, context, model, setting)
                yield f'compile {model}, {mode}', function
        name = f'{mode}, {size}, batch {batch}, amp, {run}'
        yield name, functools.partial(compare, context, setting)


def warm_up(context: Context, model: str, setting: tuple) -> list[Row]:
    """Compile one model, so that the comparison finds its kernels in Inductor's cache."""
    if model in OURS:
        require(context, OURS[model])
    begin = time.monotonic()
    try:
        rows, missing = measure_models(context, setting, [model])
    except Exception as error:  # a peer may raise anything
        if model not in PEERS:
            raise
        traceback.print_exc()
        raise Skip(first_line(error)) from None
    if not rows and model in PEERS:
        raise Skip(missing[model])
    if not rows:
        raise RuntimeError(missing[model])
    return [dict(seconds=round(time.monotonic() - begin, 1))]


def compare(context: Context, setting: tuple) -> list[Row]:
    """Return the rows of ``backbone.py`` at one setting, and a reason for each missing model."""
    ours, unable, reason = [], {}, None
    for name, backend in OURS.items():
        try:
            require(context, backend)
            ours.append(name)
        except Skip as why:
            unable[name] = str(why)
    try:
        rows, missing = measure_models(context, setting, [*ours, *PEERS])
    except Exception as error:  # a peer may raise anything
        traceback.print_exc()
        reason = first_line(error)
    if reason:  # outside of the handler, which keeps the models in memory
        gc.collect()
        if context.cuda:
            torch.cuda.empty_cache()
        rows, missing = measure_models(context, setting, ours)
        missing |= dict.fromkeys(PEERS, reason)
    for name in ours:
        if name in missing:
            raise RuntimeError(f'{name} was not measured: {missing[name]}')
    missing |= unable
    return rows + [dict(model=n, status='skipped', reason=why) for n, why in missing.items()]


def measure_models(
    context: Context, setting: tuple, names: Sequence[str]
) -> tuple[list[Row], dict[str, str]]:
    """Return the rows of models, and the reason for each that has none."""
    size, batch, mode, run = setting
    shape = measure.parse_size(size)
    arguments = ['--device', context.device, '--seconds', '4' if context.cuda else '0']
    arguments += ['--min-rounds', '3' if context.cuda else '1', '--channels-last', '--tf32']
    args = backbone.parse_args([*arguments, '--models', *names])
    backbone.allow_tf32(args.tf32)
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    rows = backbone.compare(args, torch.device(context.device), shape, batch, mode, ('amp', run))
    missing = [name for name in names if name not in {row['model'] for row in rows}]
    reasons = backbone.build_models(missing, shape, args.peers)[1]
    return rows, {name: reasons.get(name, 'out of memory') for name in missing}
