"""Conversion between files of the authors and files of this package's models."""

import io
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .keys import BACKBONE, CLASSIFIER, last_stage, split_state_dict, to_image_classifier
from .matching import missing_in_classifier
from .redaction import redacted

TARGETS = ('mmvmamba', 'authors')
KINDS = ('backbone', 'classifier', 'detector', 'segmentor')


def kind_of(tensors: Mapping[str, Tensor]) -> str:
    """Return the kind of model that tensors belong to, one of ``KINDS``."""
    inside, others = split_state_dict(tensors)
    if others:
        heads = ('decode_head.', 'auxiliary_head.')
        return 'segmentor' if any(key.startswith(heads) for key in others) else 'detector'
    return 'classifier' if any(key.startswith(CLASSIFIER) for key in inside) else 'backbone'


def convert(
    tensors: Mapping[str, Tensor], to: str, kind: str, meta: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Convert the tensors of a file to the names and the wrapping that a program expects.

    Values do not change. Tensors are renamed and reshaped, and those that the kind of model does
    not have are dropped.

    Args:
        tensors (Mapping[str, Tensor]): In any released naming scheme or by the names of OpenMMLab.
        to (str): 'mmvmamba', for this package's models in OpenMMLab, or 'authors', for their code.
        kind (str): 'backbone', 'classifier', 'detector' or 'segmentor'.
        meta (Mapping, optional): ``meta`` of a detector's or segmentor's file. Defaults to None.

    Returns:
        dict: The content of the new file.

    Raises:
        ValueError: If ``to`` or ``kind`` is unknown, or ``tensors`` do not belong to such a model.
    """
    for name, value, allowed in (('to', to, TARGETS), ('kind', kind, KINDS)):
        if value not in allowed:
            raise ValueError(f'{name} must be one of {allowed}, but got {value!r}')
    inside, others = split_state_dict(tensors)
    if not any(key.startswith('layers.') for key in inside):
        raise ValueError(f'tensors {sorted(tensors)[:8]} do not belong to a VMamba model')
    if kind == 'classifier':
        missing = missing_in_classifier(inside)
        if missing:
            raise ValueError(f'a classifier needs {missing}, but the file does not contain it')
        if to == 'authors':
            return {'model': inside}
        return {'state_dict': to_image_classifier(inside, last_stage(inside))}
    inside = {key: value for key, value in inside.items() if not key.startswith(CLASSIFIER)}
    if kind == 'backbone':
        return {'model' if to == 'authors' else 'state_dict': inside}
    state_dict = {BACKBONE + key: value for key, value in inside.items()} | others
    return {'meta': dict(meta or {}), 'state_dict': state_dict}


def strip_checkpoint(content: Any, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Keep the weights and ``meta`` of a checkpoint and drop the training state.

    The text of the config in ``meta`` loses passwords and queries of URLs.

    Args:
        content (Any): The content of the file.
        tensors (Mapping[str, Tensor]): Its tensors.

    Returns:
        dict: ``model`` for a file of the authors, otherwise ``meta`` and ``state_dict``.
    """
    # A slice of a larger tensor would be saved with all of its storage.
    weights = {key: value.detach().cpu().clone() for key, value in tensors.items()}
    if 'state_dict' not in content and 'model' in content:
        return {'model': weights}
    meta = content.get('meta') if 'state_dict' in content else None
    meta = {k: redacted(v) if isinstance(v, str) else v for k, v in (meta or {}).items()}
    return {'meta': meta, 'state_dict': weights}


def to_bytes(content: Mapping[str, Any]) -> bytes:
    """Return the bytes of a checkpoint file; the same content gives the same bytes."""
    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    return buffer.getvalue()
