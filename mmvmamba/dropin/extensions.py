"""The functions of ``selective_scan_cuda`` and its variants, which networks call directly.

``fwd`` returns the output and a tensor for ``bwd``, which returns the gradients. Neither is
differentiable: they are called in the methods of a ``torch.autograd.Function``. Arguments and
results are those of mamba_ssm 1.0 to 2.3 and of VMamba's kernels. float64 works too.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mmvmamba.ops import selective_scan
from mmvmamba.ops.backend import (
    FLOAT_DTYPES,
    NATIVE_DTYPES,
    accumulate_dtype,
    check_dtype,
    check_tensor,
    choose_backend,
)
from mmvmamba.ops.extension import num_chunks

Gradients = tuple[Tensor | None, ...]


def core_fwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    nrows: int = 1,
) -> tuple[Tensor, Tensor]:
    """Scan, as ``selective_scan_cuda_core.fwd``.

    Args:
        u (Tensor): The input (B, D, L).
        delta (Tensor): The time steps (B, D, L), or (B, E, L) if E divides D: D / E channels of
            ``u`` in a row share theirs.
        A (Tensor): The decay rates (D, N), real.
        B (Tensor): The input weights (B, G, N, L), or (D, N).
        C (Tensor): The output weights (B, G, N, L), or (D, N).
        D (Tensor, optional): The skip weights (D).
        delta_bias (Tensor, optional): Added to ``delta`` (D) or (E).
        delta_softplus (bool): Whether to apply softplus to the time steps.
        nrows (int): Has no effect: a setting of VMamba's kernels.

    Returns:
        tuple[Tensor, Tensor]: The output (B, D, L), of the dtype of ``u``, and the states
        (B, D, M, 2 N), float32 or float64. As in mamba_ssm, ``states[:, :, -1, 1::2]`` is the
        state after the last position. Only the backward pass uses the other values.
    """
    return _forward(_Scan(u, delta, A, B, C, D, delta_bias), delta_softplus, u.dtype)


def oflex_fwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    nrows: int = 1,
    out_float: bool = True,
) -> tuple[Tensor, Tensor]:
    """Scan as :func:`core_fwd`, with a float32 output on request."""
    dtype = accumulate_dtype(u.dtype) if out_float else u.dtype
    return _forward(_Scan(u, delta, A, B, C, D, delta_bias), delta_softplus, dtype)


def core_bwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    grad_out: Tensor,
    states: Tensor | None,
    delta_softplus: bool,
    nrows: int = 1,
) -> Gradients:
    """Return the gradients of the tensors of :func:`core_fwd` and :func:`oflex_fwd`.

    Each has the shape and dtype of its tensor, or is None if that is None. If ``states`` is None,
    the states are recomputed.
    """
    scan = _Scan(u, delta, A, B, C, D, delta_bias)
    return _backward(scan, grad_out, states, delta_softplus)


def mamba_fwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> tuple[Tensor, ...]:
    """Scan as :func:`core_fwd`, with the arguments of ``selective_scan_cuda.fwd``.

    With a gate ``z`` (B, D, L), the gated output follows the two results of :func:`core_fwd`.
    """
    out, states = core_fwd(u, delta, A, B, C, D, delta_bias, delta_softplus)
    return (out, states) if z is None else (out, states, _gate(out, z).to(out.dtype))


def mamba_bwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    grad_out: Tensor,
    states: Tensor | None,
    out: Tensor | None,
    grad_z: Tensor | None,
    delta_softplus: bool,
    recompute_out_z: bool,
) -> Gradients:
    """Return the gradients of the tensors of :func:`mamba_fwd`, that of ``z`` at their end.

    ``grad_out`` is the gradient of the output, of the gated one if there is a gate, ``states`` and
    ``out`` are the first results of the forward, and ``out`` is needed only with a gate. The
    gradient of ``z`` is written to ``grad_z`` if there is one. With ``recompute_out_z`` the gated
    output follows it.

    Raises:
        ValueError: If there is a gate and no ``out``.
    """
    gated: Gradients = ()
    if z is not None:
        if out is None:
            raise ValueError('out, the first result of fwd, is required when z is given')
        grad_ungated, acc = _gate(grad_out, z), accumulate_dtype(z.dtype)
        product = torch.ops.aten.silu_backward(grad_out.to(acc) * out.to(acc), z.to(acc))
        gated += (product.to(z.dtype) if grad_z is None else grad_z.copy_(product),)
        grad_out = grad_ungated
        if recompute_out_z:
            gated += (_gate(out, z).to(out.dtype),)
    return core_bwd(u, delta, A, B, C, D, delta_bias, grad_out, states, delta_softplus) + gated


def _gate(value: Tensor, z: Tensor) -> Tensor:
    """Multiply by SiLU(z) in float32, as mamba_ssm's kernels do, or in float64."""
    check_dtype('z', z, *FLOAT_DTYPES)
    acc = accumulate_dtype(value.dtype)
    return value.to(acc) * F.silu(z.to(acc))


# ---- the backends ----


