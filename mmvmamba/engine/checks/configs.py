"""Checks that the files and folders of data loaders and evaluators exist."""

import os
from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.config import Config
from mmengine.registry import DATASETS

from mmvmamba.engine.errors import UserError


def check_data(cfg: Config, *loaders: str) -> None:
    """Check that the paths of the loaders and evaluators 'train', 'val' or 'test' exist."""
    for loader in loaders:
        dataset = (cfg.get(f'{loader}_dataloader') or {}).get('dataset')
        for leaf in leaf_datasets(dataset):
            for name, path in local_paths(leaf):
                if not os.path.exists(path):
                    where = '' if os.path.isabs(path) else f' in the directory {os.getcwd()}'
                    raise UserError(
                        f'{loader}_dataloader.dataset ({leaf.get("type")}): {name} {path!r} does '
                        f'not exist{where}'
                    )
        evaluator = f'{loader}_evaluator'
        for name, metric in named_settings(evaluator, cfg.get(evaluator)):
            path = metric.get('ann_file')
            if isinstance(path, str) and '://' not in path and not os.path.isfile(path):
                raise UserError(f'{name}: ann_file {path!r} does not exist')


def leaf_datasets(dataset: Any) -> Iterator[Any]:
    """Yield the data sets, or their configs, inside wrappers such as ConcatDataset."""
    if dataset is None or isinstance(dataset, str):
        return
    parts = dataset if isinstance(dataset, Mapping) else vars(dataset)
    inner = [d for d in (parts.get('dataset'), *(parts.get('datasets') or ())) if d is not None]
    if not inner:
        yield dataset
    for child in inner:
        yield from leaf_datasets(child)


def named_settings(name: str, value: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the name and the settings of a part of a config, or of each part in a list."""
    if isinstance(value, Mapping):
        yield name, value
    elif isinstance(value, list | tuple):
        for i, part in enumerate(value):
            yield from named_settings(f'{name}[{i}]', part)


def dataset_class(cfg: Mapping[str, Any]) -> type | None:
    """Return the class of a data set in the scope of the run."""
    kind = cfg.get('type')
    with DATASETS.switch_scope_and_registry(None) as registry:
        return registry.get(kind) if isinstance(kind, str) else kind


def annotation_file(cfg: Mapping[str, Any]) -> str | None:
    """Return the path of a data set's annotation file, joined as MMEngine joins it."""
    return _join(cfg.get('data_root'), cfg.get('ann_file'))


def local_paths(cfg: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the names and paths of a data set's local files and folders."""
    backend = cfg.get('backend_args')
    if backend and backend.get('backend') not in (None, 'local', 'disk'):
        return
    root = cfg.get('data_root')
    prefix = cfg.get('data_prefix') or {}
    if isinstance(prefix, str):
        prefix = {'data_prefix': prefix}
    paths = {'data_root': root, 'ann_file': annotation_file(cfg)}
    paths |= {f'folder {key}': _join(root, value) for key, value in prefix.items()}
    for name, path in paths.items():
        if isinstance(path, str) and path and '://' not in path:
            yield name, path


def _join(root: Any, path: Any) -> str | None:
    if not isinstance(path, str) or not path:
        return None
    return path if not isinstance(root, str) or '://' in path else os.path.join(root, path)
