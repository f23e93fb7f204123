"""Checks that neck and heads match the channels of the backbone."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from mmvmamba.engine.errors import UserError
from mmvmamba.models import VMamba

from .configs import named_settings

_HEADS_WITHOUT_NECK = ('decode_head', 'auxiliary_head', 'panoptic_head')
_MAP_SIZE = 32  # of the first stage


def check_feature_maps(cfg: Mapping[str, Any], model: nn.Module) -> None:
    """Check the channels of the neck or heads in the config of a model with a VMamba backbone.

    Otherwise a neck for another number of maps fails in an assertion without a message, and one for
    other channels in a convolution far from the wrong setting.

    Raises:
        UserError: If channels or indices do not match those of the backbone.
    """
    backbone = getattr(model, 'backbone', None)
    if getattr(type(backbone), 'forward', None) is not VMamba.forward:
        return
    channels = [backbone.settings.dims[i] for i in backbone.out_indices]
    given = (
        f'model.backbone gives {len(channels)} maps of {channels} channels '
        f'(out_indices {backbone.out_indices})'
    )
    neck = getattr(model, 'neck', None)
    if neck is None:
        for key in _HEADS_WITHOUT_NECK:
            for name, head in named_settings(f'model.{key}', cfg.get(key)):
                _check_settings(head, name, channels, given)
        return
    maps = [
        torch.zeros(1, c, _MAP_SIZE >> i, _MAP_SIZE >> i)
        for i, c in zip(backbone.out_indices, channels, strict=True)
    ]
    _check_neck(cfg.get('neck'), neck, maps, given)
    if isinstance(cfg.get('head'), Mapping):
        _check_head(cfg['head'], model, maps, given)


def _check_settings(head: Mapping[str, Any], name: str, channels: list[int], given: str) -> None:
    """Check ``in_index`` and ``in_channels`` of a head on the maps of the backbone."""
    expected, index = head.get('in_channels'), head.get('in_index')
    if index is not None:
        indices = list(index) if _is_list(index) else [index]
        if any(not isinstance(i, Integral) for i in indices):
            return
        if any(not -len(channels) <= i < len(channels) for i in indices):
            raise UserError(f'{given}, but {name}.in_index is {index}')
        channels = [channels[i] for i in indices]
    # A single number belongs to one map, by default the last one.
    if _is_list(expected):
        matches = list(expected) == channels
    else:
        matches = expected in (None, *channels[-1:])
    if not matches:
        raise UserError(f'{given}, but {name}.in_channels is {expected}')


def _check_neck(cfg: Any, neck: nn.Module, maps: list[Tensor], given: str) -> None:
    """Check a neck that has a list of channels.

    Some necks skip maps or reverse them, so a neck is only wrong if it fails for the maps of the
    backbone and works for maps of its own channels.
    """
    name = 'model.neck'
    if _is_list(cfg) and cfg:  # a sequence of necks
        cfg, neck, name = cfg[0], neck[0], 'model.neck[0]'
    expected = cfg.get('in_channels') if isinstance(cfg, Mapping) else None
    if not _is_list(expected) or list(expected) == [m.shape[1] for m in maps]:
        return
    if not all(isinstance(c, Integral) for c in expected):
        return
    sizes = [max(_MAP_SIZE >> i, 1) for i in range(len(expected))]
    own = [torch.zeros(1, c, s, s) for c, s in zip(expected, sizes, strict=True)]
    if _output(neck, maps) is None and _output(neck, own) is not None:
        raise UserError(f'{given}, but {name}.in_channels is {expected}')


def _check_head(cfg: Mapping[str, Any], model: nn.Module, maps: list[Tensor], given: str) -> None:
    """Check a classification head on the output of the neck, as :func:`_check_neck` does."""
    expected = cfg.get('in_channels')
    features = _output(model.neck, maps) if isinstance(expected, int) else None
    last = features[-1] if isinstance(features, tuple) and features else None
    if not isinstance(last, Tensor) or last.shape[1] == expected:
        return
    own = (*features[:-1], last.new_zeros(1, expected, *last.shape[2:]))
    if _output(model.head, features) is None and _output(model.head, own) is not None:
        raise UserError(f'{given}, but model.head.in_channels is {expected}')


def _output(module: nn.Module, inputs: Sequence[Tensor]) -> Any:
    """Return the output of a copy of a module in eval mode, or None if it fails."""
    try:
        with torch.no_grad():
            return copy.deepcopy(module).eval()(tuple(inputs))
    except Exception:  # a module may raise anything for maps of other channels
        return None


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)