class _Scan(NamedTuple):
    """The differentiable arguments."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    delta_bias: Tensor | None


def _forward(scan: _Scan, delta_softplus: bool, out_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    backend, args = _prepare(scan, out_dtype)
    if backend == 'native':
        y, last_state, states = torch.ops.mmvmamba.selective_scan(
            *args[:-1], None, args.delta_bias, delta_softplus, True
        )
        return y.to(out_dtype), _pack(last_state, states)
    if backend == 'triton':
        y, last_state = torch.ops.mmvmamba.selective_scan_triton(*args, delta_softplus, out_dtype)
    else:
        y, last_state = _chunked(args, delta_softplus)
    return y.to(out_dtype), _pack(last_state, last_state[:0].flatten())


def _backward(
    scan: _Scan, grad_out: Tensor, packed: Tensor | None, delta_softplus: bool
) -> Gradients:
    backend, args = _prepare(scan, grad_out.dtype)
    grads: Iterable[Any]
    if backend == 'native':
        *first, bias = args
        if packed is None:
            states = torch.ops.mmvmamba.selective_scan(*first, None, bias, delta_softplus, True)[2]
        else:
            states = _unpack(packed, args)
        *first_grads, _, grad_bias = torch.ops.mmvmamba.selective_scan_backward(
            grad_out.to(args.u.dtype), *first, None, bias, states, delta_softplus
        )
        grads = (*first_grads, grad_bias)
    elif backend == 'triton':
        grads = torch.ops.mmvmamba.selective_scan_triton_backward(grad_out, *args, delta_softplus)
    else:
        grads = _chunked_backward(grad_out, args, delta_softplus)
    return tuple(
        None if value is None else _sum_shared(grad, value).to(value.dtype)
        for grad, value in zip(grads, scan, strict=True)
    )


def _prepare(scan: _Scan, out_dtype: torch.dtype) -> tuple[str, _Scan]:
    """Choose a backend, and return the arguments as it takes them."""
    u, delta, A, B, C, D, delta_bias = scan
    for name, value in zip(scan._fields, scan, strict=True):
        check_real(name, value)
        check_dtype(name, value, *FLOAT_DTYPES)
    check_tensor('u', u, ('B', 'D', 'L'))
    acc = accumulate_dtype(u.dtype)
    # Only Triton's kernels write float32 for an input of half precision.
    native_dtypes = NATIVE_DTYPES.get(u.device.type, (acc,))
    io = u.dtype if out_dtype == u.dtype and u.dtype in native_dtypes else acc
    backend = choose_backend('selective_scan', 'auto', u.new_empty(0, dtype=io))
    shared = u.shape[1] // max(delta.shape[1], 1)
    if shared > 1:
        delta = delta.repeat_interleave(shared, 1)
        delta_bias = None if delta_bias is None else delta_bias.repeat_interleave(shared)
    A, B, C = (v.to(acc) if v.dim() == 2 else v for v in (A, B, C))
    D, delta_bias = (None if v is None else v.to(acc) for v in (D, delta_bias))
    if backend != 'triton' and io != u.dtype:
        u, delta, B, C = (v.to(io) for v in (u, delta, B, C))
    return backend, _Scan(u, delta, A, B, C, D, delta_bias)


def check_real(name: str, value: Tensor | None) -> None:
    """Check that an argument is not complex, which mamba_ssm allows."""
    if value is not None and value.is_complex():
        raise TypeError(f'{name} must be real, but is {value.dtype}: there are no complex kernels')


def _sum_shared(grad: Tensor, value: Tensor) -> Tensor:
    """Sum over the channels that share a time step: ``grad`` has more channels than ``value``."""
    if grad.shape == value.shape:
        return grad
    axis = grad.dim() - 2 if grad.dim() > 1 else 0
    return grad.unflatten(axis, (value.shape[axis], -1)).sum(axis + 1)


def _chunked(args: _Scan, delta_softplus: bool) -> Any:
    return selective_scan(*args[:-1], None, args.delta_bias, delta_softplus, True)


def _chunked_backward(grad_out: Tensor, args: _Scan, delta_softplus: bool) -> Gradients:
    leaves: Any = _Scan._make(None if v is None else v.detach().requires_grad_() for v in args)
    with torch.enable_grad():
        y, _ = _chunked(leaves, delta_softplus)
    given = [v for v in leaves if v is not None]
    grads = iter(torch.autograd.grad(y, given, grad_out.to(y.dtype)))
    return tuple(None if v is None else next(grads) for v in leaves)


# ---- the states, in the layout of mamba_ssm ----


def _pack(last_state: Tensor, states: Tensor) -> Tensor:
    """Return the last state (B, D, N) and the flat states of the native kernels in one tensor.

    It has shape (B, D, M, 2 N). The last state is in ``[:, :, -1, 1::2]``, where mamba_ssm has it.
    In memory M is the slowest dimension, so that the flat states are at the beginning.
    """
    batch, dim, size = last_state.shape
    rows = -(-states.numel() // max(2 * last_state.numel(), 1))
    packed = last_state.new_zeros(rows + 1, batch, dim, 2 * size)
    packed.view(-1)[: states.numel()] = states
    packed[-1, :, :, 1::2] = last_state
    return packed.permute(1, 2, 0, 3)


def _unpack(packed: Tensor, args: _Scan) -> Tensor:
    """Return the flat states of :func:`_pack`."""
    batch, dim, length = args.u.shape
    number = batch * num_chunks(length, args.u.device) * args.A.shape[1] * dim
    return packed.permute(2, 0, 1, 3).reshape(-1)[:number]
