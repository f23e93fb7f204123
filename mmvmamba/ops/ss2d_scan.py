"""The core of SS2D: a map scanned in several orders, by one op without a reordered copy."""

from collections.abc import Callable, Sequence
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
    without_autocast,
)
from .cross_scan import to_map, to_sequence
from .extension import extension_error, input_gradients, num_chunks, register_op
from .flops import mark_scan, register_formulas, ss2d_scan_cost
from .scan_orders import Order, base_name, reorder, resolve_pattern, split_order, warn_gathered
from .selective_scan import Scan, scan_chunked, scan_reference


def _check_arguments(
    x: Tensor,
    proj: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    directions: int,
    out_dtype: torch.dtype | None,
) -> None:
    check_tensor('x', x, ('N', 'H', 'W', 'C'))
    N, H, W, C = x.shape
    check_tensor('dt_weight', dt_weight, (directions, C, 'R'), x.device)
    check_tensor('dt_bias', dt_bias, (directions, C), x.device)
    check_tensor('A', A, (directions, C, 'S'), x.device)
    check_tensor('D', D, (directions, C), x.device)
    if not torch.jit.is_tracing():
        check_state_size(A.shape[2])
        if H == 0 or W == 0 or C == 0:
            raise ValueError(
                f'x must have a height, width and channels of at least 1, but got {tuple(x.shape)}'
            )
        if dt_weight.shape[2] == 0:
            raise ValueError(
                'dt_weight must have a rank of at least 1 in its last dimension, but got 0'
            )
    inner = dt_weight.shape[2] + 2 * A.shape[2]
    check_tensor('proj', proj, (N, H, W, directions, inner), x.device)
    if proj.dtype != x.dtype:
        raise TypeError(f'proj must be {x.dtype} like x, but is {proj.dtype}')
    check_out_dtype(x.dtype, out_dtype)


def ss2d_scan_reference(
    x: Tensor,
    proj: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    pattern: str | Sequence[Order] = 'cross',
    out_dtype: torch.dtype | None = None,
    scan: Scan = scan_reference,
) -> Tensor:
    """:func:`ss2d_scan` in plain PyTorch: the specification of the kernels.

    ``scan`` is ``scan_reference`` or ``scan_chunked``.
    """
    acc = accumulate_dtype(x.dtype)
    H, W = x.shape[1:3]
    rank, d_state = dt_weight.shape[2], A.shape[2]
    y = torch.zeros_like(x, dtype=acc)
    for k, order in enumerate(resolve_pattern(pattern)):
        u = to_sequence(x.to(acc), order)  # (N, L, C)
        low, B, C = to_sequence(proj[:, :, :, k].to(acc), order).split([rank, d_state, d_state], -1)
        with without_autocast(x.device):
            dt = F.softplus(low @ dt_weight[k].to(acc).T + dt_bias[k].to(acc))
        out, _ = scan(u, dt, A[k].to(acc), B.unsqueeze(2), C.unsqueeze(2))
        y = y + to_map(out + D[k].to(acc) * u, order, H, W)
    return y.to(out_dtype or x.dtype)


