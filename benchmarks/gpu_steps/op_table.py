"""Step 5: the core beside its peers at the stages of VMamba-T, and the copy bandwidth."""

from __future__ import annotations

import argparse
import functools
import math
import traceback
from collections.abc import Callable, Iterator

import ops
import torch
from gpu_report import OP_SETTINGS

from gpu_steps.context import Context, Item, Row
from mmvmamba.analysis import measure


def items(context: Context) -> Iterator[Item]:
    """The copy, then each setting and stage."""
    settings = OP_SETTINGS
    stages, seconds = range(4), 1.0
    if not context.cuda:
        settings, stages, seconds = [('fp32', '32x48', 2)], range(1), 0.0
    yield 'copy bandwidth', lambda: [copy_bandwidth(context)]
    arguments = ['--device', context.device, '--seconds', str(seconds), '--min-rounds', '3']
    args = ops.parse_args(arguments)
    for precision, size, batch in settings:
        for stage in stages:
            name = f'{precision}, image {size}, batch {batch}, stage {stage}'
            setting = (size, batch, stage, precision)
            yield name, functools.partial(compare_ops, context, args, setting)


def copy_bandwidth(context: Context) -> Row:
    """Bytes read and written in a second by a copy that is far larger than the caches."""
    device = torch.device(context.device)
    source = torch.randn(2**28 if context.cuda else 2**22, device=device)  # 1 GiB on a GPU
    target = torch.empty_like(source)
    times = measure.interleave({'copy': lambda: target.copy_(source)}, device, 1.0)
    seconds = measure.summarise(times['copy'])['min_ms'] / 1e3
    return dict(gb_per_s=round(2 * source.nbytes / seconds / 1e9, 1))


def compare_ops(context: Context, args: argparse.Namespace, setting: tuple) -> list[Row]:
    """The rows of ``ops.py`` at one stage of a network; one with a reason for who is missing."""
    size, batch, stage, precision = setting
    device = torch.device(context.device)
    cores, missing, failed = find_cores(device, precision)
    rows = ops.compare(args, device, cores, measure.parse_size(size), batch, stage, precision)
    for row in rows:
        row.update(least_bytes(row))
    for name in set(cores) - {row['candidate'] for row in rows}:
        (failed if name == 'native' else missing)[name] = 'too large for it'
    for status, reasons in (('skipped', missing), ('failed', failed)):
        rows += [dict(candidate=n, status=status, reason=reason) for n, reason in reasons.items()]
    return rows


@functools.cache
def find_cores(
    device: torch.device, precision: str
) -> tuple[dict[str, Callable], dict[str, str], dict[str, str]]:
    """The candidates that can be imported and run, tried at a small size.

    Returns:
        tuple[dict, dict, dict]: The candidates by name, the reasons why others are left out, and
        those why candidates of this package failed.
    """
    cores, missing = ops.find_cores(ops.CANDIDATES, device)
    failed = {}
    for name, core in list(cores.items()):
        try:
            module, x = ops.build_inputs(96, 'tiny', (8, 12), 2, device)
            value = x if name in ops.CHANNELS_LAST else x.permute(0, 3, 1, 2).contiguous()
            for call in ops.make_calls(core, module, value, precision):
                call()
        except Exception as error:  # whatever a peer raises, ours is still to be measured
            traceback.print_exc()
            reason = f'{type(error).__name__}: {error}'.splitlines()[0]
            (missing if name in ops.PEERS else failed)[name] = reason
            del cores[name]
    return cores, missing, failed


def least_bytes(row: Row) -> Row:
    """The bytes that the fused op must move, each input read and each output written once."""
    positions = row['batch'] * math.prod(measure.parse_size(row['map']))
    item = 4 if row['precision'] == 'fp32' else 2
    x = positions * row['channels'] * item
    proj = round(x * row['low_rank_maps'])
    wide = positions * row['channels'] * 4  # the sum over directions, float32 for a float16 map
    y = wide if row['precision'] != 'bf16' else x
    return dict(forward_bytes=x + proj + y, training_bytes=(x + proj + y) + 2 * (x + proj) + y)
