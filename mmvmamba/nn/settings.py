"""The types and ranges of the settings of networks and layers, in one table."""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Iterable
from typing import Any

from mmvmamba.ops.backend import MAX_STATE

_RATE = (float, 0, 1)
#: Setting: type, lowest and highest value. An int may be the highest, a float has to be below it.
_TABLE: dict[str, tuple[type, float, float]] = {
    'dim': (int, 1, math.inf),
    'dims': (int, 1, math.inf),
    'depths': (int, 1, math.inf),
    'd_state': (int, 1, MAX_STATE),
    'ssm_ratio': (float, 0, math.inf),
    'dt_rank': (int, 1, math.inf),
    'conv_kernel': (int, 0, math.inf),
    'conv_bias': (bool, False, True),
    'out_act': (bool, False, True),
    'drop_rate': _RATE,
    'ssm_drop_rate': _RATE,
    'mlp_ratio': (float, 0, math.inf),
    'mlp_gate': (bool, False, True),
    'mlp_drop_rate': _RATE,
    'stem_norm': (bool, False, True),
    'patch_size': (int, 2, math.inf),
    'pos_embed_size': (int, 1, math.inf),
    'drop_path_rate': _RATE,
    'in_channels': (int, 1, math.inf),
    'num_classes': (int, 0, math.inf),
    'frozen_stages': (int, -1, math.inf),
}
_SEQUENCES = ('dims', 'depths')
_OPTIONAL = ('dt_rank', 'pos_embed_size')
_TYPES = {int: numbers.Integral, float: numbers.Real, bool: bool}


def check_setting(name: str, value: Any, highest: float | None = None) -> None:
    """Checks a number, or each one of ``dims`` and ``depths``, by its row of the table.

    Args:
        name (str): The setting; those that are not in the table pass.
        value (Any): What the user gave.
        highest (float, optional): Replaces that of the table. Defaults to None.

    Raises:
        TypeError: If the type is another.
        ValueError: If the value is out of range.
    """
    if name not in _TABLE or (value is None and name in _OPTIONAL):
        return
    kind, lowest, limit = _TABLE[name]
    limit = limit if highest is None else highest
    if name in _SEQUENCES:
        for i, item in enumerate(value):
            _check_number(f'{name}[{i}]', item, kind, lowest, limit)
    else:
        _check_number(name, value, kind, lowest, limit)


def _check_number(name: str, value: Any, kind: type, lowest: float, limit: float) -> None:
    if not isinstance(value, _TYPES[kind]) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f'{name} must be of type {kind.__name__}, but got {value!r}')
    if kind is float and not lowest <= value < limit:
        raise ValueError(f'{name} must be in [{lowest}, {limit}), but got {value}')
    if not lowest <= value <= limit:
        allowed = f'at least {lowest}' if limit == math.inf else f'in [{lowest}, {limit}]'
        raise ValueError(f'{name} must be {allowed}, but got {value}')


def as_tuple(name: str, value: Any) -> tuple:
    """Makes a tuple of a setting with a number for each stage.

    Raises:
        TypeError: If it is no sequence.
    """
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise TypeError(f'{name} must be a sequence of int, but got {value!r}')
    return tuple(value)


def similar(name: str, allowed: Iterable[str]) -> str:
    """The end of a message about an unknown name, with names that are written much like it."""
    near = difflib.get_close_matches(name, list(allowed), n=3)
    return f'; did you mean {" or ".join(near)}?' if near else ''


def stage_indices(indices: Any, stages: int, name: str = 'out_indices') -> tuple[int, ...]:
    """Checks the stages whose maps are asked for, and sorts them; -1 is the last one.

    Raises:
        TypeError: If they are no sequence of int.
        ValueError: If there are none, or one is out of range.
    """
    indices = as_tuple(name, indices)
    if not all(isinstance(i, int) for i in indices):
        raise TypeError(f'{name} must be a sequence of int, but got {indices!r}')
    if not indices or any(not -stages <= i < stages for i in indices):
        raise ValueError(
            f'{name} must be in [{-stages}, {stages - 1}], at least one, but got {indices}'
        )
    return tuple(sorted({i % stages for i in indices}))


def check_width(name: str, ratio: float, dim: int) -> None:
    """Raises ValueError where a ratio of widths leaves no channel."""
    if int(ratio * dim) < 1:
        raise ValueError(f'{name} must leave at least one channel of {dim}, but got {ratio}')


def check_conv_kernel(size: int) -> None:
    """Raises an error where the depthwise convolution would change the size of the map."""
    check_setting('conv_kernel', size)
    if size and size % 2 == 0:
        raise ValueError(f'conv_kernel must be 0 or odd, but got {size}')