def ss2d_scan(
    x: Tensor,
    proj: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    pattern: str | Sequence[Order] = 'cross',
    out_dtype: torch.dtype | None = None,
    backend: str = 'auto',
) -> Tensor:
    """Scan a map in the order of each direction and add the results in image order.

    The core of VMamba's SS2D (arXiv 2401.10166, Sec. 4.2) after its ``x_proj``: cross-scan,
    ``dt_proj``, selective scan and cross-merge. For each direction k, with the map read in that
    direction's order, (low, B, C) = proj[..., k, :] and dt = softplus(dt_weight[k] low +
    dt_bias[k]): h_t = exp(dt_t A[k]) h_{t-1} + dt_t B_t x_t and y_t = C_t . h_t + D[k] x_t.
    Sums and states are float32, or float64 for float64 input. The kernels read the map in place
    along rows and columns, without reordered copies.

    Args:
        x (Tensor): Map (N, H, W, C) in float32, float16, bfloat16 or float64, with H and W at
            least 1.
        proj (Tensor): Projection (N, H, W, K, R + 2 S) in image order, with the same dtype as
            ``x``: for each position and direction, R low-rank time steps, S values of B and S
            values of C.
        dt_weight (Tensor): Weights of the time steps (K, C, R).
        dt_bias (Tensor): Biases of the time steps (K, C).
        A (Tensor): Decay rates (K, C, S), 1 <= S <= 256; negative in a stable system.
        D (Tensor): Skip weights (K, C).
        pattern (str | Sequence[int | str]): 'cross', 'unidirectional', 'bidirectional', an order
            registered with :func:`register_scan_order`, or a sequence with the order of each of K
            directions: 0 or 'row', 1 or 'column', 2 or 'row_reversed', 3 or 'column_reversed', or a
            registered order, for which the map is gathered first. Defaults to 'cross'.
        out_dtype (torch.dtype, optional): Dtype of the result: that of ``x``, or that of the sums,
            in which half-precision maps do not overflow. Defaults to None, the dtype of ``x``.
        backend (str): 'native', 'triton' (GPU only, no float64), 'reference', or 'auto', which
            selects the first kernel that can run: Triton, then native on a GPU; native on a CPU.
            Defaults to 'auto'.

    Returns:
        Tensor: The merged map (N, H, W, C).

    Raises:
        TypeError: If an argument is not a floating-point tensor, or dtypes disagree.
        ValueError: If shapes or devices disagree, or ``pattern`` or ``backend`` is unknown.
        RuntimeError: If ``backend`` is 'native' or 'triton' and cannot run.
    """
    orders = resolve_pattern(pattern)
    _check_arguments(x, proj, dt_weight, dt_bias, A, D, len(orders), out_dtype)
    chosen = choose_backend('ss2d_scan', backend, x, len(orders))
    if chosen in ('reference', 'chunked'):
        scan = scan_reference if chosen == 'reference' else scan_chunked
        y = ss2d_scan_reference(x, proj, dt_weight, dt_bias, A, D, orders, out_dtype, scan)
        return mark_scan(y, A, dt_weight.shape[2], len(orders))
    if torch.jit.is_tracing() and torch.onnx.is_in_onnx_export():
        raise ValueError(
            "torch.onnx.export must be called with dynamo=True, or timm's onnx_export.py with "
            '--dynamo: the TorchScript exporter does not support the scan'
        )
    acc = accumulate_dtype(x.dtype)
    if any(isinstance(order, str) for order in orders):
        y = _scan_gathered(x, proj, dt_weight, dt_bias, A, D, orders, backend)
        return y.to(out_dtype or x.dtype)
    inputs = (x, proj, dt_weight.to(acc), dt_bias.to(acc), A.to(acc), D.to(acc))
    out_dtype = out_dtype or x.dtype
    if chosen == 'triton':
        return torch.ops.mmvmamba.ss2d_scan_triton(*inputs, orders, out_dtype)
    y, _ = torch.ops.mmvmamba.ss2d_scan(*inputs, orders, out_dtype, needs_states(inputs))
    return y


def _scan_gathered(
    x: Tensor,
    proj: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    orders: Sequence[Order],
    backend: str,
) -> Tensor:
    """Scan a map in registered orders: those along one path share a gathered map.

    The rows of that map, one after another, are the path's sequence, which the kernels read forward
    or reversed. The result has the dtype of the sums.
    """
    paths: dict[str, list[tuple[int, int]]] = {}  # '' for what the kernels support
    for k, order in enumerate(orders):
        path, row = split_order(order)
        paths.setdefault(path, []).append((k, row))
    # The gradient of unbind is one stack, that of each index would be a tensor of the whole size.
    parameters = [proj.unbind(3), *(tensor.unbind(0) for tensor in (dt_weight, dt_bias, A, D))]
    y = None
    for path, directions in paths.items():
        projs, *others = ([values[k] for k, _ in directions] for values in parameters)
        own, low = x, torch.stack(projs, 3)  # (N, H, W, directions, R + 2 S)
        if path:
            if not torch.compiler.is_compiling():
                warn_gathered(base_name(path))
            own = reorder(x, path)
            low = reorder(low.flatten(3), path).view(low.shape)
        weight, bias, decay, skip = (torch.stack(values) for values in others)
        rows = [row for _, row in directions]
        acc = accumulate_dtype(x.dtype)
        part = ss2d_scan(own, low, weight, bias, decay, skip, rows, acc, backend)
        part = reorder(part, path, inverse=True) if path else part
        y = part if y is None else y + part
    assert y is not None  # a pattern has an order
    return y


def decompositions() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return decompositions of the scan for ``ExportedProgram.run_decompositions``.

    A program that was exported for a fixed size then runs without this package. It has about 2
    sqrt(H W) steps for each scan and direction, so it is long and slower than the kernels. With a
    registered scan order, the program must have been exported with ``strict=False``.

    Returns:
        dict: The decompositions of ``mmvmamba::ss2d_scan``, if the native extension is loaded, and
        of ``mmvmamba::ss2d_scan_triton``.
    """
    ops = torch.ops.mmvmamba
    table: dict[Callable[..., Any], Callable[..., Any]]
    table = {ops.ss2d_scan_triton.default: lambda *args: _decomposed(*args)[0]}
    if extension_error() is None:
        table[ops.ss2d_scan.default] = _decomposed
    return table


class _Arguments(NamedTuple):
    """Arguments of ``mmvmamba::ss2d_scan`` in the order of its schema.

    ``mmvmamba::ss2d_scan_triton`` has no ``save_states``; a backward differs after the tensors.
    """

    x: Tensor
    proj: Tensor
    dt_weight: Tensor
    dt_bias: Tensor
    A: Tensor
    D: Tensor
    orders: Sequence[int]
    out_dtype: torch.dtype | None = None
    save_states: bool = False

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The differentiable arguments."""
        return self.x, self.proj, self.dt_weight, self.dt_bias, self.A, self.D


