"""Speed and memory of the core of SS2D alone: x_proj, dt_proj, the scans and their sum.

The shapes are those of a VMamba's stages. Candidates:

- native and triton: ``mmvmamba.ops.ss2d_scan`` with that backend, which reads the map in place;
- reference: the same in PyTorch, in chunks (small maps only);
- composed: cross-scan copy, products, ``mmvmamba.ops.selective_scan``, merge, with the native
  kernels where there are any;
- mamba_ssm and vmamba: the same with ``selective_scan_fn`` of mamba_ssm and with the kernels of
  VMamba's authors (``selective_scan_cuda_oflex``), on a GPU where they can be imported. On a GPU
  torch.compile makes one kernel each of copy and merge, which the authors wrote in Triton.

"forward" is inference; "training" is forward and backward with gradients for the map and all
parameters. On a GPU, "graph" is the same call replayed as a CUDA graph, without host time. "fwd
maps" is the memory that a training forward takes beyond its input, result included, in units of the
input map; "low-rank" is the part of it that x_proj's result takes.
"""

import argparse
import contextlib
import itertools
import math
import sys
from collections.abc import Callable, Sequence

import common
import torch
import torch.nn.functional as F
from common import logger
from torch import Tensor

from mmvmamba.analysis import measure
from mmvmamba.analysis.measure import MIB, Call, Row
from mmvmamba.nn import ARCHS, SS2D
from mmvmamba.ops import selective_scan, ss2d_scan_reference
from mmvmamba.ops.backend import AUTO_ORDER, why_not
from mmvmamba.ops.selective_scan import scan_chunked

CANDIDATES = ('native', 'triton', 'reference', 'composed', 'mamba_ssm', 'vmamba')
#: Packages of others.
PEERS = ('mamba_ssm', 'vmamba')
#: Candidates that read the map as it is, channels last; the others copy it into sequences.
CHANNELS_LAST = ('native', 'triton', 'reference')
DTYPES = {'fp32': torch.float32, 'bf16': torch.bfloat16, 'fp16': torch.float16}
#: The longest sequence for which the PyTorch implementation is run.
REFERENCE_LENGTH = 56 * 56
COLUMNS = dict(
    candidate='core',
    size='image',
    stage='stage',
    map='map',
    channels='C',
    batch='batch',
    precision='precision',
    forward_ms='forward ms',
    training_ms='training ms',
    forward_graph_ms='fwd graph ms',
    training_graph_ms='training graph ms',
    training_over_forward='training / fwd',
    ns_per_element='fwd ns/element',
    forward_mib='fwd MiB',
    training_mib='training MiB',
    saved_maps='fwd maps',
    low_rank_maps='low-rank',
    ratio='fwd / native',
    training_ratio='training / native',
)


# ---- candidates ----------------------------------------------------------------------------------


def fused_core(backend: str) -> Callable[[SS2D, Tensor], Tensor]:
    """Return the fused op with a backend, as the network calls it."""

    def core(module: SS2D, x: Tensor) -> Tensor:
        module.backend = backend
        return module.core(x, 'cross')

    return core


def reference_core(module: SS2D, x: Tensor) -> Tensor:
    """The same with the op's PyTorch implementation, in chunks."""
    proj = F.linear(x, module.x_proj_weight.flatten(0, 1)).unflatten(-1, (4, -1))
    A = -module.A_logs.exp().view(4, module.d_inner, -1)
    weights = (module.dt_projs_weight, module.dt_projs_bias, A, module.Ds.view(4, -1))
    return ss2d_scan_reference(x, proj.to(x.dtype), *weights, scan=scan_chunked)


def cross_copy(x: Tensor) -> Tensor:
    """A map (N, C, H, W) as sequences (N, 4, C, L): rows, columns and both reversed."""
    both = torch.stack([x.flatten(2), x.transpose(2, 3).flatten(2)], dim=1)
    return torch.cat([both, both.flip(-1)], dim=1)


def cross_sum(ys: Tensor, height: int, width: int) -> Tensor:
    """The sequences (N, 4, C, L) back in image order and added, (N, C, H, W)."""
    ys = ys[:, :2] + ys[:, 2:].flip(-1)
    columns = ys[:, 1].unflatten(-1, (width, height)).transpose(2, 3)
    return ys[:, 0].unflatten(-1, (height, width)) + columns


