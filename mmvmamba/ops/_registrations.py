"""Shapes (fake kernels) and gradients of the native ops. The schemas are in ``csrc/``."""

from __future__ import annotations

import torch
from torch import Tensor

from ._checks import accumulate_dtype
from ._extension import load_extension

#: Positions between two saved states, as ``kChunk`` in ``csrc/scan_common.h``.
CHUNK = 64


def _num_chunks(length: int) -> int:
    return (length + CHUNK - 1) // CHUNK


def _no_double_backward(name: str):
    def backward(ctx, *grads):
        raise RuntimeError(
            f'mmvmamba: {name} has no second derivative; use backend="reference" for a double '
            'backward'
        )

    return backward


def _ss2d_scan_fake(x, proj, dt_weight, dt_bias, A, D, orders, out_dtype, save_states):
    N, H, W, C = x.shape
    y = x.new_empty((N, H, W, C), dtype=out_dtype)
    chunks = _num_chunks(H * W) if save_states else 0
    size = N * len(orders) * chunks * A.shape[2] * C
    return y, x.new_empty((size,), dtype=accumulate_dtype(x.dtype))


def _ss2d_scan_backward_fake(
    grad_y, x, proj, dt_weight, dt_bias, A, D, states, orders
) -> tuple[Tensor, ...]:
    return tuple(v.new_empty(v.shape) for v in (x, proj, dt_weight, dt_bias, A, D))


def _ss2d_scan_setup(ctx, inputs, output) -> None:
    *tensors, orders, _, ctx.saved = inputs
    ctx.save_for_backward(*tensors, output[1])
    ctx.orders = orders
    ctx.set_materialize_grads(False)


def _ss2d_scan_backward(ctx, grad_y, _):
    if grad_y is None:
        return (None,) * 9
    *tensors, states = ctx.saved_tensors
    if not ctx.saved:  # traced by torch.jit, where nobody knew whether a backward would come
        _, states = torch.ops.mmvmamba.ss2d_scan(*tensors, ctx.orders, tensors[0].dtype, True)
    grads = torch.ops.mmvmamba.ss2d_scan_backward(grad_y, *tensors, states, ctx.orders)
    return (*grads, None, None, None)


def _selective_scan_fake(u, delta, A, B, C, D, z, delta_bias, delta_softplus, save_states):
    batch, dim, length = u.shape
    acc = accumulate_dtype(u.dtype)
    chunks = _num_chunks(length) if save_states else 0
    return (
        u.new_empty((batch, dim, length)),
        u.new_empty((batch, dim, A.shape[1]), dtype=acc),
        u.new_empty((batch * chunks * A.shape[1] * dim,), dtype=acc),
    )


def _selective_scan_backward_fake(
    grad_out, u, delta, A, B, C, D, z, delta_bias, states, delta_softplus
):
    def like(v):
        return u.new_empty((0,)) if v is None else v.new_empty(v.shape)

    return tuple(like(v) for v in (u, delta, A, B, C, D, z, delta_bias))


def _selective_scan_setup(ctx, inputs, output) -> None:
    *tensors, ctx.delta_softplus, ctx.saved = inputs
    ctx.save_for_backward(*tensors, output[2])
    ctx.set_materialize_grads(False)


def _selective_scan_backward(ctx, grad_out, *_):
    if grad_out is None:
        return (None,) * 10
    *tensors, states = ctx.saved_tensors
    if not ctx.saved:
        _, _, states = torch.ops.mmvmamba.selective_scan(*tensors, ctx.delta_softplus, True)
    grads = torch.ops.mmvmamba.selective_scan_backward(
        grad_out, *tensors, states, ctx.delta_softplus
    )
    grads = (None if v is None else g for g, v in zip(grads, tensors, strict=True))
    return (*grads, None, None)


def _register() -> None:
    for name, fake, backward, setup in (
        ('ss2d_scan', _ss2d_scan_fake, _ss2d_scan_backward, _ss2d_scan_setup),
        ('ss2d_scan_backward', _ss2d_scan_backward_fake, None, None),
        ('selective_scan', _selective_scan_fake, _selective_scan_backward, _selective_scan_setup),
        ('selective_scan_backward', _selective_scan_backward_fake, None, None),
    ):
        op = f'mmvmamba::{name}'
        torch.library.register_fake(op, fake)
        torch.library.register_autograd(
            op, backward or _no_double_backward(name), setup_context=setup
        )


if load_extension() is None:
    _register()
