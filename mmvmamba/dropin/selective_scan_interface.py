"""The functions of ``mamba_ssm.ops.selective_scan_interface``, on the ops of this package.

``mamba_inner_fn_no_out_proj`` and the ``bimamba`` functions are those of Vim's fork of mamba_ssm
(arXiv 2401.09417).
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from mmvmamba.ops import selective_scan, selective_scan_reference

from .causal_conv1d import causal_conv1d_fn
from .extensions import check_real
from .layer_norm import check_defaults

#: Arguments and results are the same.
selective_scan_fn = selective_scan


def selective_scan_ref(
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
) -> Tensor | tuple[Tensor, Tensor]:
    """Scan position by position in PyTorch, with the arguments of ``selective_scan_fn``.

    The arguments may have different dtypes.
    """
    y, last_state = selective_scan_reference(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
    return (y, last_state) if return_last_state else y


def mamba_inner_fn_no_out_proj(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
    *,
    A_b: Tensor | None = None,
) -> Tensor:
    """Convolve, project, scan and gate: a Mamba mixer without its outer projections.

    Args:
        xz (Tensor): The input and the gate (B, 2 D, L).
        conv1d_weight (Tensor): Weight of the causal depthwise convolution (D, 1, W).
        conv1d_bias (Tensor, optional): Its bias (D).
        x_proj_weight (Tensor): Projection to time steps of rank R, B and C (R + 2 N, D).
        delta_proj_weight (Tensor): Projection of the time steps (D, R).
        A (Tensor): The decay rates (D, N).
        B (Tensor, optional): The input weights. Defaults to None, for projected ones.
        C (Tensor, optional): The output weights. Defaults to None, for projected ones.
        D (Tensor, optional): The skip weights (D). Defaults to None.
        delta_bias (Tensor, optional): Added to the time steps (D). Defaults to None.
        B_proj_bias (Tensor, optional): Added to projected B (N). Defaults to None.
        C_proj_bias (Tensor, optional): Added to projected C (N). Defaults to None.
        delta_softplus (bool): Whether to apply softplus to the time steps. Defaults to True.
        A_b (Tensor, optional): The decay rates (D, N) of a second scan, from the last position,
            which is added. Defaults to None.

    Returns:
        Tensor: The output (B, D, L).
    """
    check_real('A', A)
    x, z = xz.chunk(2, dim=1)
    u: Any = causal_conv1d_fn(x, conv1d_weight.squeeze(1), conv1d_bias, activation='silu')
    rank, size = delta_proj_weight.shape[1], A.shape[1]
    # (B, D, L) -> (B, L, R + 2 N)
    projected = F.linear(u.transpose(1, 2), x_proj_weight).split((rank, size, size), dim=-1)
    delta = F.linear(projected[0], delta_proj_weight).transpose(1, 2)
    B = _with_bias(projected[1], B_proj_bias) if B is None else B
    C = _with_bias(projected[2], C_proj_bias) if C is None else C
    # In autocast the projections may have a lower precision than the convolution.
    u, z = u.to(delta.dtype), z.to(delta.dtype)
    B, C = (v if v.dim() == 2 else v.to(delta.dtype) for v in (B, C))

    y: Any = selective_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
    if A_b is None:
        return y
    u, z, delta = u.flip(-1), z.flip(-1), delta.flip(-1)
    B, C = (v if v.dim() == 2 else v.flip(-1) for v in (B, C))
    back: Any = selective_scan(u, delta, A_b, B, C, D, z, delta_bias, delta_softplus)
    return y + back.flip(-1)


def mamba_inner_fn(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
    checkpoint_lvl: int = 1,
    b_rms_weight: None = None,
    c_rms_weight: None = None,
    dt_rms_weight: None = None,
    b_c_dt_rms_eps: float = 1e-6,
) -> Tensor:
    """Apply :func:`mamba_inner_fn_no_out_proj`, and project its output to (B, L, E).

    ``out_proj_weight`` is (E, D) and ``out_proj_bias`` (E). ``checkpoint_lvl`` has no effect.

    Raises:
        NotImplementedError: If there is a weight of an RMS norm of B, C or the time steps.
    """
    check_defaults(
        b_rms_weight=b_rms_weight, c_rms_weight=c_rms_weight, dt_rms_weight=dt_rms_weight
    )
    projections = (conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight)
    biases = (delta_bias, B_proj_bias, C_proj_bias)
    y = mamba_inner_fn_no_out_proj(xz, *projections, A, B, C, D, *biases, delta_softplus)
    return F.linear(y.transpose(1, 2), out_proj_weight, out_proj_bias)


def bimamba_inner_fn(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    A_b: Tensor,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    """Apply :func:`mamba_inner_fn` with a scan from each end, and add both.

    ``A_b`` (D, N) are the decay rates of the scan from the last position. All else is shared.
    """
    projections = (conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight)
    y = mamba_inner_fn_no_out_proj(xz, *projections, A, *args, **kwargs, A_b=A_b)
    return F.linear(y.transpose(1, 2), out_proj_weight, out_proj_bias)


#: In mamba_ssm too, these are the functions above on ``selective_scan_fn``.
mamba_inner_ref, bimamba_inner_ref = mamba_inner_fn, bimamba_inner_fn


def _with_bias(weights: Tensor, bias: Tensor | None) -> Tensor:
    """(B, L, N), (N,) -> (B, N, L)."""
    return (weights if bias is None else weights + bias.to(weights.dtype)).transpose(1, 2)