def compose(scan: Callable, device: torch.device) -> Callable[[SS2D, Tensor], Tensor]:
    """The core as VMamba's authors compose it around a 1-D selective scan, channels first."""
    copy, merge = cross_copy, cross_sum
    if device.type == 'cuda':
        copy, merge = (torch.compile(f, dynamic=True) for f in (copy, merge))

    def core(module: SS2D, x: Tensor) -> Tensor:
        N, C, H, W = x.shape
        R, S = module.dt_rank, module.d_state
        xs = copy(x)
        proj = torch.einsum('nkcl,kdc->nkdl', xs, module.x_proj_weight)
        low, B, C_weights = proj.split([R, S, S], dim=2)
        dts = torch.einsum('nkrl,kcr->nkcl', low, module.dt_projs_weight)
        ys = scan(
            xs.view(N, -1, H * W),
            dts.reshape(N, -1, H * W).to(xs.dtype),
            -module.A_logs.exp(),
            B.contiguous().to(xs.dtype),
            C_weights.contiguous().to(xs.dtype),
            module.Ds,
            module.dt_projs_bias.flatten(),
        )
        # Like the fused op's for a float16 map, the sum stays in the dtype of the scan's results.
        return merge(ys.view(N, 4, C, H * W), H, W)

    return core


class AuthorsScan(torch.autograd.Function):
    """The kernels of VMamba's authors, forward and backward; float32 results."""

    @staticmethod
    def forward(ctx, u, delta, A, B, C, D, bias):
        import selective_scan_cuda_oflex as kernels

        out, states, *_ = kernels.fwd(u, delta, A, B, C, D, bias, True, 1, True)
        ctx.save_for_backward(u, delta, A, B, C, D, bias, states)
        return out

    @staticmethod
    def backward(ctx, grad):
        import selective_scan_cuda_oflex as kernels

        *inputs, states = ctx.saved_tensors
        grads = kernels.bwd(*inputs, grad.contiguous(), states, True, 1)
        return tuple(grads[:7])


def _composed_scan(u, delta, A, B, C, D, bias):
    native = why_not('native', 'selective_scan', u.device) is None
    options = dict(delta_softplus=True, backend='native' if native else 'auto')
    return selective_scan(u, delta, A, B, C, D, delta_bias=bias, **options)


def _mamba_ssm_scan(u, delta, A, B, C, D, bias):
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    return selective_scan_fn(u, delta, A, B, C, D, delta_bias=bias, delta_softplus=True)


def find_cores(
    names: Sequence[str], device: torch.device
) -> tuple[dict[str, Callable], dict[str, str]]:
    """Find the candidates that can run here.

    Returns:
        tuple[dict, dict]: The candidates by name, and the reason for each that is left out.
    """
    cores = {
        'native': fused_core('native'),
        'triton': fused_core('triton'),
        'reference': reference_core,
        'composed': compose(_composed_scan, device),
        'mamba_ssm': compose(_mamba_ssm_scan, device),
        'vmamba': compose(AuthorsScan.apply, device),
    }
    missing = {name: reason for name in names if (reason := why_missing(name, device))}
    return {name: cores[name] for name in names if name not in missing}, missing


def why_missing(name: str, device: torch.device) -> str | None:
    """Return the reason why a candidate cannot run here, or None."""
    modules = {
        'mamba_ssm': 'mamba_ssm.ops.selective_scan_interface',
        'vmamba': 'selective_scan_cuda_oflex',
    }
    if name in ('native', 'triton'):
        return why_not(name, 'ss2d_scan', device)
    if name == 'composed':
        reasons = [why_not(name, 'selective_scan', device) for name in AUTO_ORDER[device.type]]
        return '; '.join(map(str, reasons)) if all(reasons) else None
    if name in modules and device.type != 'cuda':
        return 'it needs a GPU'
    error = common.import_error(modules[name]) if name in modules else None
    return error and f'{modules[name]} cannot be imported: {error}'


# ---- measurement ---------------------------------------------------------------------------------


