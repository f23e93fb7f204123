"""Multiply-adds of whole models, counted as in the paper.

On the meta device the tensors of a model are shapes only, so a detector at 1280x800 is counted in a
second. Products, convolutions and attention cost what PyTorch's FlopCounterMode says, and the scans
what :mod:`mmvmamba.ops` registers with it. This module adds the costs that fvcore and MMEngine give
normalization, pooling and interpolation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from math import floor, log2, prod
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from mmvmamba.ops.flops import scan_mark_cost, ss2d_scan_cost

Shape = Sequence[int]
Formula = Callable[..., int]

aten = torch.ops.aten
_FORMULAS: dict[Any, Formula] = {}


def _multiply_adds(*ops: Any) -> Callable[[Formula], Formula]:
    """Register the cost of ops in multiply-adds, each of which is two FLOPs for FlopCounterMode."""

    def register(cost: Formula) -> Formula:
        def flops(*args: Any, **kwargs: Any) -> int:
            return 2 * cost(*args, **kwargs)

        for op in ops:
            # FlopCounterMode decomposes an overload that has no formula of its own.
            overloads = [getattr(op, name) for name in op.overloads()]
            _FORMULAS.update(dict.fromkeys([op, *overloads], flops))
        return cost

    return register


@_multiply_adds(aten._scaled_dot_product_flash_attention_for_cpu)
def _attention(q: Shape, k: Shape, v: Shape, *args: Any, **kwargs: Any) -> int:
    return sdpa_flop_count(q, k, v) // 2


@_multiply_adds(aten.native_layer_norm)
def _layer_norm(x: Shape, shape: Shape, weight: Shape | None, *args: Any, **kwargs: Any) -> int:
    return prod(x) * (4 if weight is None else 5)


@_multiply_adds(aten.native_group_norm)
def _group_norm(x: Shape, weight: Shape | None, *args: Any, **kwargs: Any) -> int:
    return prod(x) * (4 if weight is None else 5)


@_multiply_adds(
    aten.native_batch_norm, aten._native_batch_norm_legit_no_training, aten.cudnn_batch_norm
)
def _batch_norm(x: Shape, weight: Shape | None, *args: Any, **kwargs: Any) -> int:
    return prod(x) * (1 if weight is None else 2)


@_multiply_adds(aten._adaptive_avg_pool2d)
def _average_pool(x: Shape, *args: Any, **kwargs: Any) -> int:
    return prod(x)


@_multiply_adds(aten.mean)
def _mean(x: Shape, dims: Any = None, keepdim: bool = False, **kwargs: Any) -> int:
    """Adaptive pooling to 1x1, which arrives as a mean over the last two dimensions."""
    pooled = len(x) == 4 and keepdim and sorted(d % 4 for d in dims) == [2, 3]
    return prod(x) if pooled else 0


@_multiply_adds(aten.upsample_bilinear2d, aten.grid_sampler_2d)
def _bilinear(*args: Any, out_shape: Shape, **kwargs: Any) -> int:
    return 4 * prod(out_shape)


@_multiply_adds(aten.upsample_nearest2d)
def _nearest(*args: Any, out_shape: Shape, **kwargs: Any) -> int:
    return prod(out_shape)


@_multiply_adds(aten._fft_r2c)
def _real_fft(x: Shape, dims: Sequence[int], *args: Any, **kwargs: Any) -> int:
    """Half of the usual estimate for a real transform of n points, 2.5 n log2(n) operations."""
    return round(1.25 * prod(x) * log2(prod(x[d] for d in dims)))


@_multiply_adds(aten._fft_c2r)
def _inverse_real_fft(x: Shape, dims: Sequence[int], *args: Any, out_shape: Shape) -> int:
    return _real_fft(out_shape, dims)


class MultiplyAdds(FlopCounterMode):
    """Count the multiply-adds of everything that runs in this context.

    Activations, additions and permutations cost nothing. A LayerNorm costs 5 an element, pooling 1.

    Attributes:
        rounding (int): Difference between the paper's numbers for detectors and segmentors and the
            exact ones. The paper counts the two products around each scan as einsum, whose cost
            NumPy reports with four digits.
    """

    def __init__(self) -> None:
        formulas = dict(_FORMULAS)
        for name, formula in dict(ss2d_scan=self._ss2d_scan, scan_mark=self._scan_mark).items():
            if hasattr(torch.ops.mmvmamba, name):  # scans without a kernel are only marked
                formulas[getattr(torch.ops.mmvmamba, name)] = formula
        super().__init__(display=False, custom_mapping=formulas)
        self.rounding = 0
        self._marked: Counter[str] = Counter()

    @property
    def total(self) -> int:
        """All multiply-adds, exact."""
        return self.get_total_flops() // 2

    @property
    def counts(self) -> Counter[str]:
        """Exact multiply-adds by op."""
        flops = self.get_flop_counts().get('Global', {})
        counts = Counter({op.__name__: count // 2 for op, count in flops.items() if count})
        counts.pop('scan_mark', None)
        return counts + self._marked

    def _ss2d_scan(
        self, x: Shape, proj: Shape, dt_weight: Shape, dt_bias: Shape, A: Shape, *_: Any, **__: Any
    ) -> int:
        self._add_rounding(x, A, dt_weight[-1])
        return 2 * ss2d_scan_cost(x, dt_weight, A)

    def _scan_mark(
        self, y: Shape, A: Shape, rank: int, extra: int, *args: Any, **kwargs: Any
    ) -> int:
        cost = scan_mark_cost(y, A, extra)
        if len(A) == 3:
            self._add_rounding(y, A, rank)
        self._marked['ss2d_scan' if len(A) == 3 else 'selective_scan'] += cost
        return 2 * cost

    def _add_rounding(self, x: Shape, A: Shape, rank: int) -> None:
        directions, _, states = A
        for terms in (rank + 2 * states, rank):
            cost = prod(x) * directions * terms
            self.rounding += floor(float(f'{2 * cost:.3e}') / 2) - cost


def count_multiply_adds(model: nn.Module, *inputs: Any, **kwargs: Any) -> MultiplyAdds:
    """Count the multiply-adds of one call of a model.

    Args:
        model (nn.Module): The model, which is set to eval mode.
        *inputs: Its arguments. If they and the model are on the meta device, nothing is computed.
        **kwargs: Its keyword arguments.

    Returns:
        MultiplyAdds: The counts.
    """
    model.eval()
    with torch.no_grad(), MultiplyAdds() as counter:
        model(*inputs, **kwargs)
    return counter
