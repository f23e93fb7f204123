"""Step 5: the core and its peers at the stages of VMamba-T, and the copy bandwidth."""

import argparse
import functools
import math
import sys
import traceback
from collections.abc import Callable, Iterator

import common
import ops
import torch

from gpu_steps import OP_SETTINGS
from gpu_steps.backends import BACKENDS
from gpu_steps.context import Context, Item, Row, first_line, logger, run_apart
from gpu_steps.kernels import compile_first
from mmvmamba.analysis import measure

Reasons = dict[str, str]
#: What the trial of a peer prints before its capture.
RAN = 'the peer ran in eager mode'


def items(context: Context) -> Iterator[Item]:
    """List the copy, then each setting and stage."""
    settings = OP_SETTINGS
    stages, seconds = range(4), 1.0
    if not context.cuda:
        settings, stages, seconds = [('fp32', '32x48', 2)], range(1), 0.0
    # Each shape of a map is a variant of the compiled copy and merge.
    measure.allow_recompilation()
    yield compile_first(context, triton_calls)
    yield 'copy bandwidth', lambda: [copy_bandwidth(context)]
    args = ops.parse_args(['--seconds', str(seconds), '--min-rounds', '3'])
    for precision, size, batch in settings:
        for stage in stages:
            where = dict(precision=precision, size=size, batch=batch, stage=stage)
            name = f'{precision}, image {size}, batch {batch}, stage {stage}'
            yield name, functools.partial(compare_ops, context, args, where)


def triton_calls(device: torch.device) -> Iterator[Callable]:
    """Return the calls of our core with Triton, at a batch size of 1."""
    core = ops.fused_core('triton')
    for precision, size, _ in OP_SETTINGS:
        for stage in range(4):
            module, x = ops.build_stage('tiny', stage, measure.parse_size(size), 1, device)
            yield from ops.make_calls(core, module, x, precision)


def copy_bandwidth(context: Context) -> Row:
    """Measure the bytes that a copy far larger than the caches reads and writes in a second."""
    device = torch.device(context.device)
    source = torch.randn(2**28 if context.cuda else 2**22, device=device)  # 1 GiB on a GPU
    target = torch.empty_like(source)
    times = measure.interleave({'copy': lambda: target.copy_(source)}, device, 1.0)
    seconds = measure.summarize(times['copy'])['median_ms'] / 1e3
    return dict(gb_per_s=round(2 * source.nbytes / seconds / 1e9, 1))


def compare_ops(context: Context, args: argparse.Namespace, where: Row) -> list[Row]:
    """Return the rows of ``ops.py`` at one stage, and a reason for each missing candidate."""
    device = torch.device(context.device)
    cores, missing, failed, uncaptured = find_cores(device, where['precision'])
    missing, failed = dict(missing), dict(failed)
    args.no_graph = uncaptured
    rows, error = measure_cores(args, device, cores, where)
    if error:
        # A peer may run at the size of the trial and fail at this one.
        own = {name: core for name, core in cores.items() if name not in ops.PEERS}
        missing |= dict.fromkeys(set(cores) - set(own), error)
        rows, error = measure_cores(args, device, own, where)
        if error:
            raise RuntimeError(error)
    measured = {row['candidate'] for row in rows}
    for name in set(cores) - measured - set(missing):
        (failed if name in BACKENDS else missing)[name] = 'out of memory or sequence too long'
    for row in rows:
        row.update(least_bytes(row))
    for status, reasons in (('skipped', missing), ('failed', failed)):
        for name, reason in reasons.items():
            rows.append(where | dict(candidate=name, status=status, reason=reason))
    return rows


def measure_cores(
    args: argparse.Namespace, device: torch.device, cores: dict[str, Callable], where: Row
) -> tuple[list[Row], str | None]:
    """Return the rows of candidates, or no row and the error."""
    size = measure.parse_size(where['size'])
    try:
        rows = ops.compare(
            args, device, cores, size, where['batch'], where['stage'], where['precision']
        )
        return rows, None
    except Exception as error:  # a peer may raise anything
        traceback.print_exc()
        return [], first_line(error)


@functools.cache
def find_cores(
    device: torch.device, precision: str
) -> tuple[dict[str, Callable], Reasons, Reasons, list[str]]:
    """Find the candidates that can be imported and run at a small size.

    Peers are tried in a process of their own, because an illegal memory access or a failed capture
    makes CUDA unusable in its process.

    Returns:
        tuple[dict, dict, dict, list]: The candidates by name, the reasons why others are left out,
        those why candidates of this package failed, and the peers that cannot be captured.
    """
    cores, missing = ops.find_cores(ops.CANDIDATES, device)
    failed, uncaptured = {}, []
    for name in list(cores):
        own = name not in ops.PEERS
        try:
            if own:
                try_core(name, cores[name], device, precision)
            elif not try_peer(name, precision):
                uncaptured.append(name)
        except Exception as error:  # the others are still to be measured
            logger.info('%s failed: %s', name, error)
            (failed if own else missing)[name] = (
                first_line(error) if own else 'it failed at a small size, see log.txt'
            )
            del cores[name]
    return cores, missing, failed, uncaptured


def try_peer(name: str, precision: str) -> bool:
    """Run a peer at a small size on the GPU, and return whether it can be captured."""
    code = f'from gpu_steps import op_table; op_table.run_peer({name!r}, {precision!r})'
    done = run_apart([sys.executable, '-c', code], 80)
    if done.returncode:
        logger.info('%s', done.stdout)
    if RAN not in done.stdout:
        raise RuntimeError(f'its process ended with status {done.returncode}')
    return done.returncode == 0


def run_peer(name: str, precision: str) -> None:
    """Run a peer in this process, then capture it."""
    device = torch.device('cuda')
    core = ops.find_cores([name], device)[0][name]
    try_core(name, core, device, precision)
    sys.stdout.write(RAN + '\n')
    sys.stdout.flush()
    try_core(name, core, device, precision, graph=True)


def try_core(
    name: str, core: Callable, device: torch.device, precision: str, graph: bool = False
) -> None:
    """Run a candidate at a small size, on a GPU one whose kernels the table needs, too.

    Args:
        name (str): The candidate.
        core (Callable): Its core.
        device (torch.device): Where to run it.
        precision (str): 'fp32', 'bf16' or 'fp16'.
        graph (bool): Whether to replay it as a CUDA graph. Defaults to False.
    """
    shape = (56, 56) if device.type == 'cuda' else (9, 13)
    module, x = ops.build_inputs(96, 'tiny', shape, 2, device)
    value = x if name in ops.CHANNELS_LAST else x.permute(0, 3, 1, 2).contiguous()
    for call in ops.make_calls(core, module, value, precision):
        (common.capture(call) if graph else call)()
    if device.type == 'cuda':
        torch.cuda.synchronize()


def least_bytes(row: Row) -> Row:
    """Count the bytes of a core whose passes read each input and write each output once.

    The passes of the forward are the product that gives ``proj`` and the scan; those of the
    backward the scan's, the product's two and the sum of the two gradients of ``x``.
    """
    positions = row['batch'] * math.prod(measure.parse_size(row['map']))
    item = 4 if row['precision'] == 'fp32' else 2
    x = positions * row['channels'] * item
    proj = round(x * row['low_rank_maps'])
    # A float16 map has a float32 sum over directions.
    y = x if row['precision'] == 'bf16' else positions * row['channels'] * 4
    forward = 2 * x + 2 * proj + y
    backward = (2 * x + 2 * proj + y) + (2 * x + 2 * proj) + 3 * x
    return dict(forward_bytes=forward, training_bytes=forward + backward)
