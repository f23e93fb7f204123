"""Optimizations of the network for CPUs, apart from the plain modules.

- In inference, a block in few passes over memory: matrix products without biases, and between them
  the ops of :mod:`mmvmamba.ops.fused_ops`, in slabs of positions.
- A convolution that ``torch.compile`` compiles once for changing sizes.
"""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from mmvmamba.ops import fused_ops
from mmvmamba.ops.backend import autocast_enabled, without_autocast
from mmvmamba.ops.extension import LIBRARY, extension_error

#: The largest hidden map of an MLP (bytes): slabs of positions keep it in the cache.
SLAB_BYTES = 8 * 2**20

#: Whether products of bfloat16 take longer than those of float32: on x86 without AMX or AMD's
#: AVX512_BF16.
SLOW_BFLOAT16 = extension_error() is None and not torch.ops.mmvmamba.cpu_has_fast_bfloat16()

#: Layer types that :func:`run_block` reproduces, with the forward that it reproduces.
_PLAIN: dict[type[nn.Module], Callable[..., Any]] = {
    layer: layer.forward
    for layer in (nn.Dropout, nn.GELU, nn.Identity, nn.LayerNorm, nn.Linear, nn.SiLU)
}

Layer = TypeVar('Layer', bound=type[nn.Module])
Sizes = list[int]  # for height and width


def plain(layer: Layer) -> Layer:
    """Mark a class as one that :func:`run_block` knows; its subclasses are not marked."""
    _PLAIN[layer] = layer.forward
    return layer


def _is_plain(module: nn.Module) -> bool:
    """Return True unless the class or its forward is replaced, in all modules or in this one."""
    kind = type(module)
    return kind in _PLAIN and kind.forward is _PLAIN[kind] and 'forward' not in vars(module)


def has_no_hooks(*modules: nn.Module) -> bool:
    """Return True if these modules run without forward hooks."""
    everywhere: Any = nn.modules.module
    if everywhere._global_forward_hooks or everywhere._global_forward_pre_hooks:
        return False
    return not any(module._forward_hooks or module._forward_pre_hooks for module in modules)


def is_plain_linear(module: nn.Module) -> bool:
    """Return True if a call of this module does no more than a product with its weight.

    Quantization and adapters replace the module, its ``forward`` or the kind of its weight, pruning
    sets its weight in a forward hook, and tools that watch gradients have backward hooks.
    """
    if type(module) is not nn.Linear or not _is_plain(module) or not has_no_hooks(module):
        return False
    if is_traceable_wrapper_subclass(module.weight):
        return False
    everywhere: Any = nn.modules.module
    if everywhere._global_backward_hooks or everywhere._global_backward_pre_hooks:
        return False
    return not (module._backward_hooks or module._backward_pre_hooks)


def is_unobserved_inference(x: Tensor) -> bool:
    """Return True if gradients are off and no tracer, transform or mode observes ``x``."""
    if torch.is_grad_enabled() or torch.jit.is_tracing() or torch.compiler.is_compiling():
        return False
    # Dispatch modes such as FlopCounterMode only know PyTorch's own ops.
    if type(x) is not Tensor or torch._C._len_torch_dispatch_stack() > 0:
        return False
    transformed = torch._C._functorch.peek_interpreter_stack() is not None  # vmap, jvp, ...
    return not transformed and forward_ad._current_level < 0


def _infers(x: Tensor) -> bool:
    """As :func:`is_unobserved_inference`, but True under ``torch.compile`` without gradients."""
    if torch.compiler.is_compiling():
        return not torch.compiler.is_exporting() and not torch.is_grad_enabled()
    return is_unobserved_inference(x)


