"""The functions of ``causal_conv1d`` and ``causal_conv1d_cuda``, in PyTorch.

A causal depthwise convolution over (B, D, L): position t sees the last W inputs up to its own.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Gradients = tuple[Tensor | None, ...]
ACTIVATIONS = (None, 'silu', 'swish')


def causal_conv1d_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    seq_idx: Tensor | str | None = None,
    initial_states: Tensor | str | None = None,
    return_final_states: bool = False,
    final_states_out: Tensor | None = None,
    activation: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Convolve each channel causally.

    Args:
        x (Tensor): The input (B, D, L).
        weight (Tensor): The weight (D, W).
        bias (Tensor, optional): The bias (D). Defaults to None.
        seq_idx (None): Packed sequences are not supported. As in causal_conv1d 1.0 and 1.1, this
            argument or the next may be the activation.
        initial_states (Tensor, optional): The inputs before the first (B, D, W - 1). Defaults to
            None, for zeros.
        return_final_states (bool): Whether to return the last W - 1 inputs as well. Defaults to
            False.
        final_states_out (Tensor, optional): Where to write them. Defaults to None.
        activation (str, optional): 'silu' or its other name 'swish'. Defaults to None.

    Returns:
        Tensor | tuple[Tensor, Tensor]: The output (B, D, L), of the dtype of ``x``, and with
        ``return_final_states`` the inputs (B, D, W - 1).

    Raises:
        NotImplementedError: If ``seq_idx`` is given.
        ValueError: If ``activation`` is unknown, or ``x`` has no positions.
    """
    if isinstance(seq_idx, str):
        seq_idx, activation = None, seq_idx
    if isinstance(initial_states, str):
        initial_states, activation = None, initial_states
    if seq_idx is not None:
        raise NotImplementedError(
            'packed sequences (seq_idx) are not supported by this stand-in; install causal_conv1d'
        )
    history = weight.shape[1] - 1
    if initial_states is None:
        padded = F.pad(x, (history, 0))
    else:
        padded = torch.cat([initial_states.to(x.dtype), x], dim=-1)
    y = _convolve(padded, x.shape[-1], weight, bias, activation)
    if not return_final_states:
        return y
    final_states = padded[..., padded.shape[-1] - history :]
    if final_states_out is None:
        return y, final_states.clone()
    return y, final_states_out.copy_(final_states)


def causal_conv1d_update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    cache_seqlens: Tensor | None = None,
    conv_state_indices: Tensor | None = None,
) -> Tensor:
    """Convolve the next inputs of sequences, and update the buffer of recent inputs.

    Args:
        x (Tensor): The next inputs (B, D, L), or one (B, D).
        conv_state (Tensor): The last inputs (B, D, S), S >= W - 1, which is updated.
        weight (Tensor): The weight (D, W).
        bias (Tensor, optional): The bias (D). Defaults to None.
        activation (str, optional): 'silu' or its other name 'swish'. Defaults to None.
        cache_seqlens (None): Ring buffers are not supported.
        conv_state_indices (None): Selecting buffers by index is not supported.

    Returns:
        Tensor: The output, of shape and dtype of ``x``.

    Raises:
        NotImplementedError: If ``cache_seqlens`` or ``conv_state_indices`` is given.
        ValueError: If ``activation`` is unknown, or ``x`` has no positions.
    """
    for what, value in (
        ('ring buffers (cache_seqlens)', cache_seqlens),
        ('selected buffers (conv_state_indices)', conv_state_indices),
    ):
        if value is not None:
            raise NotImplementedError(
                f'{what} are not supported by this stand-in; install causal_conv1d'
            )
    inputs = x.unsqueeze(-1) if x.dim() == 2 else x
    seen = torch.cat([conv_state.to(x.dtype), inputs], dim=-1)
    y = _convolve(seen, inputs.shape[-1], weight, bias, activation)
    # The buffer outlives the step, and must not keep its graph.
    conv_state.copy_(seen[..., inputs.shape[-1] :].detach())
    return y.reshape(x.shape)


