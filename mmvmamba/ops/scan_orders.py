"""Scan orders: rows and columns, which the kernels support, and any others.

An order is a permutation of the H W positions of a map. The kernels read maps along rows and
columns in place. For a registered order a map is gathered, so that its rows are the sequence.
"""

import functools
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from .backend import differentiates_functionally
from .extension import input_gradients, register_op

_logger = logging.getLogger(__name__)

#: Orders that the kernels support, for a map of H x W positions:
#: 0 row-major (l = h * W + w), 1 column-major (l = w * H + h), 2 and 3 their reversals.
ROW, COLUMN, ROW_REVERSED, COLUMN_REVERSED = range(4)
_KERNEL_ORDERS = {
    'row': ROW,
    'column': COLUMN,
    'row_reversed': ROW_REVERSED,
    'column_reversed': COLUMN_REVERSED,
}
#: A scan of :class:`mmvmamba.nn.SS2D` that is not a pattern of this op.
CASCADE = 'cascade'
#: What a registered name may be followed by.
_REVERSED, _TRANSPOSED = '_reversed', '_transposed'
_VARIANTS = ('', _TRANSPOSED, _REVERSED, _TRANSPOSED + _REVERSED)

#: An order of :func:`resolve_pattern`: one that the kernels support, or a registered name.
Order = int | str

#: The order of each direction by the name of a pattern: those of VMamba and its ablation, and the
#: registered ones.
SCAN_PATTERNS: dict[str, tuple[Order, ...]] = {
    'cross': (ROW, COLUMN, ROW_REVERSED, COLUMN_REVERSED),
    'unidirectional': (ROW, ROW, ROW, ROW),
    'bidirectional': (ROW, ROW, ROW_REVERSED, ROW_REVERSED),
}
_PATHS: dict[str, Callable[[int, int], Any]] = {}


def register_scan_order(name: str, fn: Callable[[int, int], Any], force: bool = False) -> None:
    """Register an order, and the pattern of four directions built from it.

    Patterns can then contain the orders ``name``, ``name + '_transposed'`` (the same path on the
    transposed map), ``name + '_reversed'`` and ``name + '_transposed_reversed'``. The pattern
    ``name`` consists of these four.

    Args:
        name (str): A new name.
        fn (Callable): ``fn(H, W)`` returns a permutation as a tensor, array or sequence of H * W
            integers. Element l is the position h * W + w that is read at step l. The results for
            the last 1,024 sizes are cached.
        force (bool): Whether to replace an order registered under this name. Defaults to False.

    Raises:
        TypeError: If ``name`` is not a str or ``fn`` is not callable.
        ValueError: If the name is taken, is not an identifier, or ends in a suffix listed above.
    """
    if not isinstance(name, str):
        raise TypeError(f'name must be a str, but got {type(name).__name__}')
    if not callable(fn):
        raise TypeError(f'fn must be a function of H and W, but got {type(fn).__name__}')
    if not name.isidentifier() or name.endswith(_VARIANTS[1:]):
        raise ValueError(
            f'name must be an identifier that does not end in {_VARIANTS[1:3]}, but got {name!r}'
        )
    taken = {*SCAN_PATTERNS, *_KERNEL_ORDERS, CASCADE} - (_PATHS.keys() if force else set())
    if name in taken:
        raise ValueError(
            f'name must not be one of {sorted(taken)}, but got {name!r}; pass force=True to '
            'replace a registered order'
        )
    _PATHS[name] = fn
    SCAN_PATTERNS[name] = tuple(name + variant for variant in _VARIANTS)
    scan_positions.cache_clear()
    _permutation.cache_clear()


