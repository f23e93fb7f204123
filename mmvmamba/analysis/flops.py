"""Multiply-adds of whole models, counted as in the paper.

On the meta device, the tensors of a model have only shapes, so counting a detector at 1280x800
takes a second. PyTorch's FlopCounterMode counts products, convolutions and attention, and the scans
with the formulas that :mod:`mmvmamba.ops` registers with it. This module adds the costs of
normalization, pooling and interpolation as in fvcore and MMEngine.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from math import floor, log2, prod
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from mmvmamba.ops.flops import scan_mark_cost, ss2d_scan_cost

Shape = Sequence[int]

aten = torch.ops.aten


def _norm(x: Shape, weight: Shape | None) -> int:
    return prod(x) * (4 if weight is None else 5)


def _batch_norm(x: Shape, weight: Shape | None, *args: Any, **kwargs: Any) -> int:
    return prod(x) * (1 if weight is None else 2)


def _mean(x: Shape, dims: Any = None, keepdim: bool = False, **kwargs: Any) -> int:
    """Adaptive pooling to 1x1, which arrives as a mean over the last two dimensions."""
    pooled = len(x) == 4 and keepdim and sorted(d % 4 for d in dims) == [2, 3]
    return prod(x) if pooled else 0


def _bilinear(*args: Any, out_shape: Shape, **kwargs: Any) -> int:
    return 4 * prod(out_shape)


def _real_fft(x: Shape, dims: Sequence[int]) -> int:
    """Half of the usual estimate for a real transform of n points, 2.5 n log2(n) operations."""
    return round(1.25 * prod(x) * log2(prod(x[d] for d in dims)))


#: Multiply-adds by op. Tensors among the arguments are shapes.
_COSTS: dict[Any, Callable[..., int]] = {
    aten._scaled_dot_product_flash_attention_for_cpu: (
        lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v) // 2
    ),
    aten.native_layer_norm: lambda x, shape, weight, *_, **__: _norm(x, weight),
    aten.native_group_norm: lambda x, weight, *_, **__: _norm(x, weight),
    aten.native_batch_norm: _batch_norm,
    aten._native_batch_norm_legit_no_training: _batch_norm,
    aten.cudnn_batch_norm: _batch_norm,
    aten._adaptive_avg_pool2d: lambda x, *_, **__: prod(x),
    aten.mean: _mean,
    aten.upsample_bilinear2d: _bilinear,
    aten.grid_sampler_2d: _bilinear,
    aten.upsample_nearest2d: lambda *_, out_shape, **__: prod(out_shape),
    aten._fft_r2c: lambda x, dims, *_, **__: _real_fft(x, dims),
    aten._fft_c2r: lambda x, dims, *_, out_shape: _real_fft(out_shape, dims),
}


def _formulas() -> dict[Any, Callable[..., int]]:
    """Return the formulas of :data:`_COSTS` for FlopCounterMode, which counts two FLOPs each."""

    def double(cost: Callable[..., int]) -> Callable[..., int]:
        return lambda *args, **kwargs: 2 * cost(*args, **kwargs)

    # FlopCounterMode decomposes an overload that has no formula of its own.
    return {
        key: double(cost)
        for op, cost in _COSTS.items()
        for key in (op, *(getattr(op, name) for name in op.overloads()))
    }


class MultiplyAdds(FlopCounterMode):
    """Count the multiply-adds of everything that runs in this context.

    Activations, additions and permutations cost nothing. A LayerNorm costs 5 per element, and
    pooling 1.

    Attributes:
        rounding (int): Difference between the paper's numbers for detectors and segmentors and the
            exact ones. The paper counts the two products around each scan as einsum, whose cost
            NumPy reports with four digits.
    """

    def __init__(self) -> None:
        formulas = _formulas()
        scans = dict.fromkeys(('ss2d_scan', 'ss2d_scan_triton'), self._ss2d_scan)
        for name, formula in (scans | {'scan_mark': self._scan_mark}).items():
            if hasattr(torch.ops.mmvmamba, name):  # the native extension may be missing
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
        """Exact multiply-adds by op, for any backend of the scan."""
        flops = self.get_flop_counts().get('Global', {})
        counts = self._marked.copy()
        for op, count in flops.items():
            if count and op is not torch.ops.mmvmamba.scan_mark:
                counts[op.__name__.removesuffix('_triton')] += count // 2
        return counts

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