def fuses(block: Any, x: Tensor) -> bool:
    """Return True if :func:`run_block` gives the result of a block for a map (N, H, W, d).

    True for inference on a CPU in float32 or bfloat16, if the block has the default layers and none
    of them is replaced, hooked or traced.
    """
    if not _infers(x):
        return False
    # Looking up 70 attributes of modules takes longer than a product, so read the dictionaries.
    layers = block._modules
    op, mlp = layers.get('op'), layers.get('mlp')
    if type(block) not in _PLAIN or not _is_plain(op) or not _is_plain(mlp):
        return False
    inner, hidden = op._modules, mlp._modules
    norms = (layers.get('norm'), inner.get('out_norm'), layers.get('norm2'))
    linears = (*map(inner.get, ('in_proj', 'out_proj')), *map(hidden.get, ('fc1', 'fc2')))
    conv, acts = inner.get('conv2d'), (inner.get('act'), inner.get('out_act'), hidden.get('act'))
    drops = (inner.get('drop'), hidden.get('drop'), layers.get('drop_path'))
    if any(type(linear) is not nn.Linear for linear in linears) or type(conv) is not Conv2d:
        return False
    if not all(isinstance(norm, nn.LayerNorm) for norm in norms):
        return False
    layers = (*norms, *linears, conv, *acts, *drops)
    if not all(map(_is_plain, layers)) or not has_no_hooks(op, mlp, *layers):
        return False
    weights: list[Any] = [m._parameters.get('weight') for m in (*linears, *norms, conv)]
    biases: list[Any] = [m._parameters.get('bias') for m in (*linears, *norms)]
    if any(bias is not None for bias in biases[:2]):  # of in_proj and out_proj
        return False
    weights += biases[2:]
    if any(type(weight) is not nn.Parameter for weight in weights):
        return False
    dtype = weights[0].dtype
    return (
        fused_ops.can_run(x, *weights)
        and all(weight.dtype == dtype for weight in weights)
        and x.dtype == dtype_of_products(x.device.type, dtype)
        and x.dim() == 4
        and x.shape[3] == op.dim
        and not any(drop.training and getattr(drop, 'p', 0) > 0 for drop in drops)
        and op.gate == 'none'
        and op.scan != 'cascade'
        and tuple(map(type, acts)) == (nn.SiLU, nn.Identity, nn.GELU)
        and acts[2].approximate == 'none'
        and (conv.kernel_size, conv.padding, conv.stride) == ((3, 3), (1, 1), (1, 1))
        and (conv.dilation, conv.padding_mode, conv.groups) == ((1, 1), 'zeros', op.d_inner)
        and not mlp.gate
    )


def run_block(block: Any, x: Tensor) -> Tensor:
    """Run a block for which :func:`fuses` is true: (N, H, W, d) -> (N, H, W, d).

    The core's input and output have the dtype of ``x``. What comes before and after it is computed
    in that dtype too, or in float32 where that is faster.

    Under ``torch.compile``, the parts before and after the core are custom ops. Inductor would
    recompute the residual sums in each consumer, and cannot choose slabs by the map's size.
    """
    compiled = torch.compiler.is_compiling()
    ops = torch.ops.mmvmamba
    start, finish = (ops.block_start, ops.block_end) if compiled else (_start, _end)
    layers = block._modules  # as in fuses
    op, norm, norm2, inner = layers['op'], layers['norm'], layers['norm2'], layers['op']._modules
    conv, norms = inner['conv2d'], (inner['out_norm'], norm2)
    fc1, fc2 = layers['mlp']._modules['fc1'], layers['mlp']._modules['fc2']
    dtype = torch.float32 if SLOW_BFLOAT16 and x.dtype == torch.bfloat16 else x.dtype
    weight = inner['in_proj'].weight.to(dtype)
    y = start(x, norm.weight, norm.bias, norm.eps, weight, conv.weight, conv.bias)
    y = op.core(y, op.scan).to(x.dtype)  # frees the map before, so that its memory is used again
    scales, shifts = [norm.weight for norm in norms], [norm.bias for norm in norms]
    weights = [linear.weight.to(dtype) for linear in (inner['out_proj'], fc1, fc2)]
    eps, biases = [norm.eps for norm in norms], [fc1.bias, fc2.bias]
    return finish(x, y, scales, shifts, eps, weights, biases)


def _start(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    eps: float,
    weight: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
) -> Tensor:
    """Norm, in_proj, convolution and SiLU of a map: (N, H, W, d) -> (N, H, W, C)."""
    rows = x.reshape(-1, x.shape[3])
    u = weight.new_empty(rows.shape[0], weight.shape[0])
    for out, part in _slabs(4 * weight.shape[0], u, rows):  # about the slabs of the MLP
        norm = fused_ops.layer_norm(part.to(u.dtype), scale, shift, eps)
        torch.mm(norm, weight.t(), out=out)  # autocast leaves products with out= alone
    u = u.view(*x.shape[:3], weight.shape[0])
    return fused_ops.depthwise_silu(u, conv_weight, conv_bias).to(x.dtype)