def resolve_pattern(
    pattern: str | Sequence[Order], argument: str = 'pattern', others: Iterable[str] = ()
) -> tuple[Order, ...]:
    """Turn the name of a pattern, or a sequence of orders, into the order of each direction.

    Names of orders that the kernels support become numbers. ``argument`` is the name used in
    messages; ``others`` are additional valid values.
    """
    if isinstance(pattern, str):
        if pattern not in SCAN_PATTERNS:
            hint = 'mmvmamba.ops.register_scan_order adds one'
            if _is_order(_KERNEL_ORDERS.get(pattern, pattern)):
                hint = f'write ({pattern!r},) for a scan of one direction'
            raise ValueError(
                f'{argument} must be one of {(*SCAN_PATTERNS, *others)} or a sequence of orders, '
                f'but got {pattern!r}; {hint}'
            )
        return SCAN_PATTERNS[pattern]
    if not isinstance(pattern, Sequence):
        raise TypeError(
            f'{argument} must be a str or a sequence of orders, but got {type(pattern).__name__}'
        )
    orders = tuple(_KERNEL_ORDERS.get(o, o) if isinstance(o, str) else o for o in pattern)
    if not orders or not all(map(_is_order, orders)):
        raise ValueError(
            f'{argument} must be a sequence of at least one of the orders 0, 1, 2, 3, '
            f'{", ".join(_KERNEL_ORDERS)}, or {", ".join(_PATHS)}, optionally followed by '
            f'{", ".join(_VARIANTS[1:])}, but got {tuple(pattern)}'
        )
    return orders


def _is_order(value: object) -> bool:
    if isinstance(value, str):
        return base_name(value) in _PATHS
    return type(value) is int and value in _KERNEL_ORDERS.values()


def split_order(order: Order) -> tuple[str, int]:
    """Split an order into a path, '' for the map itself, and the order of the gathered map."""
    if not isinstance(order, str):
        return '', order
    is_reversed = order.endswith(_REVERSED)
    return order.removesuffix(_REVERSED), ROW_REVERSED if is_reversed else ROW


def base_name(order: str) -> str:
    """Return the name by which an order was registered."""
    return order.removesuffix(_REVERSED).removesuffix(_TRANSPOSED)


# ---- reading a map along a path ----


@functools.lru_cache(maxsize=64)
def scan_positions(
    order: str, height: int, width: int, inverse: bool = False, device: str = 'cpu'
) -> Tensor:
    """Return the position h * W + w that a registered order reads at each step.

    Args:
        order (str): The name of the order, optionally with a suffix.
        height (int): The map's height H.
        width (int): The map's width W.
        inverse (bool): Return the step at which each position is read. Defaults to False.
        device (str): The device of the result. Defaults to 'cpu'.

    Returns:
        Tensor: int64, (H * W,).

    Raises:
        ValueError: If the registered function returns anything but a permutation.
    """
    path, direction = split_order(order)
    name = base_name(path)
    # The registered function may build tensors, which must be hidden from tracers and the default
    # device.
    # The result is kept, so it must not be an inference tensor.
    with _disable_current_modes(), torch.inference_mode(False), torch.device('cpu'):
        if name == path:
            positions = _permutation(name, height, width).long()
        else:
            positions = _permutation(name, width, height).long()
            positions = positions % height * width + positions // height
        positions = positions.flip(0) if direction == ROW_REVERSED else positions
        if inverse:
            positions = torch.empty_like(positions).scatter_(
                0, positions, torch.arange(len(positions))
            )
        return positions.to(device)


@functools.lru_cache(maxsize=1024)
def _permutation(name: str, height: int, width: int) -> Tensor:
    """Return what a registered function returns, as int32, if it is a permutation."""
    found, size = _PATHS[name](height, width), height * width
    array = found.cpu().numpy() if isinstance(found, Tensor) else np.asarray(found)
    is_permutation = array.dtype.kind in 'iu' and np.array_equal(np.sort(array), np.arange(size))
    if not is_permutation:
        shown = f'{found!r:.80}'.replace('\n', ' ')
        raise ValueError(
            f'the function of scan order {name!r} must return each of the integers 0 to {size - 1} '
            f'once for H={height} and W={width}, but returned {shown}'
        )
    return torch.from_numpy(array.astype(np.int32))