def _convolve(
    x: Tensor, length: int, weight: Tensor, bias: Tensor | None, activation: str | None
) -> Tensor:
    """(B, D, S + L) -> (B, D, L), S >= W - 1."""
    if length == 0:
        raise ValueError('x must have at least one position, but has length 0')
    if activation not in ACTIVATIONS:
        raise ValueError(f'activation must be one of {ACTIVATIONS}, but got {activation!r}')
    # The kernels of causal_conv1d multiply and add in float32.
    dtype = torch.promote_types(x.dtype, weight.dtype)
    bias = None if bias is None else bias.to(dtype)
    y = F.conv1d(x.to(dtype), weight.to(dtype).unsqueeze(1), bias, groups=weight.shape[0])
    y = y[..., y.shape[-1] - length :]
    return (y if activation is None else F.silu(y)).to(x.dtype)


# ---- causal_conv1d.cpp_functions ----


def causal_conv1d_fwd_function(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seq_idx: Tensor | None,
    initial_states: Tensor | None,
    final_states_out: Tensor | None,
    silu_activation: bool,
) -> Tensor:
    """Return the output of :func:`causal_conv1d_fn`, without a gradient."""
    activation = 'silu' if silu_activation else None
    with torch.no_grad():
        y, _ = causal_conv1d_fn(
            x, weight, bias, seq_idx, initial_states, True, final_states_out, activation
        )
    return y


def causal_conv1d_bwd_function(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    grad_out: Tensor,
    seq_idx: Tensor | None,
    initial_states: Tensor | None,
    grad_final_states: Tensor | None,
    grad_x: Tensor | None,
    return_grad_initial_states: bool,
    silu_activation: bool,
) -> Gradients:
    """Return the gradients of x, weight, bias and initial states.

    That of ``x`` is written to ``grad_x`` if there is one. The others are None where there is no
    tensor, and the last one without ``return_grad_initial_states``.
    """
    tensors = (x, weight, bias, initial_states)
    leaves: Any = [None if v is None else v.detach().requires_grad_() for v in tensors]
    activation = 'silu' if silu_activation else None
    with torch.enable_grad():
        results = causal_conv1d_fn(
            leaves[0], leaves[1], leaves[2], seq_idx, leaves[3], True, None, activation
        )
    number = 1 if grad_final_states is None else 2
    grad_results = (grad_out, grad_final_states)[:number]
    given = [v for v in leaves if v is not None]
    found = iter(torch.autograd.grad(results[:number], given, grad_results))
    grads: list[Any] = [None if v is None else next(found) for v in leaves]
    if grad_x is not None:
        grads[0] = grad_x.copy_(grads[0])
    if not return_grad_initial_states:
        grads[3] = None
    return tuple(grads)


def causal_conv1d_update_function(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu_activation: bool,
    cache_seqlens: Tensor | None = None,
    conv_state_indices: Tensor | None = None,
) -> Tensor:
    """Return the output of :func:`causal_conv1d_update`, and update ``conv_state``."""
    activation = 'silu' if silu_activation else None
    with torch.no_grad():
        return causal_conv1d_update(
            x, conv_state, weight, bias, activation, cache_seqlens, conv_state_indices
        )


# ---- causal_conv1d_cuda up to 1.4 ----


def extension_fwd(x: Tensor, weight: Tensor, bias: Tensor | None, *args: Any) -> Tensor:
    """Call :func:`causal_conv1d_fwd_function`.

    ``args`` are ``silu_activation`` in version 1.0, ``seq_idx`` comes before it in 1.1, and 1.2 to
    1.4 have all arguments.
    """
    *optional, silu_activation = args
    args = (*optional, *(None,) * (3 - len(optional)), silu_activation)
    return causal_conv1d_fwd_function(x, weight, bias, *args)


def extension_bwd(
    x: Tensor, weight: Tensor, bias: Tensor | None, grad_out: Tensor, *args: Any
) -> Gradients:
    """Call :func:`causal_conv1d_bwd_function`, and return three gradients up to version 1.1.

    ``args`` are ``grad_x`` and ``silu_activation`` in 1.0, ``seq_idx`` comes before them in 1.1,
    and 1.2 to 1.4 have all arguments.
    """
    if len(args) > 3:
        return causal_conv1d_bwd_function(x, weight, bias, grad_out, *args)
    *optional, grad_x, silu_activation = args
    seq_idx = optional[0] if optional else None
    return causal_conv1d_bwd_function(
        x, weight, bias, grad_out, seq_idx, None, None, grad_x, False, silu_activation
    )[:3]
