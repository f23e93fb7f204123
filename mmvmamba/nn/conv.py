"""A convolution of channels-last maps that is compiled once for changing sizes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Absent before torch 2.7, where nothing tells an export from a compilation.
_is_exporting = getattr(torch.compiler, 'is_exporting', None)


def cast_for_products(x: Tensor) -> Tensor:
    """What autocast makes of an operand of a product or convolution, where it is at work."""
    device = x.device.type
    # torch 2.4 cannot compile the question, whose answer is yes wherever code is compiled for.
    available = torch.compiler.is_compiling() or torch.amp.is_autocast_available(device)
    if x.dtype == torch.float64 or not available:  # float64 is left as it is
        return x
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


@torch.library.custom_op(
    'mmvmamba::conv2d',
    mutates_args=(),
    schema='(Tensor x, Tensor weight, Tensor? bias, int[] stride, int[] padding, int groups) '
    '-> Tensor',
)
def _conv2d(x, weight, bias, stride, padding, groups):
    y = F.conv2d(x, weight, bias, stride, padding, groups=groups)
    return y.contiguous(memory_format=torch.channels_last)


@_conv2d.register_fake
def _(x, weight, bias, stride, padding, groups):
    sizes = [
        (size + 2 * pad - kernel) // step + 1
        for size, pad, kernel, step in zip(
            x.shape[2:], padding, weight.shape[2:], stride, strict=True
        )
    ]
    y = x.new_empty((x.shape[0], *sizes, weight.shape[0]))  # (N, H, W, C)
    return y.permute(0, 3, 1, 2)


@torch.library.custom_op(
    'mmvmamba::conv2d_backward',
    mutates_args=(),
    schema='(Tensor grad, Tensor x, Tensor weight, int[] stride, int[] padding, int groups, '
    'bool[] needed) -> Tensor[]',
)
def _conv2d_backward(grad, x, weight, stride, padding, groups, needed):
    grads = torch.ops.aten.convolution_backward(
        grad, x, weight, [weight.shape[0]], stride, padding, [1, 1], False, [0, 0], groups, needed
    )
    formats = (torch.channels_last, torch.contiguous_format, torch.contiguous_format)
    return [
        g.contiguous(memory_format=form)
        for g, form, need in zip(grads, formats, needed, strict=True)
        if need
    ]


@_conv2d_backward.register_fake
def _(grad, x, weight, stride, padding, groups, needed):
    N, C, H, W = x.shape
    likes = (
        x.new_empty((N, H, W, C)).permute(0, 3, 1, 2),
        weight.new_empty(weight.shape),
        weight.new_empty(weight.shape[:1]),
    )
    return [like for like, need in zip(likes, needed, strict=True) if need]


def _setup_context(ctx, inputs, output):
    x, weight, bias, ctx.stride, ctx.padding, ctx.groups = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx, grad):
    needed = list(ctx.needs_input_grad[:3])
    grads = iter(
        _conv2d_backward(grad, *ctx.saved_tensors, ctx.stride, ctx.padding, ctx.groups, needed)
    )
    return *(next(grads) if need else None for need in needed), None, None, None


_conv2d.register_autograd(_backward, setup_context=_setup_context)


class Conv2d(nn.Conv2d):
    """:class:`torch.nn.Conv2d` for maps (N, C, H, W) in channels-last memory.

    While ``torch.compile`` records a model on a CPU it is an op of its own. PyTorch's chooses
    among libraries by sizes, so that sizes that were to be free compile again. In training
    inductor would lay out anew what convolutions keep for their backward, and compares strides for
    that: where these are symbols (``dynamic=True``) it fails to (torch 2.12), and where they are
    numbers it copies maps (N, H, W, C) that need no copy.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling() or not self._is_recorded_on_a_cpu(x):
            return super().forward(x)
        if self.dilation != (1, 1) or self.padding_mode != 'zeros' or isinstance(self.padding, str):
            return super().forward(x)  # the op has none of these
        x, weight = cast_for_products(x), cast_for_products(self.weight)
        bias = None if self.bias is None else cast_for_products(self.bias)
        return _conv2d(x, weight, bias, self.stride, self.padding, self.groups)

    def _is_recorded_on_a_cpu(self, x: Tensor) -> bool:
        return x.device.type == 'cpu' and _is_exporting is not None and not _is_exporting()
