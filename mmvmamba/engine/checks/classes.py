"""Checks that a dataset, its annotation file and the heads of a model have the same classes."""

import os
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from mmengine.registry import MODELS

from mmvmamba.engine.errors import UserError

from .coco import coco_files, read_coco
from .configs import (
    dataset_class,
    leaf_datasets,
    local_paths,
    named_settings,
    registered_class,
)

#: Heads whose ``num_classes`` is that of the dataset. Others, such as that of RPN, only detect
#: objects; an auxiliary head may detect boundaries, as that of STDC.
_DETECTION_HEADS = ('bbox_head', 'mask_head')
_AUXILIARY_HEAD = 'auxiliary_head'
_OTHER_HEADS = ('decode_head', _AUXILIARY_HEAD, 'head')


class Head(NamedTuple):
    """A head in a config, which learns labels below ``num_classes`` and leaves out one more."""

    name: str
    num_classes: int
    ignore_index: int = 255


def check_dataset_classes(cfg: Mapping[str, Any]) -> None:
    """Check the classes that a config gives COCO datasets of mmdet against their files.

    mmdet silently ignores the annotations of categories that are not among the classes, and numbers
    the others in the order of the file. A typo shifts the labels of the classes after it, and
    classes in another order swap their labels.

    Raises:
        UserError: If the classes are a string, or the file lacks them or has another order.
    """
    for leaf, path in coco_files(cfg):
        dataset_type = dataset_class(leaf)
        classes = (leaf.get('metainfo') or {}).get('classes')
        # Other datasets with the API of COCO number their classes in their own way.
        load = dataset_type.load_data_list.__qualname__
        if classes is None or load != 'CocoDataset.load_data_list':
            continue
        if isinstance(classes, str) and os.path.isfile(classes):  # a name in each line
            continue
        if isinstance(classes, str):
            raise UserError(
                f'metainfo.classes of {dataset_type.__name__} must be a tuple, but got '
                f'{classes!r}; for a single class, write ({classes!r},)'
            )
        names = list(read_coco(path).categories)
        found = f'the categories of annotation file {path!r} are {names[:40]}'
        missing = [name for name in classes if name not in names]
        if missing:
            raise UserError(f'metainfo.classes has {missing[:12]}, but {found}')
        if [name for name in names if name in classes] != list(classes):
            raise UserError(
                f'metainfo.classes is {list(classes)[:40]}, but {found}: '
                f'{dataset_type.__name__} numbers classes in the order of the file, so use the '
                'same order'
            )


def describe_empty(cfg: Mapping[str, Any]) -> str:
    """Explain why a dataset may have no images, with its classes and its file's categories."""
    for leaf, path in coco_files(cfg):
        classes = (leaf.get('metainfo') or {}).get('classes')
        if classes is None:
            classes = getattr(dataset_class(leaf), 'METAINFO', {}).get('classes', ())
        return (
            f'{leaf.get("type")} has no usable images: annotation file {path!r} has the categories '
            f'{list(read_coco(path).categories[:12])}, but the dataset has the classes '
            f'{list(classes)[:12]}'
        )
    leaves = list(leaf_datasets(cfg))
    names = ' and '.join(str(leaf.get('type')) for leaf in leaves)
    return (
        f'{names} found no images in {[path for leaf in leaves for _, path in local_paths(leaf)]}'
    )


def check_head_classes(cfg: Mapping[str, Any], count: int) -> list[str]:
    """Compare the number of classes of a model's heads with that of a dataset.

    A detection head for fewer classes fails at the first label beyond them, or takes that class
    for the background. A segmentation head may leave out a background that its dataset names, so
    other differences are returned as warnings.

    Raises:
        UserError: If a detection head has fewer classes than the dataset.
    """
    warnings = []
    for name, head in _heads(cfg, 'model'):
        classes = head.get('num_classes')
        if not isinstance(classes, int) or classes == count or head.get('class_agnostic'):
            continue
        message = f'the training dataset has {count} classes, but {name}.num_classes is {classes}'
        if classes < count and name.split('.')[-1].startswith(_DETECTION_HEADS):
            raise UserError(message)
        warnings.append(message)
    return warnings


def smallest_head(model: Any) -> Head | None:
    """Return the head of a segmentor or classifier that has the fewest classes."""
    heads = []
    for key in _OTHER_HEADS if isinstance(model, Mapping) else ():
        for name, head in named_settings(f'model.{key}', model.get(key)):
            classes, ignored = head.get('num_classes'), head.get('ignore_index', 255)
            if not isinstance(classes, int) or (key != 'head' and not _learns_labels(head)):
                continue
            # A segmentation head with one channel learns the labels 0 and 1.
            heads.append(Head(name, classes if key == 'head' else max(classes, 2), ignored))
    return min(heads, key=lambda head: head.num_classes, default=None)


def _heads(cfg: Mapping[str, Any], name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the settings of each head with its name in the config."""
    for key, value in cfg.items():
        for path, part in named_settings(f'{name}.{key}', value):
            if key in (*_DETECTION_HEADS, *_OTHER_HEADS):
                if key != _AUXILIARY_HEAD or _learns_labels(part):
                    yield path, part
            yield from _heads(part, path)


def _learns_labels(head: Mapping[str, Any]) -> bool:
    """Return True for a head of mmseg whose loss compares it with the label map."""
    loss = getattr(registered_class(MODELS, head), 'loss_by_feat', None)
    return getattr(loss, '__qualname__', '') == 'BaseDecodeHead.loss_by_feat'
