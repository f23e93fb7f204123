"""The functions of ``mamba_ssm.ops.triton.layer_norm``, in PyTorch, with the arguments of 2.3.

Settings of the Triton kernels that are not provided, such as dropout, raise NotImplementedError.
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
    x1: None = None,
    weight1: None = None,
    bias1: None = None,
    eps: float = 1e-6,
    dropout_p: float = 0.0,
    rowscale: None = None,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    is_rms_norm: bool = False,
    return_dropout_mask: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Add a residual and normalize the sum over its last dimension, in float32.

    Args:
        x (Tensor): The input (..., D).
        weight (Tensor): The weight (D).
        bias (Tensor, optional): The bias (D).
        residual (Tensor, optional): Added to ``x``, of its shape. Defaults to None.
        x1 (None): Second inputs are not supported.
        weight1 (None): Nor is their weight.
        bias1 (None): Nor is their bias.
        eps (float): Added to the variance. Defaults to 1e-6.
        dropout_p (float): Dropout is not supported. Defaults to 0.
        rowscale (None): Scales of rows are not supported.
        prenorm (bool): Whether to return the sum as well. Defaults to False.
        residual_in_fp32 (bool): Whether the sum is float32 if there is no residual; otherwise it
            has the residual's dtype. Defaults to False.
        is_rms_norm (bool): Whether to divide by the root mean square, without subtracting the mean.
            Defaults to False.
        return_dropout_mask (bool): Not supported. Defaults to False.

    Returns:
        Tensor | tuple[Tensor, Tensor]: The output, of shape and dtype of ``x``, and with
        ``prenorm`` the sum.

    Raises:
        NotImplementedError: If an argument that is not supported differs from its default.
    """
    check_defaults(
        x1=x1,
        weight1=weight1,
        bias1=bias1,
        dropout_p=dropout_p,
        rowscale=rowscale,
        return_dropout_mask=return_dropout_mask,
    )
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
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    *args: Any,
    **settings: Any,
) -> Tensor | tuple[Tensor, Tensor]:
    """Apply :func:`layer_norm_fn` with ``is_rms_norm=True``."""
    settings['is_rms_norm'] = True
    return layer_norm_fn(x, weight, bias, residual, *args, **settings)


def check_defaults(**settings: Any) -> None:
    """Raise NotImplementedError unless each unsupported setting is None, 0 or False."""
    for name, value in settings.items():
        if isinstance(value, Tensor) or value:
            raise NotImplementedError(
                f'{name} is not supported by this stand-in; install mamba_ssm'
            )


class RMSNorm(nn.Module):
    """Root mean square norm over the last dimension, with a weight and no bias.

    Args:
        hidden_size (int): Size of the dimension.
        eps (float): Added to the mean square. Defaults to 1e-5.
        dropout_p (float): Dropout is not supported. Defaults to 0.
        device, dtype: Of the weight.
    """

    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-5,
        dropout_p: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        check_defaults(dropout_p=dropout_p)
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
        """Normalize as :func:`rms_norm_fn`."""
        return rms_norm_fn(
            x,
            self.weight,
            self.bias,
            residual,
            eps=self.eps,
            prenorm=prenorm,
            residual_in_fp32=residual_in_fp32,
        )
