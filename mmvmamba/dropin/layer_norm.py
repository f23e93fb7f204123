"""The functions of ``mamba_ssm.ops.triton.layer_norm``, in PyTorch.

Other settings of the Triton kernels, such as dropout, raise TypeError.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def layer_norm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    *,
    eps: float = 1e-6,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    is_rms_norm: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Add a residual and normalise the sum over its last dimension, in float32.

    Args:
        x (Tensor): The input (..., D).
        weight (Tensor): The weight (D).
        bias (Tensor, optional): The bias (D).
        residual (Tensor, optional): Added to ``x``, of its shape. Defaults to None.
        eps (float): Added to the variance. Defaults to 1e-6.
        prenorm (bool): Whether to return the sum as well. Defaults to False.
        residual_in_fp32 (bool): Whether the sum is float32 if there is no residual, whose dtype it
            has otherwise. Defaults to False.
        is_rms_norm (bool): Whether to divide by the root mean square, without subtracting the mean.
            Defaults to False.

    Returns:
        Tensor | tuple[Tensor, Tensor]: The output, of shape and dtype of ``x``, and with
        ``prenorm`` the sum.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    total = x.to(wide) if residual is None else x.to(wide) + residual.to(wide)
    scale, shift = weight.to(wide), None if bias is None else bias.to(wide)
    if is_rms_norm:
        y = F.rms_norm(total, weight.shape, scale, eps)
        y = y if shift is None else y + shift
    else:
        y = F.layer_norm(total, weight.shape, scale, shift, eps)
    y = y.to(x.dtype)
    if not prenorm:
        return y
    if residual is not None:
        return y, total.to(residual.dtype)
    return y, total if residual_in_fp32 else x


def rms_norm_fn(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None = None, **settings: Any
) -> Tensor | tuple[Tensor, Tensor]:
    """Apply :func:`layer_norm_fn` with ``is_rms_norm=True``."""
    return layer_norm_fn(x, weight, bias, residual, is_rms_norm=True, **settings)


class RMSNorm(nn.Module):
    """Root mean square norm over the last dimension, with a weight and no bias.

    Args:
        hidden_size (int): Size of the dimension.
        eps (float): Added to the mean square. Defaults to 1e-5.
        device, dtype: Of the weight.
    """

    def __init__(
        self, hidden_size: int, eps: float = 1e-5, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(hidden_size, device=device, dtype=dtype))
        self.bias: None
        self.register_parameter('bias', None)

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None = None,
        prenorm: bool = False,
        residual_in_fp32: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Normalise as :func:`rms_norm_fn`."""
        return rms_norm_fn(
            x,
            self.weight,
            self.bias,
            residual,
            eps=self.eps,
            prenorm=prenorm,
            residual_in_fp32=residual_in_fp32,
        )
