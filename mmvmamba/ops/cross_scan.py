"""Cross-scan and cross-merge: a map as sequences, and back (VMamba, Sec. 4.2)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .backend import check_tensor
from .scan_orders import (
    COLUMN,
    COLUMN_REVERSED,
    ROW_REVERSED,
    Order,
    reorder,
    resolve_pattern,
)


def to_sequence(x: Tensor, order: Order) -> Tensor:
    """Read a map (N, H, W, C) as the sequence (N, L, C) of one order."""
    if isinstance(order, str):
        return reorder(x, order).flatten(1, 2)
    x = x.transpose(1, 2) if order in (COLUMN, COLUMN_REVERSED) else x
    x = x.flatten(1, 2)
    return x.flip(1) if order in (ROW_REVERSED, COLUMN_REVERSED) else x


def to_map(y: Tensor, order: Order, height: int, width: int) -> Tensor:
    """Put a sequence (N, L, C) of one order back in image order (N, H, W, C)."""
    if isinstance(order, str):
        return reorder(y.unflatten(1, (height, width)), order, inverse=True)
    y = y.flip(1) if order in (ROW_REVERSED, COLUMN_REVERSED) else y
    if order in (COLUMN, COLUMN_REVERSED):
        return y.unflatten(1, (width, height)).transpose(1, 2)
    return y.unflatten(1, (height, width))


def cross_scan(x: Tensor, pattern: str | Sequence[Order] = 'cross') -> Tensor:
    """Read a map as one sequence per scan direction.

    Kept for ablations, export and tests; :func:`ss2d_scan` never forms these sequences.

    Args:
        x (Tensor): The map (N, C, H, W), float32, float16, bfloat16 or float64, of any strides.
        pattern (str | Sequence[int | str]): As in :func:`ss2d_scan`. Defaults to 'cross'.

    Returns:
        Tensor: The sequences (N, K, C, H * W).

    Raises:
        TypeError: If ``x`` is not a floating-point tensor.
        ValueError: If ``x`` is not 4-D or the pattern is unknown.
    """
    check_tensor('x', x, ('N', 'C', 'H', 'W'))
    orders = resolve_pattern(pattern)
    x = x.permute(0, 2, 3, 1)  # (N, H, W, C)
    return torch.stack([to_sequence(x, order).transpose(1, 2) for order in orders], dim=1)


def cross_merge(
    ys: Tensor, height: int, width: int, pattern: str | Sequence[Order] = 'cross'
) -> Tensor:
    """Map the sequences of all directions back to image order and add them.

    The transpose of :func:`cross_scan` as a linear map.

    Args:
        ys (Tensor): The sequences (N, K, C, L) with L = height * width.
        height (int): The map's height H.
        width (int): The map's width W.
        pattern (str | Sequence[int | str]): As in :func:`cross_scan`. Defaults to 'cross'.

    Returns:
        Tensor: The map (N, C, H, W).

    Raises:
        TypeError: If ``ys`` is not a floating-point tensor.
        ValueError: If the shapes disagree or the pattern is unknown.
    """
    orders = resolve_pattern(pattern)
    check_tensor('ys', ys, ('N', len(orders), 'C', height * width))
    maps = [
        to_map(ys[:, k].transpose(1, 2), order, height, width) for k, order in enumerate(orders)
    ]
    return torch.stack(maps).sum(0).permute(0, 3, 1, 2)
