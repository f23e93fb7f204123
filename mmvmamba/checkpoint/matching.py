"""How the tensors of a file fit a model, and a load that refuses what does not."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .keys import convert_state_dict, resize_pos_embed, split_state_dict

#: What a classification file lacks in a backbone, and the other way round.
_EXPECTED_MISSING = re.compile(r'(backbone\.)?outnorm\d+\.')
_EXPECTED_UNEXPECTED = re.compile(r'(backbone\.)?classifier\.')
#: Counters of BatchNorm, which older files lack.
_COUNTER = 'num_batches_tracked'
#: A classifier's last layer, which is new where the number of classes is another.
_HEAD = ('classifier.head.weight', 'classifier.head.bias')


@dataclass
class Fit:
    """How a state dict fits a model: names of tensors."""

    own: int = 0
    found: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    differing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f'{len(self.found)} of {self.own} tensors found; missing {listing(self.missing)}; of '
            f'another shape {listing(self.differing)}; unexpected {listing(self.unexpected)}'
        )


def compare(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> Fit:
    """Compares a model's tensors with a file's by name and shape."""
    unexpected = [k for k in tensors if k not in own and not _EXPECTED_UNEXPECTED.match(k)]
    fit = Fit(own=len(own), unexpected=unexpected)
    for key, value in own.items():
        if key not in tensors:
            if not key.endswith(_COUNTER):
                fit.missing.append(key)
        elif tensors[key].shape != value.shape:
            shapes = f'{tuple(tensors[key].shape)} instead of {tuple(value.shape)}'
            fit.differing.append(f'{key} {shapes}')
        else:
            fit.found.append(key)
    return fit


def surprising(missing: Iterable[str]) -> list[str]:
    """The missing tensors that a backbone does not lack in a released classification file."""
    return [key for key in missing if not _EXPECTED_MISSING.match(key)]


def listing(keys: list[str], limit: int = 8) -> str:
    """The first keys, and how many more there are."""
    if not keys:
        return 'none'
    more = f' and {len(keys) - limit} more' if len(keys) > limit else ''
    return ', '.join(keys[:limit]) + more


def with_resized(
    tensors: dict[str, Tensor], own: Mapping[str, Tensor], name: str = 'pos_embed'
) -> dict[str, Tensor]:
    """Resizes a position embedding to the size of the model's."""
    if name in tensors and name in own and own[name].dim() == 4:
        tensors = {**tensors, name: resize_pos_embed(tensors[name], own[name].shape[2:])}
    return tensors


def load_tensors(
    model: nn.Module, tensors: Mapping[str, Tensor], filename: str, new_head: bool = False
) -> Fit:
    """Loads a file's tensors into a model; anything but a whole fit is an error.

    Args:
        model (nn.Module): A :class:`mmvmamba.nn.VMambaNet`.
        tensors (Mapping[str, Tensor]): In any released spelling.
        filename (str): For the message.
        new_head (bool): Whether a classifier's last layer may stay as it is where the file's has
            another number of classes. Defaults to False.

    Returns:
        Fit: What was loaded; nothing was where an error is raised.

    Raises:
        ValueError: If nothing or not all of the model is there, or a shape differs.
    """
    own = model.state_dict()
    is_classifier = model.out_indices is None
    tensors = split_state_dict(tensors)[0] if is_classifier else convert_state_dict(tensors)
    tensors = with_resized(tensors, own)
    dropped = other_head(tensors, own) if new_head else ()
    fit = compare(own, {key: value for key, value in tensors.items() if key not in dropped})
    wrong = [key for key in surprising(fit.missing) if key not in dropped]
    if not fit.found or fit.differing or wrong:
        raise ValueError(f'checkpoint {filename!r} does not fit {type(model).__name__}: {fit}')
    with torch.no_grad():
        for key in fit.found:
            own[key].copy_(tensors[key])
    return fit


def other_head(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> tuple[str, ...]:
    """The keys of a classifier's last layer, if the file's has another number of classes."""
    weight = _HEAD[0]
    if weight not in tensors or weight not in own or tensors[weight].shape == own[weight].shape:
        return ()
    return _HEAD
