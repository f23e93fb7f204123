"""Optimizations of the network for CPUs, apart from the plain modules.

- In inference, with the same values: activations in the memory of their input, and the MLP of a
  large map in slabs of positions.
- A convolution that ``torch.compile`` compiles once for changing sizes.
"""

from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: The largest hidden map (bytes) of an MLP that is computed as a whole. glibc requests larger
#: blocks from the system each time, and clearing their pages can take as long as a matrix product.
MAX_HIDDEN_BYTES = 32 * 2**20
#: Bytes of the hidden map of a slab.
SLAB_BYTES = 8 * 2**20

_IN_PLACE: dict[type[nn.Module], Any] = {
    nn.GELU: torch.ops.aten.gelu_,
    nn.ReLU: torch.relu_,
    nn.SiLU: torch.ops.aten.silu_,
}
#: Layers that treat each position by itself, and return new memory or their input.
_POSITIONWISE: set[type[nn.Module]] = {
    nn.Dropout,
    nn.GELU,
    nn.Identity,
    nn.LayerNorm,
    nn.Linear,
    nn.ReLU,
    nn.SiLU,
    nn.Sigmoid,
}

Layer = TypeVar('Layer', bound=type[nn.Module])
Sizes = list[int]  # for height and width


def positionwise(layer: Layer) -> Layer:
    """Mark a class as one that treats each position by itself; its subclasses are not marked."""
    _POSITIONWISE.add(layer)
    return layer


def has_no_hooks(*modules: nn.Module) -> bool:
    """Return True if these modules run without forward hooks."""
    everywhere: Any = nn.modules.module
    if everywhere._global_forward_hooks or everywhere._global_forward_pre_hooks:
        return False
    return not any(module._forward_hooks or module._forward_pre_hooks for module in modules)


def is_plain_linear(module: nn.Module) -> bool:
    """Return True if a call of this module does no more than a product with its weight.

    Quantization and adapters replace the module or its ``forward``, pruning sets its weight in a
    forward hook, and tools that watch gradients have backward hooks.
    """
    if type(module) is not nn.Linear or 'forward' in vars(module) or not has_no_hooks(module):
        return False
    everywhere: Any = nn.modules.module
    if everywhere._global_backward_hooks or everywhere._global_backward_pre_hooks:
        return False
    return not (module._backward_hooks or module._backward_pre_hooks)


def activate(act: nn.Module, x: Tensor, source: nn.Module) -> Tensor:
    """Apply an activation to the result ``x`` of ``source``, in place if nothing else keeps it."""
    in_place = _IN_PLACE.get(type(act))
    # A trace of torch.jit would keep the grad mode of its recording.
    if in_place is None or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return act(x)
    needs_grad = x.requires_grad and torch.is_grad_enabled()
    if needs_grad or type(source) not in (nn.Linear, Conv2d) or not has_no_hooks(source, act):
        return act(x)
    return in_place(x, approximate=act.approximate) if isinstance(act, nn.GELU) else in_place(x)


def runs_in_slabs(x: Tensor, norm: nn.Module, mlp: nn.Module, drop_path: nn.Module) -> bool:
    """Return True if :func:`add_mlp_in_slabs` gives the block's result for a map (N, H, W, d).

    It does in inference on a CPU, for a large hidden map, if all layers are known to treat each
    position by itself and no hook watches them.
    """
    recorded = torch.compiler.is_compiling() or torch.jit.is_tracing()
    if recorded or torch.is_grad_enabled() or x.device.type != 'cpu' or drop_path.training:
        return False
    fc1 = getattr(mlp, 'fc1', None)
    if type(fc1) is not nn.Linear or type(norm) is not nn.LayerNorm:
        return False
    hidden_bytes = x.numel() // x.shape[-1] * fc1.out_features * x.element_size()
    # Sizes are symbols while make_fx records for any size.
    if not isinstance(hidden_bytes, int) or hidden_bytes <= MAX_HIDDEN_BYTES:
        return False
    modules = (norm, drop_path, *mlp.modules())
    return all(type(module) in _POSITIONWISE for module in modules) and has_no_hooks(*modules)