def reorder(x: Tensor, order: str, inverse: bool = False) -> Tensor:
    """Read a map in a registered order, or put it back in image order.

    Args:
        x (Tensor): (N, H, W, C), of any dtype.
        order (str): The name of the order, optionally with a suffix.
        inverse (bool): Put the sequence, in row-major order, back in image order. Defaults to
            False.

    Returns:
        Tensor: (N, H, W, C), whose rows, concatenated, are the sequence.
    """
    # An exported program of a fixed size holds the positions; dynamo cannot record them.
    exporting = torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling()
    is_constant = exporting and all(type(side) is int for side in x.shape[1:3])
    if is_constant or differentiates_functionally():
        return _gather(x, order, inverse)
    return torch.ops.mmvmamba.reorder(x, order, inverse)


def _gather(x: Tensor, order: str, inverse: bool) -> Tensor:
    positions = scan_positions(order, *x.shape[1:3], inverse, str(x.device))
    return x.flatten(1, 2).index_select(1, positions).view(x.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, ctx.order, ctx.inverse = inputs


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    # The transpose of a permutation is its inverse, so that no gradient is added.
    return input_gradients(ctx, [reorder(grad, ctx.order, not ctx.inverse)])


# A custom op, because the positions are not computed by PyTorch ops and depend on the map's size.
register_op(
    'reorder',
    lambda x, order, inverse: x.new_empty(x.shape),
    _backward,
    _setup_context,
    schema='(Tensor x, str order, bool inverse) -> Tensor',
    kernel=_gather,
    dispatch_keys=('CompositeExplicitAutograd',),  # on every device
    # Cached positions allocated in a CUDA graph's memory pool would not outlive the graph.
    tags=(torch.Tag.cudagraph_unsafe,),
)


@functools.cache
def warn_gathered(name: str) -> None:
    """Log once that maps are gathered for an order that the kernels do not support."""
    _logger.warning(
        'scan order %r: the kernels only read maps along rows and columns, so maps are gathered '
        'first and the core of SS2D takes about twice as long (docs/scans.md)',
        name,
    )


# ---- built-in orders ----


def _grid(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return row and column of each position (H * W,)."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing='ij')
    return y.flatten(), x.flatten()


def diagonal(height: int, width: int) -> Tensor:
    """Order by diagonals from the top left, each from its top right to its bottom left."""
    y, x = _grid(height, width)
    return ((y + x) * height + y).argsort()


def snake(height: int, width: int) -> Tensor:
    """Order by rows of alternating direction, so that each step goes to a neighbor."""
    y, x = _grid(height, width)
    return (y * width + torch.where(y % 2 == 0, x, width - 1 - x)).argsort()


def local_window(height: int, width: int, size: int = 7) -> Tensor:
    """Order by windows of ``size`` x ``size`` positions, each row by row (as LocalMamba)."""
    y, x = _grid(height, width)
    window = y // size * -(-width // size) + x // size
    return (window * size**2 + y % size * size + x % size).argsort()


def hilbert(height: int, width: int) -> Tensor:
    """Order by the Hilbert curve of the enclosing square, skipping positions outside the map."""
    y, x = _grid(height, width)
    side = 1 << (max(height, width) - 1).bit_length()
    distance = torch.zeros_like(x)
    half = side // 2
    while half:
        right, below = x // half % 2, y // half % 2
        distance += half**2 * (3 * right ^ below)
        # Each upper quadrant is transposed, the right one along the other diagonal.
        turned = (right == 1) & (below == 0)
        x, y = (torch.where(turned, side - 1 - value, value) for value in (x, y))
        x, y = torch.where(below == 0, y, x), torch.where(below == 0, x, y)
        half //= 2
    return distance.argsort()


for _path in (diagonal, snake, local_window, hilbert):
    register_scan_order(_path.__name__, _path)