def _end(
    x: Tensor,
    y: Tensor,
    scales: list[Tensor],
    shifts: list[Tensor],
    eps: list[float],
    weights: list[Tensor],
    biases: list[Tensor],
) -> Tensor:
    """Output norm, out_proj and residual, and the MLP with its own.

    The maps are the block's input (N, H, W, d) and the core's output (N, H, W, C). Norms are the
    output norm and that of the MLP, weights those of out_proj, fc1 and fc2.
    """
    rows, y = x.reshape(-1, x.shape[3]), y.reshape(-1, y.shape[3])
    out_weight, weight1, weight2 = (weight.t() for weight in weights)
    total = weight1.new_empty(rows.shape)  # contiguous
    with without_autocast(x.device):  # the operands below already have their dtype
        for out, part, branch in _slabs(weight1.shape[1], total, rows, y):
            part, branch = part.to(out.dtype), branch.to(out.dtype)
            norm = fused_ops.layer_norm(branch, scales[0], shifts[0], eps[0])
            branch = torch.mm(norm, out_weight)
            norm = fused_ops.add_layer_norm(
                out, part, branch, biases[1], scales[1], shifts[1], eps[1]
            )
            hidden = fused_ops.bias_gelu_(torch.mm(norm, weight1), biases[0])
            out.addmm_(hidden, weight2)
    return total.view(x.shape).to(x.dtype)


