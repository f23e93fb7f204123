"""Counts the multiply-adds of whole models as the paper does, without computing anything.

On the meta device a model's tensors are shapes only, so a detector at 1280x800 is counted in a
second. The costs are those of fvcore and MMEngine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from math import floor, log2, prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mmvmamba.ops.extension import load_extension
from mmvmamba.ops.flops import scan_mark_cost, selective_scan_cost, ss2d_scan_cost

aten = torch.ops.aten
#: Each element of a normalisation's input: with and without weights.
NORM_COST, PLAIN_NORM_COST = 5, 4
BATCH_NORM_COST, PLAIN_BATCH_NORM_COST = 2, 1
BILINEAR_COST = 4
#: A multiply-add is two operations.
FFT_COST = 1.25


def _convolution(out: Tensor, x: Tensor, weight: Tensor, *args: Any) -> int:
    transposed = args[4]
    return x.shape[0] * weight.numel() * prod((x if transposed else out).shape[2:])


def _product(out: Tensor, a: Tensor, b: Tensor, *args: Any) -> int:
    return a.numel() * b.shape[-1]


def _product_with_bias(out: Tensor, bias: Tensor, a: Tensor, b: Tensor, *args: Any) -> int:
    return _product(out, a, b)


def _attention(out: Any, q: Tensor, k: Tensor, v: Tensor, *args: Any) -> int:
    return q.numel() * k.shape[-2] + prod(q.shape[:-1]) * k.shape[-2] * v.shape[-1]


def _layer_norm(out: Any, x: Tensor, shape: Any, weight: Tensor | None, *args: Any) -> int:
    return x.numel() * (PLAIN_NORM_COST if weight is None else NORM_COST)


def _group_norm(out: Any, x: Tensor, weight: Tensor | None, *args: Any) -> int:
    return x.numel() * (PLAIN_NORM_COST if weight is None else NORM_COST)


def _batch_norm(out: Any, x: Tensor, weight: Tensor | None, *args: Any) -> int:
    return x.numel() * (PLAIN_BATCH_NORM_COST if weight is None else BATCH_NORM_COST)


def _average_pool(out: Tensor, x: Tensor, *args: Any) -> int:
    return x.numel()


def _mean(out: Tensor, x: Tensor, dims: Any, keepdim: bool = False, **kwargs: Any) -> int:
    """Adaptive pooling to 1x1 arrives as a mean over the last two dimensions."""
    pooled = x.dim() == 4 and keepdim and sorted(d % 4 for d in dims) == [2, 3]
    return x.numel() if pooled else 0


def _bilinear(out: Tensor, *args: Any, **kwargs: Any) -> int:
    return out.numel() * BILINEAR_COST


def _nearest(out: Tensor, *args: Any, **kwargs: Any) -> int:
    return out.numel()


def _real_fft(real: Tensor, dims: Sequence[int]) -> int:
    """The usual estimate for a real transform of n points: 2.5 n log2(n) operations."""
    return round(FFT_COST * real.numel() * log2(prod(real.shape[d] for d in dims)))


def _fft_of_real(out: Tensor, x: Tensor, dims: Sequence[int], *args: Any) -> int:
    return _real_fft(x, dims)


def _fft_to_real(out: Tensor, x: Tensor, dims: Sequence[int], *args: Any) -> int:
    return _real_fft(out, dims)


def _ss2d_scan(out: Any, x: Tensor, proj: Tensor, dt_weight: Tensor, *args: Any) -> int:
    return ss2d_scan_cost(x.shape, dt_weight.shape, args[1].shape)


def _selective_scan(out: Any, u: Tensor, delta: Tensor, A: Tensor, *args: Any) -> int:
    skip, gate = (value is not None for value in args[2:4])
    return selective_scan_cost(u.shape, A.shape, skip, gate)


def _scan_mark(out: Any, y: Tensor, A: Tensor, rank: int, extra: int, times: int) -> int:
    return scan_mark_cost(y.shape, A.shape, extra)


def _rounding(x_shape: Sequence[int], directions: int, *products: int) -> int:
    """What products of so many terms gain or lose in :attr:`MultiplyAdds.rounding`."""
    exact = [prod(x_shape) * directions * terms for terms in products]
    return sum(floor(float(f'{2 * cost:.3e}') / 2) - cost for cost in exact)


_COSTS: dict[Any, Callable[..., int]] = {
    aten.convolution: _convolution,
    aten._convolution: _convolution,
    aten.mm: _product,
    aten.bmm: _product,
    aten.addmm: _product_with_bias,
    aten.baddbmm: _product_with_bias,
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention: _attention,
    aten._scaled_dot_product_efficient_attention: _attention,
    aten.native_layer_norm: _layer_norm,
    aten.native_group_norm: _group_norm,
    aten.native_batch_norm: _batch_norm,
    aten._native_batch_norm_legit_no_training: _batch_norm,
    aten.cudnn_batch_norm: _batch_norm,
    aten._adaptive_avg_pool2d: _average_pool,
    aten.mean: _mean,
    aten._fft_r2c: _fft_of_real,
    aten._fft_c2r: _fft_to_real,
    aten.upsample_bilinear2d: _bilinear,
    aten.grid_sampler_2d: _bilinear,
    aten.upsample_nearest2d: _nearest,
}


class MultiplyAdds(TorchDispatchMode):
    """Counts the multiply-adds of what runs in its context.

    Activations, additions and reorderings count nothing; LayerNorm 5 an element, pooling 1.

    Attributes:
        counts (Counter[str]): Multiply-adds by op, exact.
        rounding (int): What is to be added for the figures that the paper gives for detectors and
            segmentors: there the two products around each scan were counted as einsum, whose cost
            NumPy reports with four digits.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.rounding = 0
        self.costs = dict(_COSTS)
        self.costs[torch.ops.mmvmamba.scan_mark] = _scan_mark
        if load_extension() is None:
            self.costs[torch.ops.mmvmamba.ss2d_scan] = _ss2d_scan
            self.costs[torch.ops.mmvmamba.selective_scan] = _selective_scan

    @property
    def total(self) -> int:
        """All multiply-adds."""
        return sum(self.counts.values())

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        cost = self.costs.get(func.overloadpacket)
        if cost is not None:
            name = func.overloadpacket.__name__
            if cost is _scan_mark:
                name = 'ss2d_scan' if args[1].dim() == 3 else 'selective_scan'
            self.counts[name] += cost(out, *args, **kwargs)
        if cost is _ss2d_scan:
            self._add_rounding(args[0], args[4], args[2].shape[-1])
        elif cost is _scan_mark and args[1].dim() == 3:
            self._add_rounding(*args[:3])
        return out

    def _add_rounding(self, x: Tensor, A: Tensor, rank: int) -> None:
        directions, _, states = A.shape
        self.rounding += _rounding(x.shape, directions, rank + 2 * states, rank)


def count_multiply_adds(model: nn.Module, *inputs: Any, **kwargs: Any) -> MultiplyAdds:
    """Counts one call of a model.

    Args:
        model (nn.Module): The model, which is put into eval mode.
        *inputs: Its arguments; on the meta device, with the model there too, nothing is computed.
        **kwargs: Its arguments by name.

    Returns:
        MultiplyAdds: The counts.
    """
    model.eval()
    with torch.no_grad(), MultiplyAdds() as counter:
        model(*inputs, **kwargs)
    return counter
