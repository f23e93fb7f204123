"""The selective scan of Mamba (arXiv 2312.00752, Sec. 3.2 and Alg. 2) over 1-D sequences."""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import triton as triton_backend
from .backend import (
    accumulate_dtype,
    check_dtype,
    check_out_dtype,
    check_state_size,
    check_tensor,
    choose_backend,
    needs_states,
)
from .extension import extension_error, input_gradients, num_chunks, register_op
from .flops import mark_scan, register_formulas, selective_scan_cost

Scan = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def scan_reference(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """The recurrence itself, position by position: the specification of every scan here.

    h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t with h_{-1} = 0, and y_t = C_t . h_t.

    Args:
        u (Tensor): The input (N, L, D).
        dt (Tensor): The time steps (N, L, D).
        A (Tensor): The decay rates (D, S).
        B (Tensor): The input weights, broadcastable to (N, L, D, S).
        C (Tensor): The output weights, broadcastable to (N, L, D, S).

    Returns:
        tuple[Tensor, Tensor]: y (N, L, D) and the last state (N, D, S).
    """
    N, L, D = u.shape
    decay = torch.exp(dt.unsqueeze(-1) * A)  # (N, L, D, S)
    drive = (dt * u).unsqueeze(-1) * B
    h, ys = u.new_zeros(N, D, A.shape[1]), []
    for t in range(L):
        h = decay[:, t] * h + drive[:, t]
        ys.append((h * C[:, t]).sum(-1))
    # Without positions there is nothing to stack; the sum keeps the gradients of all inputs, zeros.
    return (torch.stack(ys, dim=1) if ys else (decay * drive * C).sum(-1)), h


def scan_chunked(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`scan_reference` in about 2 sqrt(L) steps, for machines without a kernel.

    The sequence is cut into chunks of T = sqrt(L) positions. All chunks advance together from a
    zero state. Then the states at the ends of the chunks are carried over, and each position gets
    the decayed carry of its chunk. Only products of decays are formed, never their inverses, so
    that no length overflows. Arguments and results are those of :func:`scan_reference`.
    """
    N, L, D = u.shape
    if L == 0:
        return ((dt * u).unsqueeze(-1) * B).sum(-1), u.new_zeros(N, D, A.shape[1])
    T = math.isqrt(L)
    chunks = -(-L // T)
    # A padded position has dt = 0: decay 1 and drive 0, so that the last state is untouched.
    pad = chunks * T - L
    dt_padded = F.pad(dt, (0, 0, 0, pad))
    decay = torch.exp(dt_padded.unsqueeze(-1) * A).unflatten(1, (chunks, T))
    drive = F.pad((dt * u).unsqueeze(-1) * B, (0, 0, 0, 0, 0, pad)).unflatten(1, (chunks, T))
    h, p = drive[:, :, 0], decay[:, :, 0]
    hs, ps = [h], [p]
    for t in range(1, T):
        h, p = decay[:, :, t] * h + drive[:, :, t], p * decay[:, :, t]
        hs.append(h)
        ps.append(p)
    carry = u.new_zeros(N, D, A.shape[1])
    carries = []
    for g in range(chunks):
        carries.append(carry)
        carry = p[:, g] * carry + h[:, g]
    states = torch.stack(hs, 2) + torch.stack(ps, 2) * torch.stack(carries, 1).unsqueeze(2)
    states = states.flatten(1, 2)[:, :L]  # (N, L, D, S)
    return (states * C).sum(-1), carry


def _check_arguments(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
) -> None:
    check_tensor('u', u, ('B', 'D', 'L'))
    batch, dim, length = u.shape
    check_tensor('delta', delta, (batch, dim, length), u.device)
    check_tensor('A', A, (dim, 'N'), u.device)
    if not torch.jit.is_tracing():
        check_state_size(A.shape[1])
    for name, value in (('B', B), ('C', C)):
        if isinstance(value, Tensor) and value.dim() == 2:
            check_tensor(name, value, (dim, A.shape[1]), u.device)
        elif isinstance(value, Tensor) and value.dim() == 3:
            check_tensor(name, value, (batch, A.shape[1], length), u.device)
        else:
            check_tensor(name, value, (batch, 'G', A.shape[1], length), u.device)
            if not torch.jit.is_tracing() and (value.shape[1] == 0 or dim % value.shape[1] != 0):
                raise ValueError(
                    f'the number of groups of {name} must divide the {dim} channels of u, '
                    f'but got {value.shape[1]}'
                )
    if D is not None:
        check_tensor('D', D, (dim,), u.device)
    if z is not None:
        check_tensor('z', z, (batch, dim, length), u.device)
    if delta_bias is not None:
        check_tensor('delta_bias', delta_bias, (dim,), u.device)
    for name, tensor in (('delta', delta), ('B', B), ('C', C), ('z', z)):
        if tensor is not None and tensor.dim() >= 3 and tensor.dtype != u.dtype:
            raise TypeError(f'{name} must be {u.dtype} like u, but is {tensor.dtype}')


def _weights_per_position(value: Tensor, dim: int) -> Tensor:
    """Return B or C, in any of its three forms, broadcastable to (N, L, D, S)."""
    if value.dim() == 2:  # (D, S), constant
        return value[None, None]
    if value.dim() == 3:  # (N, S, L), shared by all channels
        return value.transpose(1, 2).unsqueeze(2)
    per_group = dim // value.shape[1]
    return value.permute(0, 3, 1, 2).repeat_interleave(per_group, dim=2)  # (N, L, D, S)


def selective_scan_reference(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    scan: Scan = scan_reference,
) -> tuple[Tensor, Tensor]:
    """:func:`selective_scan` in plain PyTorch: the specification of the kernels.

    ``scan`` is ``scan_reference`` or ``scan_chunked``. Return the output and the last state.
    """
    dtype, acc = u.dtype, accumulate_dtype(u.dtype)
    dt = delta.to(acc).transpose(1, 2)  # (B, L, D)
    if delta_bias is not None:
        dt = dt + delta_bias.to(acc)
    if delta_softplus:
        dt = F.softplus(dt)
    x = u.to(acc).transpose(1, 2)
    weights = [_weights_per_position(v.to(acc), u.shape[1]) for v in (B, C)]
    y, last_state = scan(x, dt, A.to(acc), *(w.expand(-1, u.shape[2], -1, -1) for w in weights))
    if D is not None:
        y = y + D.to(acc) * x
    y = y.transpose(1, 2)
    if z is not None:
        y = y * F.silu(z.to(acc))
    return y.to(dtype), last_state


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    backend: str = 'auto',
) -> Tensor | tuple[Tensor, Tensor]:
    """Selective scan, with the arguments of ``mamba_ssm``'s ``selective_scan_fn``.

    Computes h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t and y_t = C_t . h_t + D u_t, where dt is
    delta + delta_bias, optionally followed by softplus. If ``z`` is given, y_t is multiplied by
    SiLU(z_t). Sums and states are float32, or float64 for float64 input.

    Args:
        u (Tensor): Input (B, D, L), float32, float16, bfloat16 or float64.
        delta (Tensor): Time steps (B, D, L), with the same dtype as ``u``.
        A (Tensor): Decay rates (D, N), 1 <= N <= 256.
        B (Tensor): Input weights (B, N, L), or (B, G, N, L) for G groups of channels, with the
            same dtype as ``u``; or (D, N), constant for each channel.
        C (Tensor): Output weights, in one of the forms of ``B``.
        D (Tensor, optional): Skip weights (D). Defaults to None.
        z (Tensor, optional): Gate (B, D, L), with the same dtype as ``u``. Defaults to None.
        delta_bias (Tensor, optional): Bias of ``delta`` (D). Defaults to None.
        delta_softplus (bool): Whether to apply softplus to the time steps. Defaults to False.
        return_last_state (bool): Whether to also return the last state, without a gradient.
            Defaults to False.
        backend (str): 'native', 'triton' (GPU only, no float64), 'reference', or 'auto', which
            selects the first kernel that can run: Triton, then native on a GPU; native on a CPU.
            Defaults to 'auto'.

    Returns:
        Tensor | tuple[Tensor, Tensor]: The output (B, D, L), with the same dtype as ``u``. With
        ``return_last_state``, also the state (B, D, N) after the last position, in float32 or
        float64.

    Raises:
        TypeError: If an argument is not a floating-point tensor, or dtypes disagree.
        ValueError: If shapes or devices disagree, or ``backend`` is unknown.
        RuntimeError: If ``backend`` is 'native' or 'triton' and cannot run.
    """
    _check_arguments(u, delta, A, B, C, D, z, delta_bias)
    chosen = choose_backend('selective_scan', backend, u)
    if chosen in ('native', 'triton'):
        acc = accumulate_dtype(u.dtype)
        D, delta_bias = (v if v is None else v.to(acc) for v in (D, delta_bias))
        inputs = (u, delta, A.to(acc), *_weights_for_kernel(B, C, acc), D, z, delta_bias)
        run = _run_native if chosen == 'native' else _run_triton
        y, last_state = run(*inputs, delta_softplus)
    else:
        scan = scan_reference if chosen == 'reference' else scan_chunked
        y, last_state = selective_scan_reference(
            u, delta, A, B, C, D, z, delta_bias, delta_softplus, scan
        )
        y = mark_scan(y, A, 0, (D is not None) + (z is not None))
    return (y, last_state.detach()) if return_last_state else y


def _weights_for_kernel(B: Tensor, C: Tensor, acc: torch.dtype) -> list[Tensor]:
    """Return B and C as (B, G, N, L) with the same number of groups, or (D, N) if constant."""
    weights = [v.to(acc) if v.dim() == 2 else v for v in (B, C)]
    weights = [v.unsqueeze(1) if v.dim() == 3 else v for v in weights]
    groups = [int(v.shape[1]) for v in weights if v.dim() == 4]
    if len(groups) == 2 and groups[0] != groups[1]:  # the kernels take one number of groups
        repeats = [math.lcm(*groups) // g for g in groups]
        weights = [v.repeat_interleave(n, dim=1) for v, n in zip(weights, repeats, strict=True)]
    return weights


def _run_native(*args: Any) -> tuple[Tensor, Tensor]:
    *tensors, _delta_softplus = args
    y, last_state, _ = torch.ops.mmvmamba.selective_scan(*args, needs_states(tensors))
    return y, last_state


class _Arguments(NamedTuple):
    """Arguments of ``mmvmamba::selective_scan`` in the order of its schema."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    delta_bias: Tensor | None
    delta_softplus: bool
    save_states: bool = False

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """The differentiable arguments."""
        return self.u, self.delta, self.A, self.B, self.C, self.D, self.z, self.delta_bias


def _fake(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    a = _Arguments(*args)
    batch, dim, length = a.u.shape
    acc, d_state = accumulate_dtype(a.u.dtype), a.A.shape[1]
    chunks = num_chunks(length, a.u.device) if a.save_states else 0
    return (
        a.u.new_empty((batch, dim, length)),
        a.u.new_empty((batch, dim, d_state), dtype=acc),
        a.u.new_empty((batch * chunks * d_state * dim,), dtype=acc),
    )


def _cost(*args: Any) -> int:
    """Return the multiply-adds of a forward pass; the arguments are shapes, not tensors."""
    a: Any = _Arguments(*args)
    return selective_scan_cost(a.u, a.A, a.D is not None, a.z is not None)


def _backward_fake(grad_out: Tensor, *args: Any) -> tuple[Tensor, ...]:
    return _fake_gradients(grad_out, _Arguments(*args).tensors)


def _fake_gradients(grad_out: Tensor, tensors: Iterable[Tensor | None]) -> tuple[Tensor, ...]:
    # The gradient of an argument that is None is empty.
    return tuple(grad_out.new_empty((0,)) if v is None else v.new_empty(v.shape) for v in tensors)


def _setup_context(
    ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]
) -> None:
    a, (_, _, states) = _Arguments(*inputs), output
    ctx.save_for_backward(*a.tensors, states)
    ctx.delta_softplus, ctx.has_states = a.delta_softplus, a.save_states
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_out: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if grad_out is None:
        return input_gradients(ctx)
    *tensors, states = ctx.saved_tensors
    if not ctx.has_states:  # traced by torch.jit, where it is unknown whether a backward follows
        _, _, states = torch.ops.mmvmamba.selective_scan(*tensors, ctx.delta_softplus, True)
    grads = torch.ops.mmvmamba.selective_scan_backward(
        grad_out, *tensors, states, ctx.delta_softplus
    )
    return _given(ctx, grads, tensors)


def _given(
    ctx: Any, grads: Iterable[Tensor], tensors: Iterable[Tensor | None]
) -> tuple[Tensor | None, ...]:
    """Return the gradients of the arguments that are not None."""
    pairs = zip(grads, tensors, strict=True)
    return input_gradients(ctx, (None if v is None else grad for grad, v in pairs))


if extension_error() is None:
    register_op('selective_scan', _fake, _backward, _setup_context)
    register_op('selective_scan_backward', _backward_fake)
    register_formulas('selective_scan', _cost)


# ---- the same op in Triton, which saves no states and leaves the gate to PyTorch ----


class _TritonArguments(NamedTuple):
    """Arguments of ``mmvmamba::selective_scan_triton`` in the order of its schema.

    Its backward has no ``out_dtype``.
    """

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    delta_bias: Tensor | None
    delta_softplus: bool
    out_dtype: torch.dtype | None = None

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """The differentiable arguments."""
        return self.u, self.delta, self.A, self.B, self.C, self.D, self.delta_bias


def _run_triton(*args: Any) -> tuple[Tensor, Tensor]:
    a = _Arguments(*args)
    acc = accumulate_dtype(a.u.dtype)
    out_dtype = a.u.dtype if a.z is None else acc
    y, last_state = torch.ops.mmvmamba.selective_scan_triton(
        a.u, a.delta, a.A, a.B, a.C, a.D, a.delta_bias, a.delta_softplus, out_dtype
    )
    if a.z is not None:
        y = (y * F.silu(a.z.to(acc))).to(a.u.dtype)
        y = mark_scan(y, a.A[:, :0], 0, 1)  # the states are counted with the op
    return y, last_state


def _check_triton(a: _TritonArguments) -> None:
    """Check the arguments of a direct call."""
    _check_arguments(a.u, a.delta, a.A, a.B, a.C, a.D, None, a.delta_bias)
    check_out_dtype(a.u.dtype, a.out_dtype)
    groups = {v.shape[1] for v in (a.B, a.C) if v.dim() != 2}
    if 3 in (a.B.dim(), a.C.dim()) or len(groups) > 1:
        raise ValueError(
            'B and C must have shape (D, N), or (B, G, N, L) with the same number of groups, but '
            f'got shapes {tuple(a.B.shape)} and {tuple(a.C.shape)}'
        )
    acc = accumulate_dtype(a.u.dtype)
    for name in ('A', 'D', 'delta_bias'):
        check_dtype(name, getattr(a, name), acc)
    for name in ('B', 'C'):
        value = getattr(a, name)
        check_dtype(name, value, acc if value.dim() == 2 else a.u.dtype)
    choose_backend('selective_scan', 'triton', a.u)


def _triton_forward(*args: Any) -> tuple[Tensor, Tensor]:
    _check_triton(_TritonArguments(*args))
    return triton_backend.run('selective_scan_forward', _triton_fake, *args)


def _triton_backward(grad_out: Tensor, *args: Any) -> tuple[Tensor, ...]:
    a = _TritonArguments(*args)
    _check_triton(a)
    check_tensor('grad_out', grad_out, tuple(a.u.shape), a.u.device)
    check_dtype('grad_out', grad_out, a.u.dtype, accumulate_dtype(a.u.dtype))
    return triton_backend.run('selective_scan_backward', _triton_backward_fake, grad_out, *args)


def _triton_fake(*args: Any) -> tuple[Tensor, Tensor]:
    a = _TritonArguments(*args)
    batch, dim, _ = a.u.shape
    acc = accumulate_dtype(a.u.dtype)
    y = a.u.new_empty(a.u.shape, dtype=a.out_dtype)
    return y, a.u.new_empty((batch, dim, a.A.shape[1]), dtype=acc)


def _triton_backward_fake(grad_out: Tensor, *args: Any) -> tuple[Tensor, ...]:
    return _fake_gradients(grad_out, _TritonArguments(*args).tensors)


def _triton_cost(*args: Any) -> int:
    a: Any = _TritonArguments(*args)
    return selective_scan_cost(a.u, a.A, a.D is not None, gate=False)


def _triton_setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    a = _TritonArguments(*inputs)
    ctx.save_for_backward(*a.tensors)
    ctx.delta_softplus = a.delta_softplus
    ctx.set_materialize_grads(False)


def _triton_gradients(ctx: Any, grad_out: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if grad_out is None:
        return input_gradients(ctx)
    tensors = ctx.saved_tensors
    grads = torch.ops.mmvmamba.selective_scan_triton_backward(
        grad_out, *tensors, ctx.delta_softplus
    )
    return _given(ctx, grads, tensors)


_TRITON_ARGUMENTS = (
    'Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? delta_bias, '
    'bool delta_softplus'
)
register_op(
    'selective_scan_triton',
    _triton_fake,
    _triton_gradients,
    _triton_setup_context,
    schema=f'({_TRITON_ARGUMENTS}, ScalarType out_dtype) -> (Tensor, Tensor)',
    kernel=_triton_forward,
)
register_op(
    'selective_scan_triton_backward',
    _triton_backward_fake,
    schema=f'(Tensor grad_out, {_TRITON_ARGUMENTS}) -> ({", ".join(["Tensor"] * 7)})',
    kernel=_triton_backward,
)
register_formulas('selective_scan_triton', _triton_cost)
