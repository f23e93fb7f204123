"""Says what is wrong with a data set before or after its class trips over it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.registry import DATASETS

from mmvmamba.engine.errors import UserError


def leaf_datasets(cfg: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yields the data sets inside wrappers such as RepeatDataset and ConcatDataset."""
    if not isinstance(cfg, Mapping):
        return
    inner = [cfg['dataset']] if 'dataset' in cfg else cfg.get('datasets')
    if not inner:
        yield cfg
        return
    for child in inner:
        yield from leaf_datasets(child)


def check_dataset_paths(cfg: Mapping[str, Any], where: str) -> None:
    """Checks that the folders and the annotation file that a data set names exist.

    Args:
        cfg (Mapping): The data set's config, wrappers included.
        where (str): Its name in the config, e.g. 'train_dataloader.dataset'.

    Raises:
        UserError: If one is missing.
    """
    for leaf in leaf_datasets(cfg):
        for name, path in _local_paths(leaf):
            if not os.path.exists(path):
                raise UserError(
                    f'{where} ({leaf.get("type")}): {name} {path!r} does not exist'
                    f'{_working_directory(path)}'
                )


def check_annotations(cfg: Mapping[str, Any]) -> None:
    """Checks the files of mmdet's COCO data sets, to be called after a data set failed.

    Args:
        cfg (Mapping): The data set's config, wrappers included.

    Raises:
        UserError: If one is not COCO's.
    """
    for path in _coco_files(cfg).values():
        check_coco_file(path)


def check_coco_file(path: str) -> None:
    """Checks that a file holds COCO's ``images``, ``annotations`` and ``categories``.

    Args:
        path (str): The file.

    Raises:
        UserError: If it is no JSON or lacks one of them.
    """
    try:
        with open(path, encoding='utf-8') as file:
            content = json.load(file)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f'annotation file {path!r} is not JSON: {error}') from error
    if not isinstance(content, dict):
        raise UserError(
            f'annotation file {path!r} is not COCO: it holds a {type(content).__name__}, no object '
            'with images, annotations and categories'
        )
    lacking = [k for k in ('images', 'annotations', 'categories') if k not in content]
    if lacking:
        raise UserError(
            f'annotation file {path!r} is not COCO: it lacks {lacking} and has {sorted(content)}'
        )


def check_classes(cfg: Mapping[str, Any]) -> None:
    """Checks the classes that a config gives mmdet's COCO data sets against their files.

    mmdet leaves out the annotations of categories whose names are not among the classes, and
    numbers those that are in the order of the file: a typo shifts the labels of the classes after
    it, and classes in another order get each other's labels, without a word.

    Args:
        cfg (Mapping): The config of a data set that was built, wrappers included.

    Raises:
        UserError: If the classes are no list, lack in a file or have another order there.
    """
    leaves = list(leaf_datasets(cfg))
    for index, path in _coco_files(cfg).items():
        kind = _class_of(leaves[index])
        classes = (leaves[index].get('metainfo') or {}).get('classes')
        # Other data sets of COCO's API number their classes in ways of their own.
        if classes is None or kind.load_data_list.__qualname__ != 'CocoDataset.load_data_list':
            continue
        if isinstance(classes, str):
            if os.path.isfile(classes):  # a name in each line
                continue
            raise UserError(
                f'metainfo.classes of {kind.__name__} is the string {classes!r}; a tuple of one '
                f'name is written ({classes!r},)'
            )
        names = _categories(path)
        found = f'the categories of annotation file {path!r} are {names[:40]}'
        lacking = [name for name in classes if name not in names]
        if lacking:
            raise UserError(f'metainfo.classes has {lacking[:12]}, but {found}')
        if [name for name in names if name in classes] != list(classes):
            raise UserError(
                f'metainfo.classes is {list(classes)[:40]}, but {found}: {kind.__name__} numbers '
                'the classes in the order of the file, so write them in that order'
            )


def describe_empty(cfg: Mapping[str, Any]) -> str:
    """Says why a data set may have no image, with its classes and its file's categories."""
    leaves = list(leaf_datasets(cfg))
    for index, path in _coco_files(cfg).items():
        return (
            f'{leaves[index].get("type")} has no image to use: annotation file {path!r} has the '
            f'categories {_categories(path)[:12]}, the data set has the classes '
            f'{_classes(leaves[index])[:12]}'
        )
    paths = [path for leaf in leaves for _, path in _local_paths(leaf)]
    return f'{" and ".join(str(leaf.get("type")) for leaf in leaves)} has no image in {paths}'


def _coco_files(cfg: Mapping[str, Any]) -> dict[int, str]:
    """The annotation files of the leaves, by number, that mmdet reads with COCO's API."""
    files = {}
    for index, leaf in enumerate(leaf_datasets(cfg)):
        path = annotation_file(leaf)
        # Others, such as mmpretrain's, have JSON of their own.
        coco = hasattr(_class_of(leaf), 'COCOAPI')
        if coco and path and path.endswith('.json') and os.path.isfile(path):
            files[index] = path
    return files


def _categories(path: str) -> list[str]:
    """The names of a COCO file's categories, in its order."""
    with open(path, encoding='utf-8') as file:
        return [category.get('name') for category in json.load(file).get('categories', [])]


def _classes(cfg: Mapping[str, Any]) -> list[str]:
    """The classes that a config gives a data set, else those of its class."""
    given = (cfg.get('metainfo') or {}).get('classes')
    if given is None:
        given = getattr(_class_of(cfg), 'METAINFO', {}).get('classes', ())
    return list(given)


def _class_of(cfg: Mapping[str, Any]) -> type | None:
    """The class of a data set in the scope of the run, as MMEngine looks it up to build it."""
    kind = cfg.get('type')
    with DATASETS.switch_scope_and_registry(None) as registry:
        return registry.get(kind) if isinstance(kind, str) else kind


def annotation_file(cfg: Mapping[str, Any]) -> str | None:
    """Returns the path of a data set's annotation file, joined as MMEngine joins it."""
    path = cfg.get('ann_file')
    if not isinstance(path, str) or not path:
        return None
    return _join(cfg.get('data_root'), path)


def _local_paths(cfg: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    backend = cfg.get('backend_args')
    if backend and backend.get('backend') not in (None, 'local', 'disk'):
        return
    root = cfg.get('data_root')
    paths = [('data_root', root), ('ann_file', annotation_file(cfg))]
    prefix = cfg.get('data_prefix') or {}
    if isinstance(prefix, str):
        prefix = {'data_prefix': prefix}
    paths += [(f'folder {key}', _join(root, value)) for key, value in prefix.items() if value]
    yield from ((name, p) for name, p in paths if isinstance(p, str) and p and '://' not in p)


def _join(root: Any, path: Any) -> Any:
    if not isinstance(path, str) or not isinstance(root, str) or '://' in path:
        return path
    return os.path.join(root, path)


def _working_directory(path: str) -> str:
    return '' if os.path.isabs(path) else f' in the working directory {os.getcwd()}'
