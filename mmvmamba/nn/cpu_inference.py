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


#: The activations in the memory of their input.
IN_PLACE = {nn.SiLU: torch.ops.aten.silu_, nn.GELU: torch.ops.aten.gelu_, nn.ReLU: torch.relu_}
#: Layers that take each position by itself and return memory of their own, or their input;
#: ``layers.py`` adds its own.
POINTWISE: set[type] = {Conv2d, nn.Dropout, nn.Identity, nn.LayerNorm, nn.Linear}
#: Bytes of the MLP's hidden map above which a CPU runs the MLP on slabs of positions. glibc takes
#: larger blocks from the system each time, and clearing their pages can take as long as a product.
WHOLE_HIDDEN = 32 * 2**20
#: Bytes of the hidden map of one slab.
SLAB_HIDDEN = 8 * 2**20


def has_no_hooks(*modules: nn.Module) -> bool:
    """Whether modules are of types known here, and no hook sees what goes in or comes out.

    Users replace modules, perhaps by one that mixes positions, or keeps what it returns.
    """
    everywhere = nn.modules.module
    if everywhere._global_forward_hooks or everywhere._global_forward_pre_hooks:
        return False
    return all(
        type(module) in POINTWISE and not module._forward_hooks and not module._forward_pre_hooks
        for module in modules
    )


def activate(act: nn.Module, x: Tensor, source: nn.Module) -> Tensor:
    """The activation of the result ``x`` of ``source``, in its memory where nobody keeps that."""
    # A trace of torch.jit would hold for the grad mode of its recording alone.
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return act(x)
    in_place = IN_PLACE.get(type(act))
    fresh = type(source) in (nn.Linear, Conv2d) and has_no_hooks(source, act)
    kept = x.requires_grad and torch.is_grad_enabled()
    if kept or not fresh or in_place is None:
        return act(x)
    return in_place(x, **_arguments(act))


def _arguments(act: nn.Module) -> dict[str, str]:
    return dict(approximate=act.approximate) if isinstance(act, nn.GELU) else {}


def runs_in_slabs(block: nn.Module, x: Tensor) -> bool:
    """Whether the MLP runs on slabs: inference on a large map, on a CPU, by known layers."""
    recorded = torch.compiler.is_compiling() or torch.jit.is_tracing()
    if recorded or torch.is_grad_enabled() or x.device.type != 'cpu':
        return False
    mlp, norm = block.mlp, block.norm2
    if type(getattr(mlp, 'fc1', None)) is not nn.Linear or type(norm) is not nn.LayerNorm:
        return False
    hidden = x.numel() // x.shape[-1] * mlp.fc1.out_features * x.element_size()
    if not isinstance(hidden, int):  # sizes are symbols where make_fx records for any
        return False
    if hidden <= WHOLE_HIDDEN or block.drop_path.training:
        return False
    return has_no_hooks(norm, block.drop_path, *mlp.modules())  # last: the dearest question


def add_mlp_in_slabs(block: nn.Module, x: Tensor) -> Tensor:
    """(N, H, W, d) -> (N, H, W, d), as the second branch does it for the whole map."""
    rows = max(1, SLAB_HIDDEN // (block.mlp.fc1.out_features * x.element_size()))
    slabs = x.flatten(0, 2).split(rows)  # (rows, d) each
    return torch.cat([slab + block.mlp(block.norm2(slab)) for slab in slabs]).view(x.shape)
