"""Marks a scan that runs as PyTorch's own ops, for counters of FLOPs."""

from __future__ import annotations

import torch
from torch import Tensor

from ._checks import differentiates_functionally

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