def _cost(*args: Any) -> int:
    """Return the multiply-adds of a forward pass; the arguments are shapes, not tensors."""
    a: Any = _Arguments(*args)
    return ss2d_scan_cost(a.x, a.dt_weight, a.A)


def _decomposed(*args: Any) -> tuple[Tensor, Tensor]:
    a = _Arguments(*args)
    y = ss2d_scan_reference(*a.tensors, pattern=a.orders, out_dtype=a.out_dtype, scan=scan_chunked)
    return y, a.x.new_empty((0,), dtype=a.A.dtype)  # no states: a program for inference


def _fake(*args: Any) -> tuple[Tensor, Tensor]:
    a = _Arguments(*args)
    N, H, W, C = a.x.shape
    chunks = num_chunks(H * W, a.x.device) if a.save_states else 0
    size = N * len(a.orders) * chunks * a.A.shape[2] * C
    states = a.x.new_empty((size,), dtype=accumulate_dtype(a.x.dtype))
    return a.x.new_empty(a.x.shape, dtype=a.out_dtype), states


def _backward_fake(grad_y: Tensor, *args: Any) -> tuple[Tensor, ...]:
    return tuple(tensor.new_empty(tensor.shape) for tensor in _Arguments(*args).tensors)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor | tuple[Tensor, ...]) -> None:
    a, states = _Arguments(*inputs), () if isinstance(output, Tensor) else output[1:]
    ctx.save_for_backward(*a.tensors, *states)
    ctx.orders, ctx.out_dtype, ctx.has_states = a.orders, a.out_dtype, a.save_states
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_y: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if grad_y is None:
        return input_gradients(ctx)
    *tensors, states = ctx.saved_tensors
    if not ctx.has_states:  # traced by torch.jit, where it is unknown whether a backward follows
        _, states = torch.ops.mmvmamba.ss2d_scan(*tensors, ctx.orders, ctx.out_dtype, True)
    grads = torch.ops.mmvmamba.ss2d_scan_backward(grad_y, *tensors, states, ctx.orders)
    return input_gradients(ctx, grads)


if extension_error() is None:
    register_op('ss2d_scan', _fake, _backward, _setup_context)
    register_op('ss2d_scan_backward', _backward_fake)
    register_formulas('ss2d_scan', _cost)


# ---- the same op in Triton, which saves no states ----


def _check_triton(a: _Arguments) -> None:
    """Check the arguments of a direct call."""
    _check_arguments(*a.tensors, len(resolve_pattern(a.orders)), a.out_dtype)
    acc = accumulate_dtype(a.x.dtype)
    for name in ('dt_weight', 'dt_bias', 'A', 'D'):
        check_dtype(name, getattr(a, name), acc)
    choose_backend('ss2d_scan', 'triton', a.x, len(a.orders))


def _triton_forward(*args: Any) -> Tensor:
    _check_triton(_Arguments(*args))
    return triton_backend.run('ss2d_scan_forward', _triton_fake, *args)


def _triton_backward(grad_y: Tensor, *args: Any) -> tuple[Tensor, ...]:
    a = _Arguments(*args)
    _check_triton(a)
    check_tensor('grad_y', grad_y, tuple(a.x.shape), a.x.device)
    check_dtype('grad_y', grad_y, a.x.dtype, accumulate_dtype(a.x.dtype))
    return triton_backend.run('ss2d_scan_backward', _backward_fake, grad_y, *args)


def _triton_fake(*args: Any) -> Tensor:
    return _fake(*args)[0]


def _triton_gradients(ctx: Any, grad_y: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad_y is None:
        return input_gradients(ctx)
    grads = torch.ops.mmvmamba.ss2d_scan_triton_backward(grad_y, *ctx.saved_tensors, ctx.orders)
    return input_gradients(ctx, grads)


_TENSORS = 'Tensor x, Tensor proj, Tensor dt_weight, Tensor dt_bias, Tensor A, Tensor D'
register_op(
    'ss2d_scan_triton',
    _triton_fake,
    _triton_gradients,
    _setup_context,
    schema=f'({_TENSORS}, int[] orders, ScalarType out_dtype) -> Tensor',
    kernel=_triton_forward,
)
register_op(
    'ss2d_scan_triton_backward',
    _backward_fake,
    schema=f'(Tensor grad_y, {_TENSORS}, int[] orders) -> ({", ".join(["Tensor"] * 6)})',
    kernel=_triton_backward,
)
register_formulas('ss2d_scan_triton', _cost)
