"""Whether a neck or a head takes the maps that the backbone gives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from numbers import Integral
from typing import Any

from torch import nn

from mmvmamba.engine.errors import UserError
from mmvmamba.models import VMamba

#: The necks of mmdet and mmseg whose channels are those of the maps, one for one. Others begin with
#: the last map, or leave some out.
_NECKS = {
    'CSPNeXtPAFPN',
    'ChannelMapper',
    'FPG',
    'FPN',
    'FPN_CARAFE',
    'FPN_DropBlock',
    'HRFPN',
    'JPU',
    'MLANeck',
    'MultiLevelNeck',
    'PAFPN',
    'SSH',
    'YOLOXPAFPN',
}
#: The necks of mmpretrain that keep the channels.
_POOLINGS = {'GlobalAveragePooling', 'GeneralizedMeanPooling'}


def check_feature_maps(cfg: Mapping[str, Any], model: nn.Module) -> None:
    """Checks the channels that a config writes for what follows a VMamba backbone.

    A neck with another number of maps fails in its first step with an assertion without words, and
    one with other channels in a convolution far from the setting that is wrong.

    Args:
        cfg (Mapping): The config of the model.
        model (nn.Module): What was built of it.

    Raises:
        UserError: If channels or indices do not fit the backbone's.
    """
    backbone = getattr(model, 'backbone', None)
    if getattr(type(backbone), 'forward', None) is not VMamba.forward:
        return
    channels = [backbone.settings.dims[i] for i in backbone.out_indices]
    given = (
        f'model.backbone gives {len(channels)} maps of {channels} channels '
        f'(out_indices {backbone.out_indices})'
    )
    for name, part in _parts_after_the_backbone(cfg):
        wanted, index = part.get('in_channels'), part.get('in_index')
        taken = channels
        if index is not None:
            indices = list(index) if _is_list(index) else [index]
            if any(not isinstance(i, Integral) for i in indices):
                continue
            if any(not -len(channels) <= i < len(channels) for i in indices):
                raise UserError(f'{given}, but {name}.in_index is {index}')
            taken = [channels[i] for i in indices]
        # One number is for one map, the last one where no index says which.
        fits = list(wanted) == taken if _is_list(wanted) else wanted in (None, *taken[-1:])
        if not fits:
            raise UserError(f'{given}, but {name}.in_channels is {wanted}')


def _parts_after_the_backbone(cfg: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """What takes the backbone's maps and is known to take them all, by the names of its settings.

    The neck, and where there is none, or one that keeps the channels, the heads.
    """
    neck = cfg.get('neck')
    first = neck[0] if _is_list(neck) and neck else neck  # Necks follow each other.
    kind = first.get('type') if isinstance(first, Mapping) else None
    kind = getattr(kind, '__name__', str(kind)).split('.')[-1]  # a class in a Python config
    if kind in _NECKS:
        yield 'model.neck' if first is neck else 'model.neck[0]', first
    if neck and not (first is neck and kind in _POOLINGS):
        return
    for name in ('head',) if neck else ('decode_head', 'auxiliary_head', 'panoptic_head'):
        yield from named_parts(cfg, name)


def named_parts(cfg: Mapping[str, Any], path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The settings of a part of a model, or of each of several, with their names in the config.

    Args:
        cfg (Mapping): The config of the model.
        path (str): Where the part stands in it, e.g. 'roi_head.bbox_head'.
    """
    part: Any = cfg
    for key in path.split('.'):
        part = part.get(key) if isinstance(part, Mapping) else None
    if isinstance(part, Mapping):
        yield f'model.{path}', part
    elif _is_list(part):
        for i, one in enumerate(part):
            if isinstance(one, Mapping):
                yield f'model.{path}[{i}]', one


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)
