"""What a scan costs, and its registration with PyTorch's FlopCounterMode.

One multiply-add counts one. A scan of S states costs 9 S + 1 for each position, channel and
direction (issue 110 of state-spaces/mamba, with which the paper counts), a gate one more, and the
projection of the time steps, which ``ss2d_scan`` holds, R. FlopCounterMode counts two for each
multiply-add, so it is given twice these figures; a backward counts as two forwards, as PyTorch
counts that of a matrix product. Without a kernel the projection is a product of its own, and a mark
beside the scan's result carries the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry, register_flop_formula

from .backend import differentiates_functionally
from .extension import load_extension

#: Costs of a state at a position, and of the skip connection.
STATE_COST = 9
SKIP_COST = 1


def ss2d_scan_cost(
    x_shape: Sequence[int], dt_weight_shape: Sequence[int], A_shape: Sequence[int]
) -> int:
    """Multiply-adds of :func:`mmvmamba.ops.ss2d_scan`.

    Args:
        x_shape (Sequence[int]): (N, H, W, C).
        dt_weight_shape (Sequence[int]): (K, C, R).
        A_shape (Sequence[int]): (K, C, S).
    """
    directions, _, rank = dt_weight_shape
    return prod(x_shape) * directions * (rank + STATE_COST * A_shape[2] + SKIP_COST)


def selective_scan_cost(
    u_shape: Sequence[int], A_shape: Sequence[int], skip: bool, gate: bool
) -> int:
    """Multiply-adds of :func:`mmvmamba.ops.selective_scan`.

    Args:
        u_shape (Sequence[int]): (B, D, L).
        A_shape (Sequence[int]): (D, N).
        skip (bool): Whether there is a D.
        gate (bool): Whether there is a z.
    """
    return prod(u_shape) * (STATE_COST * A_shape[1] + SKIP_COST * skip + gate)


def scan_mark_cost(y_shape: Sequence[int], A_shape: Sequence[int], extra: int) -> int:
    """Multiply-adds of a scan that runs as PyTorch's own ops, without the projection of its steps.

    Args:
        y_shape (Sequence[int]): The shape of the result.
        A_shape (Sequence[int]): ([K, ]C, S).
        extra (int): Multiply-adds for each element beside those of the states.
    """
    return prod(y_shape) * (prod(A_shape[:-2]) * STATE_COST * A_shape[-1] + extra)


# Kept: an op is gone with its library.
_LIBRARY = torch.library.Library('mmvmamba', 'FRAGMENT')
_LIBRARY.define('scan_mark(Tensor y, Tensor A, int rank, int extra, int times) -> Tensor')
_LIBRARY.impl('scan_mark', lambda y, *_: y.clone(), 'CompositeExplicitAutograd')


def _setup(ctx, inputs, output) -> None:
    _, A, *ctx.numbers = inputs
    ctx.save_for_backward(A)


def _backward(ctx, grad):
    rank, extra, times = ctx.numbers
    # A backward counts as two forwards.
    marked = torch.ops.mmvmamba.scan_mark(grad, *ctx.saved_tensors, rank, extra, 2 * times)
    return marked, None, None, None, None


torch.library.register_autograd('mmvmamba::scan_mark', _backward, setup_context=_setup)


def mark_scan(y: Tensor, A: Tensor, rank: int, extra: int) -> Tensor:
    """Returns a scan's result, marked where somebody may count: in a trace or a dispatch mode.

    Args:
        y (Tensor): The result.
        A (Tensor): The decay rates, ([K, ]C, S).
        rank (int): The rank of the time steps, 0 where their projection is not part of the scan.
        extra (int): Multiply-adds for each element of ``y`` beside those of the states.
    """
    counted = torch.jit.is_tracing() or torch._C._len_torch_dispatch_stack() > 0
    # Elsewhere the mark would be one more op that an exporter or a transform does not know.
    exported = torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export()
    if not counted or exported or differentiates_functionally():
        return y
    return torch.ops.mmvmamba.scan_mark(y, A, int(rank), extra, 1)


def _scan_mark_flops(y, A, rank: int, extra: int, times: int, *args: Any, **kwargs: Any) -> int:
    return 2 * times * scan_mark_cost(y, A, extra)


def _ss2d_scan_flops(x, proj, dt_weight, dt_bias, A, *args: Any, **kwargs: Any) -> int:
    return 2 * ss2d_scan_cost(x, dt_weight, A)


def _ss2d_scan_backward_flops(grad_y, *args: Any, **kwargs: Any) -> int:
    return 2 * _ss2d_scan_flops(*args)


def _selective_scan_flops(u, delta, A, B, C, D, z, *args: Any, **kwargs: Any) -> int:
    return 2 * selective_scan_cost(u, A, D is not None, z is not None)


def _selective_scan_backward_flops(grad_out, *args: Any, **kwargs: Any) -> int:
    return 2 * _selective_scan_flops(*args)


def _register(formulas: Mapping[str, Callable[..., int]]) -> None:
    for name, formula in formulas.items():
        op = getattr(torch.ops.mmvmamba, name)
        if op not in flop_registry:
            register_flop_formula(op)(formula)
            # torch 2.4 registers the overload, and then looks for the op.
            flop_registry.setdefault(op, flop_registry.get(op.default))


_register({'scan_mark': _scan_mark_flops})
if load_extension() is None:
    _register(
        {
            'ss2d_scan': _ss2d_scan_flops,
            'ss2d_scan_backward': _ss2d_scan_backward_flops,
            'selective_scan': _selective_scan_flops,
            'selective_scan_backward': _selective_scan_backward_flops,
        }
    )
