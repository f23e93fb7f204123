"""Files of the authors and of this package's models, in both directions."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .keys import last_stage, split_state_dict, to_image_classifier

TARGETS = ('mmvmamba', 'authors')
KINDS = ('backbone', 'classifier', 'detector', 'segmentor')

_PREFIX = 'backbone.'
_CLASSIFIER = 'classifier.'


def kind_of(tensors: Mapping[str, Tensor]) -> str:
    """Says what a file's tensors belong to, one of :data:`KINDS`."""
    inside, others = split_state_dict(tensors)
    if others:
        heads = ('decode_head.', 'auxiliary_head.')
        return 'segmentor' if any(key.startswith(heads) for key in others) else 'detector'
    return 'classifier' if any(key.startswith(_CLASSIFIER) for key in inside) else 'backbone'


def convert(
    tensors: Mapping[str, Tensor], to: str, kind: str, meta: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Gives a file's tensors the names and the wrapping that a reader expects.

    No value changes: a tensor is renamed, moved or reshaped, or left out where the kind of model
    has no place for it.

    Args:
        tensors (Mapping[str, Tensor]): In any released spelling or by the names of OpenMMLab.
        to (str): 'mmvmamba', for this package's models in OpenMMLab, or 'authors', for their code.
        kind (str): 'backbone', 'classifier', 'detector' or 'segmentor'.
        meta (Mapping, optional): ``meta`` of a detector's or segmentor's file. Defaults to None.

    Returns:
        dict: What the new file holds.

    Raises:
        ValueError: If ``to`` or ``kind`` is unknown, or there is nothing of such a model.
    """
    for name, value, allowed in (('to', to, TARGETS), ('kind', kind, KINDS)):
        if value not in allowed:
            raise ValueError(f'{name} must be one of {allowed}, but got {value!r}')
    inside, others = split_state_dict(tensors)
    if not any(key.startswith('layers.') for key in inside):
        raise ValueError(f'no VMamba is among the tensors {sorted(tensors)[:8]}')
    if kind == 'classifier':
        return _classifier(inside, to)
    inside = {key: value for key, value in inside.items() if not key.startswith(_CLASSIFIER)}
    if kind == 'backbone':
        return {'model' if to == 'authors' else 'state_dict': inside}
    state_dict = {_PREFIX + key: value for key, value in inside.items()} | others
    return {'meta': dict(meta or {}), 'state_dict': state_dict}


def _classifier(inside: dict[str, Tensor], to: str) -> dict[str, Any]:
    lacking = [k for k in ('classifier.norm.weight', 'classifier.head.weight') if k not in inside]
    if lacking:
        raise ValueError(f'a classifier needs {lacking}, which the file does not hold')
    if to == 'authors':
        return {'model': inside}
    return {'state_dict': to_image_classifier(inside, last_stage(inside))}


def strip_checkpoint(content: Any, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Keeps the weights and ``meta`` of a checkpoint, nothing of the training.

    Args:
        content (Any): What the file holds.
        tensors (Mapping[str, Tensor]): Its tensors.

    Returns:
        dict: ``model`` for a file of the authors, otherwise ``meta`` and ``state_dict``.
    """
    # A slice of a larger tensor would be saved with all of its storage.
    weights = {key: value.detach().cpu().clone() for key, value in tensors.items()}
    if 'state_dict' not in content and 'model' in content:
        return {'model': weights}
    meta = content.get('meta') if 'state_dict' in content else None
    return {'meta': dict(meta or {}), 'state_dict': weights}


def to_bytes(content: Mapping[str, Any]) -> bytes:
    """The file of a checkpoint; the same content gives the same bytes."""
    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    return buffer.getvalue()


def write_file(data: bytes, path: str) -> None:
    """Writes a file whole or not at all."""
    temporary = f'{path}.{os.getpid()}.part'
    try:
        with open(temporary, 'wb') as file:
            file.write(data)
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)
