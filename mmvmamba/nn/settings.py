"""Checks of arguments; types and ranges of the settings are in one table."""

import difflib
import math
import numbers
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from mmvmamba.ops.backend import MAX_STATE

_RATE: tuple[type, float, float] = (float, 0, 1)
#: Setting: type, lowest and highest value. An int may equal the highest, a float must be below it.
_RANGES: dict[str, tuple[type, float, float]] = {
    'dim': (int, 1, math.inf),
    'dims': (int, 1, math.inf),
    'depths': (int, 1, math.inf),
    'channels': (int, 1, math.inf),
    'embed_dims': (int, 1, math.inf),
    'num_layers': (int, 1, math.inf),
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
_SEQUENCES = ('dims', 'depths', 'channels')
_OPTIONAL = ('dt_rank', 'pos_embed_size')
_TYPES: dict[type, Any] = {int: numbers.Integral, float: numbers.Real, bool: bool}


def check_choice(name: str, value: object, allowed: Iterable[str]) -> None:
    """Raise ValueError if an argument is not one of the allowed names."""
    allowed = tuple(allowed)
    if value not in allowed:
        raise ValueError(f'{name} must be one of {allowed}, but got {value!r}')


def check_backbone_arguments(num_classes: Any = None, global_pool: Any = None, **_: Any) -> None:
    """Raise ValueError if a backbone is given arguments of a classifier; 0 and '' mean none."""
    for name, value in (('num_classes', num_classes), ('global_pool', global_pool)):
        if value:
            raise ValueError(
                f'{name} must not be set for a backbone, which has no classifier, but got {value!r}'
            )


def check_setting(
    name: str, value: Any, highest: float | None = None, argument: str | None = None
) -> None:
    """Check a number, or each one of a sequence, against its row of the table.

    Settings without a row pass. ``highest`` replaces the limit of the table, ``argument`` the name
    in messages.
    """
    if name not in _RANGES or (value is None and name in _OPTIONAL):
        return
    kind, lowest, limit = _RANGES[name]
    limit = limit if highest is None else highest
    argument = argument or name
    items = [(argument, value)]
    if name in _SEQUENCES:
        items = [(f'{argument}[{i}]', item) for i, item in enumerate(value)]
    for key, item in items:
        if not isinstance(item, _TYPES[kind]) or (isinstance(item, bool) and kind is not bool):
            raise TypeError(f'{key} must be of type {kind.__name__}, but got {item!r}')
        if kind is float and not lowest <= item < limit:
            raise ValueError(f'{key} must be in [{lowest}, {limit}), but got {item}')
        if not lowest <= item <= limit:
            allowed = f'at least {lowest}' if limit == math.inf else f'in [{lowest}, {limit}]'
            raise ValueError(f'{key} must be {allowed}, but got {item}')


def check_settings(**values: Any) -> None:
    """Check several settings with :func:`check_setting`."""
    for name, value in values.items():
        check_setting(name, value)


def check_width(name: str, ratio: float, dim: int) -> None:
    """Raise ValueError if a ratio of widths leaves no channel."""
    if int(ratio * dim) < 1:
        raise ValueError(
            f'{name} must give at least one channel for a width of {dim}, but got {ratio}'
        )


def check_conv_kernel(size: int) -> None:
    """Raise an error if a depthwise convolution of this size would change the size of the map."""
    check_setting('conv_kernel', size)
    if size and size % 2 == 0:
        raise ValueError(f'conv_kernel must be 0 or odd, but got {size}')


def as_tuple(name: str, value: Any) -> tuple[Any, ...]:
    """Return a setting with a number for each stage as a tuple."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise TypeError(f'{name} must be a sequence of int, but got {value!r}')
    return tuple(value)


def stage_indices(
    indices: Any, stages: int, name: str = 'out_indices', unique: bool = True
) -> tuple[int, ...]:
    """Check the indices of the requested stages, and count negative ones from the last."""
    indices = as_tuple(name, indices)
    if not all(isinstance(i, int) for i in indices):
        raise TypeError(f'{name} must be a sequence of int, but got {indices!r}')
    if not indices or any(not -stages <= i < stages for i in indices):
        raise ValueError(
            f'{name} must be one or more stages in [{-stages}, {stages - 1}], but got {indices}'
        )
    counted = tuple(i % stages for i in indices)
    twice = sorted({i for i in counted if counted.count(i) > 1})
    if unique and twice:
        raise ValueError(f'{name} must not repeat a stage, but got {indices} with {twice} twice')
    return counted


def check_images(x: Any, in_channels: int, min_side: int) -> None:
    """Check that ``x`` has shape (N, in_channels, H, W) with sides of at least ``min_side``."""
    if not isinstance(x, Tensor):
        raise TypeError(f'the images must be a torch.Tensor, but got {type(x).__name__}')
    if x.dim() != 4 or x.shape[1] != in_channels or min(x.shape[2:]) < min_side:
        raise ValueError(
            f'the images must have shape (N, {in_channels}, H, W) with sides of at least '
            f'{min_side} pixels, but got {tuple(x.shape)}'
        )


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    """Return '; did you mean a or b?' for the names close to an unknown one, or ''."""
    near = difflib.get_close_matches(name, list(allowed), n=3)
    return f'; did you mean {" or ".join(near)}?' if near else ''
