"""Where the time of a model goes, by kind of operator, with PyTorch's profiler.

Requires only torch and ``mmvmamba``.
"""

from collections.abc import Sequence

import torch

from mmvmamba.analysis.measure import Call, Row

#: The first kind one of whose words is in an operator's name is taken.
KINDS = {
    'scan': ('_scan',),
    'matrix product': ('addmm', 'aten::mm', 'bmm', 'mkl_linear', 'linear_pointwise', '_linear'),
    'convolution': ('conv', 'depthwise_silu'),
    'normalization': ('norm',),
    'attention': ('scaled_dot_product', 'softmax'),
    'activation': ('gelu', 'silu', 'relu'),
    'copy': ('copy', 'clone', 'contiguous', 'cat', 'stack', 'roll', 'pad', 'index'),
    'addition': ('aten::add', 'aten::sub'),
    'sum': ('aten::sum', 'mean'),
}
PRODUCTS = ('matrix product', 'convolution')


def kind_of(name: str) -> str:
    """Return the kind of an operator, or 'other'."""
    for kind, words in KINDS.items():
        if any(word in name for word in words):
            return kind
    return 'other'


def profile_passes(call: Call, device: torch.device, steps: int) -> list[Row]:
    """Operators of a call with the time (ms) each takes by itself, the slowest first."""
    for _ in range(2):
        call()
    on_gpu = device.type == 'cuda'
    with torch.autograd.profiler.profile(use_device='cuda' if on_gpu else None) as profile:
        for _ in range(steps):
            call()
    rows = []
    for event in profile.key_averages():
        time = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        row = dict(kind=kind_of(event.key), operator=event.key)
        rows.append(row | dict(passes=event.count / steps, ms=time / 1e3 / steps))
    total = sum(row['ms'] for row in rows)
    for row in rows:
        row['share'] = row['ms'] / total
    return sorted(rows, key=lambda row: -row['ms'])


def add_by_kind(rows: Sequence[Row]) -> list[Row]:
    """Sum passes, times and shares of the operators of each kind, the slowest kind first."""
    kinds: dict[str, Row] = {}
    for row in rows:
        kind = kinds.setdefault(row['kind'], dict(kind=row['kind'], passes=0, ms=0, share=0))
        for key in ('passes', 'ms', 'share'):
            kind[key] += row[key]
    return sorted(kinds.values(), key=lambda row: -row['ms'])


def rest_share(rows: Sequence[Row]) -> float:
    """Return the share of operators that are neither a matrix product nor a convolution."""
    return sum(row['share'] for row in rows if row['kind'] not in PRODUCTS)
