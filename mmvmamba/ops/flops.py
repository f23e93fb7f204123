"""Cost of the scans, registered with PyTorch's FlopCounterMode.

A multiply-add counts as one. A scan of S states costs 9 S + 1 for each position, channel and
direction (issue 110 of state-spaces/mamba, which the paper follows). A gate adds 1, and the
projection of the time steps inside ``ss2d_scan`` adds R. FlopCounterMode counts two for each
multiply-add and gets twice these numbers. A backward counts as two forwards, as for PyTorch's
matrix products. Without a kernel the projection is counted as an ordinary matrix product, and
``scan_mark`` carries the cost of the rest.
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .backend import differentiates_functionally
from .extension import LIBRARY, input_gradients

Shape = Sequence[int]

#: Costs of a state at a position, and of the skip connection.
STATE_COST = 9
SKIP_COST = 1


def ss2d_scan_cost(x_shape: Shape, dt_weight_shape: Shape, A_shape: Shape) -> int:
    """Return the multiply-adds of :func:`mmvmamba.ops.ss2d_scan`.

    The shapes are (N, H, W, C), (K, C, R) and (K, C, S).
    """
    directions, _, rank = dt_weight_shape
    return prod(x_shape) * directions * (rank + STATE_COST * A_shape[2] + SKIP_COST)


def selective_scan_cost(u_shape: Shape, A_shape: Shape, skip: bool, gate: bool) -> int:
    """Return the multiply-adds of :func:`mmvmamba.ops.selective_scan`.

    The shapes are (B, D, L) and (D, N); ``skip`` stands for a D, ``gate`` for a z.
    """
    return prod(u_shape) * (STATE_COST * A_shape[1] + SKIP_COST * skip + gate)


def scan_mark_cost(y_shape: Shape, A_shape: Shape, extra: int) -> int:
    """Return the multiply-adds of a scan in PyTorch's own ops, without the projection of its steps.

    ``A_shape`` is ([K, ]C, S). Each element costs ``extra`` besides its states.
    """
    return prod(y_shape) * (prod(A_shape[:-2]) * STATE_COST * A_shape[-1] + extra)


# ---- a mark on scans that run as PyTorch's own ops ----

LIBRARY.define('scan_mark(Tensor y, Tensor A, int rank, int extra, int times) -> Tensor')
LIBRARY.impl('scan_mark', lambda y, *_: y.clone(), 'CompositeExplicitAutograd')


def mark_scan(y: Tensor, A: Tensor, rank: int, extra: int) -> Tensor:
    """Return the result of a scan, marked in a trace or a dispatch mode, where it may be counted.

    ``rank`` is that of the time steps, 0 if their projection is not part of the scan; ``extra``
    is as in :func:`scan_mark_cost`.
    """
    # Elsewhere the mark would be one more op, unknown to exporters and transforms. torch.compile
    # cannot trace the other questions.
    if torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export():
        return y
    counted = torch.jit.is_tracing() or torch._C._len_torch_dispatch_stack() > 0
    if not counted or differentiates_functionally():
        return y
    return torch.ops.mmvmamba.scan_mark(y, A, int(rank), extra, 1)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, A, ctx.rank, ctx.extra, ctx.times = inputs
    ctx.save_for_backward(A)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    times = 2 * ctx.times  # a backward counts as two forwards
    marked = torch.ops.mmvmamba.scan_mark(grad, *ctx.saved_tensors, ctx.rank, ctx.extra, times)
    return input_gradients(ctx, [marked])


torch.library.register_autograd('mmvmamba::scan_mark', _backward, setup_context=_setup_context)


# ---- formulas for FlopCounterMode, with the arguments of the ops as shapes ----


def register_formulas(op_name: str, multiply_adds: Callable[..., int]) -> None:
    """Register the multiply-adds of an op, each of which is two FLOPs, and twice as many backward.

    ``multiply_adds`` takes the arguments of the op. Those of its backward begin with a gradient;
    tensors come next, in the same order.
    """

    def forward(*args: Any, **kwargs: Any) -> int:
        return 2 * multiply_adds(*args)

    def backward(grad: Shape, *args: Any, **kwargs: Any) -> int:
        return 4 * multiply_adds(*args)

    register_flop_formula(getattr(torch.ops.mmvmamba, op_name))(forward)
    register_flop_formula(getattr(torch.ops.mmvmamba, f'{op_name}_backward'))(backward)


def _scan_mark(
    y: Shape, A: Shape, rank: int, extra: int, times: int, out_shape: Shape | None = None
) -> int:
    return 2 * times * scan_mark_cost(y, A, extra)


register_flop_formula(torch.ops.mmvmamba.scan_mark)(_scan_mark)