def _slabs(width: int, *maps: Tensor) -> Iterable[tuple[Tensor, ...]]:
    """Split maps of equal rows into slabs: a map of this width takes at most :data:`SLAB_BYTES`."""
    rows = maps[0].shape[0]
    count = -(-rows * width * maps[0].element_size() // SLAB_BYTES)
    if count <= 1:
        return [maps]
    return zip(*(x.split(-(-rows // count)) for x in maps), strict=True)


# torch.library.custom_op would take longer for each call than the products of a small map.
LIBRARY.define(
    'block_start(Tensor x, Tensor scale, Tensor shift, float eps, Tensor weight, '
    'Tensor conv_weight, Tensor? conv_bias) -> Tensor'
)
LIBRARY.define(
    'block_end(Tensor x, Tensor y, Tensor[] scales, Tensor[] shifts, float[] eps, '
    'Tensor[] weights, Tensor[] biases) -> Tensor'
)
LIBRARY.impl('block_start', _start, 'CPU')
LIBRARY.impl('block_end', _end, 'CPU')


def _start_fake(
    x: Tensor, scale: Tensor, shift: Tensor, eps: float, weight: Tensor, *_: Any
) -> Tensor:
    return x.new_empty((*x.shape[:3], weight.shape[0]))


torch.library.register_fake('mmvmamba::block_start', _start_fake)
torch.library.register_fake('mmvmamba::block_end', lambda x, *_: x.new_empty(x.shape))


def dtype_of_products(device: str, dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of products of ``dtype`` on a type of device: autocast's, if it is on."""
    # Autocast leaves float64 and integers as they are.
    if dtype == torch.float64 or not dtype.is_floating_point or not autocast_enabled(device):
        return dtype
    return torch.get_autocast_dtype(device)


def cast_for_products(x: Tensor) -> Tensor:
    """Cast an operand of a product or convolution as autocast does, if it is enabled."""
    return x.to(dtype_of_products(x.device.type, x.dtype))


def _multiplies_in_float32(x: Tensor, weight: Tensor) -> bool:
    """Return True in inference for products of bfloat16 on a CPU where they are slow."""
    if not SLOW_BFLOAT16 or x.device.type != 'cpu':
        return False
    dtypes = (dtype_of_products('cpu', operand.dtype) for operand in (x, weight))
    return all(dtype == torch.bfloat16 for dtype in dtypes) and _infers(x)


def project(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply (..., d) by a weight (C, d); in inference in float32 where that is faster."""
    if not _multiplies_in_float32(x, weight):
        return F.linear(x, weight)
    with without_autocast(x.device):
        return F.linear(x.float(), weight.float())


@plain
class LayerNorm(nn.LayerNorm):
    """:class:`torch.nn.LayerNorm` over the last dimension, in inference on a CPU by our own op."""

    def forward(self, x: Tensor) -> Tensor:
        if self.weight is None or self.bias is None or len(self.normalized_shape) > 1:
            return super().forward(x)
        kernel = is_unobserved_inference(x) and fused_ops.can_run(x, self.weight, self.bias)
        if not kernel or x.shape[-1] != len(self.weight):
            return super().forward(x)
        return fused_ops.layer_norm(x, self.weight, self.bias, self.eps)


class Stem(nn.Sequential):
    """Layers that begin with a convolution. In inference on a CPU, GELU works in place.

    Its input is a new map, which only a hook could see. Memory for another one has to be cleared by
    the system, which takes longer than GELU itself.
    """

    def forward(self, x: Tensor) -> Tensor:
        in_place = x.device.type == 'cpu' and is_unobserved_inference(x) and self._is_known()
        if not in_place:
            return super().forward(x)  # type: ignore[no-untyped-call]
        for layer in self:
            exact = type(layer) is nn.GELU and layer.approximate == 'none'
            x = torch.ops.aten.gelu_(x) if exact else layer(x)
        return x

    def _is_known(self) -> bool:
        return type(self[0]) is Conv2d and all(map(_is_plain, self)) and has_no_hooks(*self)


@plain
class Conv2d(nn.Conv2d):
    """:class:`torch.nn.Conv2d` for maps (N, C, H, W) in channels-last memory.

    In inference on a CPU, a small map with a large weight becomes one matrix product.

    While ``torch.compile`` records a model for a CPU, it is an op of its own. PyTorch's convolution
    chooses among libraries by sizes, so that new sizes compile again. In training, inductor changes
    the layout of what convolutions keep for their backward, and compares strides to do so: with
    symbolic strides (``dynamic=True``) this fails (torch 2.12), and with fixed ones it copies maps
    (N, H, W, C) that need no copy.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != 'cpu' or x.dim() != 4 or torch.compiler.is_exporting():
            return super().forward(x)
        if self.dilation != (1, 1) or self.padding_mode != 'zeros' or isinstance(self.padding, str):
            return super().forward(x)  # the op supports none of these
        compiled = torch.compiler.is_compiling()
        if not compiled and not is_unobserved_inference(x):
            return super().forward(x)
        dtype = dtype_of_products('cpu', x.dtype)
        if dtype != dtype_of_products('cpu', self.weight.dtype):
            return super().forward(x)  # an error
        cast = Tensor.float if _multiplies_in_float32(x, self.weight) else cast_for_products
        x, weight = cast(x), cast(self.weight)
        bias = None if self.bias is None else cast(self.bias)
        convolve = _conv2d if compiled else _convolve
        with without_autocast(x.device):
            y = convolve(x, weight, bias, list(self.stride), list(self.padding), self.groups)
        return y.to(dtype)


def _convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sizes, padding: Sizes, groups: int
) -> Tensor:
    """Convolve a map (N, C, H, W) in channels-last memory.

    oneDNN reorders the weight in every call, which takes longer than the convolution itself of a
    map whose columns (N H' W', C h w) are much smaller than the weight.
    """
    N, C = x.shape[:2]
    h, w = weight.shape[2:]
    H, W = _output_size(x, weight, stride, padding)
    columns = N * H * W * weight[0].numel()
    if groups > 1 or C != weight.shape[1] or not 0 < 4 * columns <= weight.numel():
        return F.conv2d(x, weight, bias, stride, padding, groups=groups)
    x = F.pad(x.permute(0, 2, 3, 1), (0, 0, padding[1], padding[1], padding[0], padding[0]))
    windows = x.unfold(1, h, stride[0]).unfold(2, w, stride[1])  # (N, H', W', C, h, w)
    y = F.linear(windows.reshape(N * H * W, -1), weight.flatten(1), bias)
    return y.view(N, H, W, -1).permute(0, 3, 1, 2)


def _output_size(x: Tensor, weight: Tensor, stride: Sizes, padding: Sizes) -> Sizes:
    return [
        (size + 2 * pad - kernel) // step + 1
        for size, pad, kernel, step in zip(
            x.shape[2:], padding, weight.shape[2:], stride, strict=True
        )
    ]


@torch.library.custom_op('mmvmamba::conv2d', mutates_args=())
def _conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sizes, padding: Sizes, groups: int
) -> Tensor:
    y = _convolve(x, weight, bias, stride, padding, groups)
    return y.contiguous(memory_format=torch.channels_last)


@_conv2d.register_fake
def _conv2d_fake(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sizes, padding: Sizes, groups: int
) -> Tensor:
    sizes = _output_size(x, weight, stride, padding)
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
