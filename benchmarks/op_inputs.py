"""Random inputs for the two scans, drawn on the CPU so that seeds are reproducible."""

from collections.abc import Callable

import torch
from torch import Tensor

Inputs = dict[str, Tensor]


def normal(*shape: int, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Draw normally distributed float32 values."""
    return torch.randn(shape) * std + mean


def to(inputs: Inputs, dtype: torch.dtype, device: torch.device, narrow: tuple[str, ...]) -> Inputs:
    """Move inputs to a device: ``narrow`` in the dtype, the others in that of the sums."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return {
        name: value.to(dtype if name in narrow else wide).to(device)
        for name, value in inputs.items()
    }


def ss2d_inputs(
    batch: int,
    size: tuple[int, int],
    channels: int,
    rank: int,
    dtype: torch.dtype,
    device: torch.device,
    d_state: int = 1,
    directions: int = 4,
) -> Inputs:
    """Draw the tensors of :func:`mmvmamba.ops.ss2d_scan`; time steps are near 0.1."""
    K, C = directions, channels
    inputs = dict(
        x=normal(batch, *size, C),
        proj=normal(batch, *size, K, rank + 2 * d_state, std=0.5 * d_state**-0.25),
        dt_weight=normal(K, C, rank, std=rank**-0.5),
        dt_bias=normal(K, C, mean=-2.0),
        A=-0.5 - torch.rand(K, C, d_state),
        D=normal(K, C),
    )
    return to(inputs, dtype, device, ('x', 'proj'))


def selective_inputs(
    batch: int,
    length: int,
    channels: int,
    dtype: torch.dtype,
    device: torch.device,
    d_state: int = 1,
    groups: int | None = 1,
    gate: bool = False,
) -> Inputs:
    """Draw the tensors of :func:`mmvmamba.ops.selective_scan` with ``delta_softplus``.

    Args:
        batch (int): The samples N.
        length (int): The positions L.
        channels (int): The channels D.
        dtype (torch.dtype): Of u, delta, z and of B and C that depend on the input.
        device (torch.device): Where the tensors are.
        d_state (int): The states S. Defaults to 1.
        groups (int, optional): B and C are (N, groups, S, L), or (D, S) for None. Defaults to 1.
        gate (bool): Whether there is a z. Defaults to False.
    """
    shape = (channels, d_state) if groups is None else (batch, groups, d_state, length)
    inputs = dict(
        u=normal(batch, channels, length),
        delta=normal(batch, channels, length, mean=-2.0),
        A=-0.5 - torch.rand(channels, d_state),
        B=normal(*shape, std=d_state**-0.25),
        C=normal(*shape, std=d_state**-0.25),
        D=normal(channels),
        delta_bias=normal(channels, std=0.1),
    )
    if gate:
        inputs['z'] = normal(batch, channels, length)
    return to(inputs, dtype, device, ('u', 'delta', 'B', 'C', 'z'))


def run(
    function: Callable[..., Tensor], inputs: Inputs, dtype: torch.dtype | None = None
) -> Inputs:
    """Return the output and the gradient of every input, by name.

    Args:
        function (Callable): Takes the inputs by name.
        inputs (dict[str, Tensor]): The inputs.
        dtype (torch.dtype, optional): Cast all inputs to this dtype. Defaults to None.
    """
    leaves = {k: v.detach().to(dtype or v.dtype).requires_grad_() for k, v in inputs.items()}
    out = function(**leaves)
    # The same values, exact in every dtype: sixteenths between -1 and 1.
    grad = torch.arange(out.numel(), device=out.device).mul(7).remainder(33).sub(16).div(16)
    out.backward(grad.view_as(out).to(out.dtype))
    return {'out': out.detach(), **{f'grad_{k}': v.grad for k, v in leaves.items()}}
