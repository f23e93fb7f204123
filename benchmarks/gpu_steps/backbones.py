"""Step 6: VMamba with each backend beside its peers, under the same settings."""

import functools
import gc
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence

import backbone
import torch

from gpu_steps import BACKBONE_SETTINGS, BackboneSetting
from gpu_steps.backends import BACKENDS, require
from gpu_steps.context import (
    NEEDS_CUDA,
    Context,
    Item,
    Row,
    Skip,
    first_line,
    logger,
    run_apart,
    skip,
)
from gpu_steps.kernels import compile_first
from mmvmamba.analysis import measure

#: Other networks; the authors' code for VMamba is compared in eager mode only.
PEERS = ('swin', 'convnext')
AUTHORS = 'authors'


def items(context: Context) -> Iterator[Item]:
    """List the settings, the compiled ones last."""
    settings = BACKBONE_SETTINGS
    if not context.cuda:
        settings = [
            BackboneSetting('t', '64', 2, mode, 'amp', 'eager') for mode in ('inference', 'train')
        ]
        yield 'compiled', functools.partial(skip, NEEDS_CUDA)
    yield compile_first(context, triton_calls)
    for setting in settings:
        if setting.run == 'compiled':
            for model in (*our_names(setting), *peer_names(setting)):
                function = functools.partial(warm_up, context, model, setting)
                yield f'compile {model}, {setting.size}, {setting.mode}', function
        yield str(setting), functools.partial(compare, context, setting)


def triton_calls(device: torch.device) -> Iterator[Callable]:
    """Return a training step of each model, size and precision with Triton, with one image."""
    for scale, size, precision in dict.fromkeys(
        (s.scale, s.size, s.precision) for s in BACKBONE_SETTINGS
    ):
        model = backbone.build_vmamba(scale, 'triton').to(device)
        images = torch.randn(1, 3, *measure.parse_size(size), device=device)
        yield measure.make_call(model, images, train=True, amp=precision == 'amp')


def our_names(setting: BackboneSetting) -> dict[str, str]:
    """Return VMamba's names in ``backbone.py``, each with its backend."""
    return {f'vmamba-{setting.scale}-{backend}': backend for backend in BACKENDS}


def peer_names(setting: BackboneSetting) -> list[str]:
    """Return the names of the other networks of the same scale."""
    return [f'{family}-{setting.scale}' for family in PEERS]


def warm_up(context: Context, model: str, setting: BackboneSetting) -> list[Row]:
    """Compile one model, so that the comparison finds its kernels in Inductor's cache."""
    peer = model in peer_names(setting)
    if not peer:
        require(context, our_names(setting)[model])
    begin = time.monotonic()
    try:
        rows, missing = measure_models(context, setting, [model])
    except Exception as error:  # a peer may raise anything
        if not peer:
            raise
        traceback.print_exc()
        raise Skip(first_line(error)) from None
    if not rows and peer:
        raise Skip(missing[model])
    if not rows:
        raise RuntimeError(missing[model])
    return [dict(seconds=round(time.monotonic() - begin, 1))]


def compare(context: Context, setting: BackboneSetting) -> list[Row]:
    """Return the rows of ``backbone.py`` at one setting, and a reason for each missing model."""
    ours, reasons = [], {}
    for name, backend in our_names(setting).items():
        try:
            require(context, backend)
            ours.append(name)
        except Skip as why:
            reasons[name] = str(why)
    authors = f'{AUTHORS}-{setting.scale}'
    why = why_no_authors(context.device) if setting.run == 'eager' else None
    if why is not None:
        reasons[authors] = why
    # Each is a try: what may have raised an error in one is left out in the next.
    groups = [[*ours, *peer_names(setting)], ours]
    if setting.run == 'eager' and why is None:
        groups.insert(0, [*groups[0], authors])
    rows, missing = measure_first(context, setting, groups)
    for name in ours:
        if name in missing:
            raise RuntimeError(f'{name} was not measured: {missing[name]}')
    reasons = missing | reasons
    return rows + [dict(model=n, status='skipped', reason=why) for n, why in reasons.items()]


def measure_first(
    context: Context, setting: BackboneSetting, groups: Sequence[Sequence[str]]
) -> tuple[list[Row], dict[str, str]]:
    """Return :func:`measure_models` of the first group of models that raises no error."""
    group, *others = groups
    try:
        return measure_models(context, setting, group)
    except Exception as error:  # a peer may raise anything
        if not others:
            raise
        traceback.print_exc()
        reason = first_line(error)
    # Outside of the handler, which keeps the models in memory.
    gc.collect()
    if context.cuda:
        torch.cuda.empty_cache()
    rows, missing = measure_first(context, setting, others)
    return rows, dict.fromkeys((n for n in group if n not in others[0]), reason) | missing


@functools.cache
def why_no_authors(device: str) -> str | None:
    """Return the reason why the authors' network cannot be measured, or None.

    It is tried in a process of its own, because an illegal memory access makes CUDA unusable in its
    process.
    """
    if device != 'cuda':
        return NEEDS_CUDA
    code = 'from gpu_steps import backbones; backbones.try_authors()'
    try:
        done = run_apart([sys.executable, '-c', code], 60)
    except subprocess.TimeoutExpired as error:
        return f'a training step at a small size took longer than {error.timeout} s'
    if done.returncode == 0:
        return None
    logger.info('%s', done.stdout)
    return (done.stdout.strip().splitlines() or [f'exit status {done.returncode}'])[-1]


def try_authors() -> None:
    """Run a training step of the authors' VMamba-T at a small size on the GPU."""
    model = backbone.build_authors('t').cuda()
    images = torch.randn(2, 3, 64, 96, device='cuda')
    measure.make_call(model, images, train=True, amp=True)()
    torch.cuda.synchronize()


def measure_models(
    context: Context, setting: BackboneSetting, names: Sequence[str]
) -> tuple[list[Row], dict[str, str]]:
    """Return the rows of models, and the reason for each that has none."""
    shape = measure.parse_size(setting.size)
    arguments = ['--device', context.device, '--seconds', '4' if context.cuda else '0']
    arguments += ['--min-rounds', '3' if context.cuda else '1', '--channels-last', '--tf32']
    args = backbone.parse_args([*arguments, '--models', *names])
    backbone.allow_tf32(args.tf32)
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    way = (setting.precision, setting.run)
    device = torch.device(context.device)
    rows = backbone.compare(args, device, shape, setting.batch, setting.mode, way)
    missing = [name for name in names if name not in {row['model'] for row in rows}]
    reasons = backbone.build_models(missing, shape, args.peers)[1]
    return rows, {name: reasons.get(name, 'out of memory') for name in missing}
