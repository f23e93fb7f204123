"""Whether a neck or a head takes the maps that the backbone gives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from mmvmamba.nn import VMambaNet

from .errors import UserError


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
    if not isinstance(backbone, VMambaNet) or backbone.out_indices is None:
        return
    channels = [backbone.settings.dims[i] for i in backbone.out_indices]
    given = (
        f'model.backbone gives {len(channels)} maps of {channels} channels '
        f'(out_indices {backbone.out_indices})'
    )
    for name, part in _parts_after_the_backbone(cfg):
        wanted, index = part.get('in_channels'), part.get('in_index')
        if index is not None:
            indices = index if _is_list(index) else [index]
            if any(not -len(channels) <= i < len(channels) for i in indices):
                raise UserError(f'{given}, but {name}.in_index is {index}')
            taken = [channels[i] for i in indices]
        else:
            taken = channels
        if _is_list(wanted):
            fits = list(wanted) == taken
        else:  # One map, the last one where no index says which.
            fits = wanted is None or wanted == taken[-1]
        if not fits:
            raise UserError(f'{given}, but {name}.in_channels is {wanted}')


def _parts_after_the_backbone(cfg: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The neck, or where there is none the heads, by the names of their settings.

    What follows another neck, or is no dict with channels, is not judged.
    """
    neck = cfg.get('neck')
    names = ('neck',) if neck else ('decode_head', 'auxiliary_head', 'panoptic_head')
    if isinstance(neck, Mapping) and 'in_channels' not in neck:
        # A pooling keeps the channels.
        names = ('head',) if 'Pooling' in str(neck.get('type')) else ()
    for name in names:
        part = cfg.get(name)
        if isinstance(part, Mapping):
            yield f'model.{name}', part
        elif _is_list(part):
            several = part[:1] if name == 'neck' else part  # Necks follow each other.
            for i, one in enumerate(several):
                yield f'model.{name}[{i}]', one


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)