def add_mlp_in_slabs(x: Tensor, norm: nn.Module, mlp: Any) -> Tensor:
    """Return x + mlp(norm(x)) for a map (N, H, W, d), computed in slabs of positions."""
    rows = max(1, SLAB_BYTES // (mlp.fc1.out_features * x.element_size()))
    slabs = x.flatten(0, 2).split(rows)  # (rows, d) each
    return torch.cat([slab + mlp(norm(slab)) for slab in slabs]).view(x.shape)


def cast_for_products(x: Tensor) -> Tensor:
    """Cast an operand of a product or convolution as autocast does, if it is enabled."""
    device = x.device.type
    # torch 2.10 cannot compile this call, which is true for each device that it compiles for.
    available = torch.compiler.is_compiling() or torch.amp.is_autocast_available(device)
    if x.dtype == torch.float64 or not available:  # autocast leaves float64 as it is
        return x
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


class Conv2d(nn.Conv2d):
    """:class:`torch.nn.Conv2d` for maps (N, C, H, W) in channels-last memory.

    While ``torch.compile`` records a model for a CPU, it is an op of its own. PyTorch's convolution
    chooses among libraries by sizes, so that new sizes compile again. In training, inductor changes
    the layout of what convolutions keep for their backward, and compares strides to do so: with
    symbolic strides (``dynamic=True``) this fails (torch 2.12), and with fixed ones it copies maps
    (N, H, W, C) that need no copy.
    """

    def forward(self, x: Tensor) -> Tensor:
        compiled = torch.compiler.is_compiling() and x.device.type == 'cpu'
        if not compiled or torch.compiler.is_exporting():
            return super().forward(x)
        if self.dilation != (1, 1) or self.padding_mode != 'zeros' or isinstance(self.padding, str):
            return super().forward(x)  # the op supports none of these
        x, weight = cast_for_products(x), cast_for_products(self.weight)
        bias = None if self.bias is None else cast_for_products(self.bias)
        return _conv2d(x, weight, bias, self.stride, self.padding, self.groups)


@torch.library.custom_op('mmvmamba::conv2d', mutates_args=())
def _conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sizes, padding: Sizes, groups: int
) -> Tensor:
    y = F.conv2d(x, weight, bias, stride, padding, groups=groups)
    return y.contiguous(memory_format=torch.channels_last)


@_conv2d.register_fake
def _conv2d_fake(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sizes, padding: Sizes, groups: int
) -> Tensor:
    sizes = [
        (size + 2 * pad - kernel) // step + 1
        for size, pad, kernel, step in zip(
            x.shape[2:], padding, weight.shape[2:], stride, strict=True
        )
    ]
    y = x.new_empty((x.shape[0], *sizes, weight.shape[0]))  # (N, H, W, C)
    return y.permute(0, 3, 1, 2)


@torch.library.custom_op('mmvmamba::conv2d_backward', mutates_args=())
def _conv2d_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: Sizes,
    padding: Sizes,
    groups: int,
    needed: list[bool],
) -> list[Tensor]:
    """Return those gradients of x, weight and bias that are ``needed``."""
    grads = torch.ops.aten.convolution_backward(
        grad, x, weight, [weight.shape[0]], stride, padding, [1, 1], False, [0, 0], groups, needed
    )
    formats = (torch.channels_last, torch.contiguous_format, torch.contiguous_format)
    return [
        g.contiguous(memory_format=memory_format)
        for g, memory_format, need in zip(grads, formats, needed, strict=True)
        if need
    ]


@_conv2d_backward.register_fake
def _conv2d_backward_fake(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: Sizes,
    padding: Sizes,
    groups: int,
    needed: list[bool],
) -> list[Tensor]:
    likes = (
        torch.empty_like(x, memory_format=torch.channels_last),
        torch.empty_like(weight, memory_format=torch.contiguous_format),
        weight.new_empty(weight.shape[:1]),
    )
    return [like for like, need in zip(likes, needed, strict=True) if need]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, ctx.stride, ctx.padding, ctx.groups = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    needed = list(ctx.needs_input_grad)
    tensors = needed[:3]  # x, weight, bias
    grads = iter(
        _conv2d_backward(grad, *ctx.saved_tensors, ctx.stride, ctx.padding, ctx.groups, tensors)
    )
    return tuple(next(grads) if need else None for need in needed)


_conv2d.register_autograd(_backward, setup_context=_setup_context)