def make_calls(core: Callable, module: SS2D, x: Tensor, precision: str) -> tuple[Call, Call, Call]:
    """Inference, training forward and training step of a candidate."""
    dtype = DTYPES[precision]
    weights = [
        p for name, p in module.named_parameters() if name.startswith(('x_', 'dt_', 'A_', 'Ds'))
    ]
    x = x.to(dtype).requires_grad_()
    grad = torch.randn_like(x)

    def autocast():
        if precision == 'fp32':
            return contextlib.nullcontext()
        return torch.autocast(x.device.type, dtype)

    def forward():
        with torch.no_grad(), autocast():
            return core(module, x)

    def training_forward():
        with autocast():
            return core(module, x)

    def training():
        nonlocal grad
        y = training_forward()
        grad = grad.to(y.dtype)  # a copy in the first call alone
        return torch.autograd.grad(y, [x, *weights], grad)

    return forward, training_forward, training


def build_inputs(
    dim: int, arch: str, shape: tuple[int, int], batch: int, device: torch.device
) -> tuple[SS2D, Tensor]:
    """A stage's SS2D and a map for it (N, H, W, C)."""
    settings = ARCHS[arch]
    module = SS2D(dim, settings.d_state, settings.ssm_ratio).to(device)
    return module, torch.randn(batch, *shape, module.d_inner, device=device)


def build_stage(
    arch: str, stage: int, size: tuple[int, int], batch: int, device: torch.device
) -> tuple[SS2D, Tensor]:
    """Return :func:`build_inputs` for a stage and an image size."""
    shape = tuple(math.ceil(side / 4 / 2**stage) for side in size)
    return build_inputs(ARCHS[arch].dims[stage], arch, shape, batch, device)


def compare(
    args: argparse.Namespace,
    device: torch.device,
    cores: dict[str, Callable],
    size: tuple[int, int],
    batch: int,
    stage: int,
    precision: str,
) -> list[Row]:
    """Time all candidates at the shape of one stage in turn, then measure their memory."""
    module, x = build_stage(args.arch, stage, size, batch, device)
    shape = x.shape[1:3]
    small = math.prod(shape) <= REFERENCE_LENGTH
    calls = {}
    for name, core in cores.items():
        if name == 'reference' and not small:
            continue
        # The others' maps are channels first.
        value = x if name in CHANNELS_LAST else x.permute(0, 3, 1, 2).contiguous()
        calls[name] = make_calls(core, module, value, precision)
    where = dict(
        size=measure.size_text(*size),
        stage=stage,
        map=measure.size_text(*shape),
        channels=module.d_inner,
        d_state=module.d_state,
        batch=batch,
        precision=precision,
    )
    logger.info('image %(size)s, stage %(stage)d: map %(map)s x %(channels)d', where)
    return measure_calls(args, device, calls, x.numel(), module, where)


def time_replays(calls: dict[str, Call], *budget) -> dict[str, list[float]]:
    """Time calls as CUDA graphs, whose memory is released afterwards."""
    times = measure.interleave({name: common.capture(c) for name, c in calls.items()}, *budget)
    torch.cuda.empty_cache()
    return times


def measure_calls(
    args: argparse.Namespace,
    device: torch.device,
    calls: dict[str, tuple[Call, Call, Call]],
    elements: int,
    module: SS2D,
    where: Row,
) -> list[Row]:
    """One row for each candidate."""
    budget = (device, args.seconds / 2, args.min_rounds)
    forward = measure.interleave({name: call[0] for name, call in calls.items()}, *budget)
    training = measure.interleave({name: calls[name][2] for name in forward}, *budget)
    replays: dict[str, dict[str, list[float]]] = {}
    if device.type == 'cuda':
        names = [name for name in training if name not in args.no_graph]
        for kind, part in (('forward', 0), ('training', 2)):
            replays[kind] = time_replays({name: calls[name][part] for name in names}, *budget)
    map_bytes = elements * torch.empty((), dtype=DTYPES[where['precision']]).element_size()
    inner = 4 * (module.dt_rank + 2 * module.d_state)
    rows = []
    for name in training:
        row = dict(candidate=name, **where)
        stats, training_stats = measure.summarize(forward[name]), measure.summarize(training[name])
        row.update(forward_ms=stats['median_ms'], training_ms=training_stats['median_ms'])
        row.update(forward_spread=stats['spread'], training_spread=training_stats['spread'])
        for kind, samples in replays.items():
            if name in samples:
                row[f'{kind}_graph_ms'] = measure.summarize(samples[name])['median_ms']
        row['training_over_forward'] = round(row['training_ms'] / row['forward_ms'], 3)
        row['ns_per_element'] = round(row['forward_ms'] * 1e6 / elements, 4)
        forward_bytes, saved, peak = (measure.extra_memory(c, device) for c in calls[name])
        row.update(forward_mib=round(forward_bytes / MIB, 3), training_mib=round(peak / MIB, 3))
        row['saved_maps'] = round(saved / map_bytes, 3)
        row['low_rank_maps'] = round(inner / module.d_inner, 3)
        rows.append(row)
    for key, ratio in (('forward_ms', 'ratio'), ('training_ms', 'training_ratio')):
        base = next((row[key] for row in rows if row['candidate'] == 'native'), None)
        for row in rows:
            row[ratio] = None if base is None else round(row[key] / base, 3)
    return rows


