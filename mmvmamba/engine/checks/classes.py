"""Whether the heads of a model have the classes of the data set that it learns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmvmamba.engine.errors import UserError

from .channels import named_parts

#: Where mmdet, mmseg and mmpretrain have heads whose ``num_classes`` are the data set's. Others,
#: such as RPN's and STDC's auxiliary ones, tell objects or boundaries from the rest.
_HEADS = (
    'bbox_head',
    'mask_head',
    'roi_head.bbox_head',
    'roi_head.mask_head',
    'decode_head',
    'head',
)


def check_head_classes(cfg: Mapping[str, Any], count: int) -> list[str]:
    """Compares the classes of a model's heads with those of a data set.

    A detector's head for fewer classes fails at the first label beyond them, or takes that class
    for the background. A segmentor's may leave out a background that its data set names.

    Args:
        cfg (Mapping): The config of the model.
        count (int): The classes of the data set.

    Returns:
        list[str]: What is to be said of other heads with another number of classes.

    Raises:
        UserError: If a detector's head has fewer classes than the data set.
    """
    others = []
    for name, head in (part for path in _HEADS for part in named_parts(cfg, path)):
        classes = head.get('num_classes')
        if not isinstance(classes, int) or classes == count or head.get('class_agnostic'):
            continue
        message = f'the training data set has {count} classes, but {name}.num_classes is {classes}'
        if classes < count and not name.startswith(('model.decode_head', 'model.head')):
            raise UserError(message)
        others.append(message)
    return others
