"""The ops between the matrix products of a VSS block, for inference on a CPU.

Each replaces two or three of PyTorch's passes over a map by one. They have no gradients.
"""

import torch
from torch import Tensor

from .extension import extension_error

DTYPES = (torch.float32, torch.bfloat16)


def can_run(x: Tensor, *parameters: Tensor) -> bool:
    """Return True if these ops have kernels for a tensor and its parameters."""
    if extension_error() is not None or x.dtype not in DTYPES:
        return False
    return all(value.device.type == 'cpu' for value in (x, *parameters))


def _check_inference(x: Tensor) -> None:
    if x.requires_grad and torch.is_grad_enabled():
        raise RuntimeError('mmvmamba: this op only supports inference, but x requires a gradient')


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Normalize over the last dimension, as :func:`torch.nn.functional.layer_norm`.

    Args:
        x (Tensor): float32 or bfloat16, (..., C).
        weight (Tensor): (C,).
        bias (Tensor): (C,).
        eps (float): Added to the variance.

    Returns:
        Tensor: (..., C), of the dtype of ``x``.
    """
    _check_inference(x)
    return torch.ops.mmvmamba.layer_norm(x, weight, bias, eps)


def add_layer_norm(
    total: Tensor, x: Tensor, y: Tensor, shift: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> Tensor:
    """Set ``total`` to x + y + shift, and return the LayerNorm of x + y.

    A residual block adds ``y`` to ``x`` and normalizes the sum for its next branch. ``shift`` is
    the bias of that branch's last product, which then accumulates into ``total``.

    Args:
        total (Tensor): As ``x``, contiguous.
        x (Tensor): float32 or bfloat16, (..., C).
        y (Tensor): As ``x``.
        shift (Tensor): (C,).
        weight (Tensor): (C,).
        bias (Tensor): (C,).
        eps (float): Added to the variance.

    Returns:
        Tensor: (..., C), of the dtype of ``x``.
    """
    _check_inference(x)
    return torch.ops.mmvmamba.add_layer_norm(total, x, y, shift, weight, bias, eps)


def bias_gelu_(x: Tensor, bias: Tensor) -> Tensor:
    """Set x to gelu(x + bias), with the exact GELU, and return it.

    Args:
        x (Tensor): float32 or bfloat16, contiguous, (..., C).
        bias (Tensor): (C,).
    """
    _check_inference(x)
    torch.ops.mmvmamba.bias_gelu_(x, bias)
    return x


def depthwise_silu(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return silu of the depthwise 3 x 3 convolution of a map, with a border of zeros.

    Args:
        x (Tensor): float32 or bfloat16, channels last, (N, H, W, C).
        weight (Tensor): (C, 1, 3, 3).
        bias (Tensor, optional): (C,). Defaults to None.

    Returns:
        Tensor: (N, H, W, C).
    """
    _check_inference(x)
    return torch.ops.mmvmamba.depthwise_silu(x, weight, bias)


if extension_error() is None:
    torch.library.register_fake('mmvmamba::layer_norm', lambda x, *_: x.new_empty(x.shape))
    torch.library.register_fake('mmvmamba::add_layer_norm', lambda _, x, *__: x.new_empty(x.shape))
    torch.library.register_fake('mmvmamba::bias_gelu_', lambda *_: None)
    torch.library.register_fake('mmvmamba::depthwise_silu', lambda x, *_: x.new_empty(x.shape))