def summary_lines(args: argparse.Namespace, rows: Sequence[Row]) -> list[str]:
    """Our core over all blocks of the network, for each image size and backend."""
    depths = ARCHS[args.arch].depths
    lines = []
    keys = ('candidate', 'size', 'batch', 'precision')
    settings = dict.fromkeys(tuple(row[key] for key in keys) for row in rows)
    for name, size, batch, precision in settings:
        if name not in ('native', 'triton'):
            continue
        where = (name, size, batch, precision)
        part = [row for row in rows if tuple(row[key] for key in keys) == where]
        if len(part) < len(depths):
            continue
        forward, training = (
            sum(depths[row['stage']] * row[key] for row in part)
            for key in ('forward_ms', 'training_ms')
        )
        maps = max(row['saved_maps'] - row['low_rank_maps'] for row in part)
        lines.append(
            f'{args.arch} at {size}, batch {batch}, {precision}: {name} core of all blocks '
            f'{forward:.2f} ms forward, {training:.2f} ms forward + backward '
            f'({training / forward:.2f} x forward); training forward at most {maps:.2f} maps + '
            'low-rank values'
        )
    return lines


# ---- command -------------------------------------------------------------------------------------


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; ``--quick`` sets the options that were not given."""
    parser = common.base_parser(__doc__.split('\n\n')[0], seconds=4)
    add = parser.add_argument
    add(
        '--arch',
        default='tiny',
        choices=sorted(ARCHS),
        help='architecture whose stages are measured',
    )
    add('--sizes', nargs='+', type=measure.parse_size, help='image sizes, such as 224 800x1333')
    add('--batch-sizes', nargs='+', type=int, default=[1])
    add('--stages', nargs='+', type=int, default=[0, 1, 2, 3], choices=range(4))
    add(
        '--precisions',
        nargs='+',
        choices=DTYPES,
        default=['fp32'],
        help='bf16 and fp16 use autocast',
    )
    add('--candidates', nargs='+', choices=CANDIDATES, default=CANDIDATES)
    add('--no-graph', nargs='+', choices=PEERS, default=[], help='peers to time in eager mode only')
    args = parser.parse_args(argv)
    if args.sizes is None:
        names = ('224', '512') if args.quick else ('224', '512', '800x1333', '1024', '2048')
        args.sizes = [measure.parse_size(name) for name in names]
    if args.quick:
        args.seconds = min(args.seconds, 2)
        args.min_rounds = min(args.min_rounds, 3)
    return args


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Run the benchmark and return its rows."""
    args = parse_args(argv)
    device = common.set_up(args)
    cores, missing = find_cores(args.candidates, device)
    for name, reason in missing.items():
        logger.info('%s left out: %s', name, reason)
    rows = []
    for size, batch, precision in itertools.product(args.sizes, args.batch_sizes, args.precisions):
        part = []
        for stage in args.stages:
            part += compare(args, device, cores, size, batch, stage, precision)
        common.write_table(part, COLUMNS)
        rows += part
    common.finish(args, 'ops', device, rows, summary_lines(args, rows))
    return rows


if __name__ == '__main__':
    sys.exit(not main())
