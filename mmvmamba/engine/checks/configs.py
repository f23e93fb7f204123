"""Checks of the kinds of settings, and that files and folders of a config exist."""

import os
from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.config import Config
from mmengine.registry import DATASETS, Registry

from mmvmamba.engine.errors import UserError

#: Parts of a config that are no single values, if they are there.
_DICTS = (
    *(f'{stage}_{part}' for stage in ('train', 'val', 'test') for part in ('cfg', 'dataloader')),
    *(
        f'{stage}_dataloader.{part}'
        for stage in ('train', 'val', 'test')
        for part in ('dataset', 'sampler')
    ),
    'auto_scale_lr',
    'default_hooks',
    'env_cfg',
    'model',
    'optim_wrapper',
    'optim_wrapper.optimizer',
    'randomness',
)
_STRINGS = ('default_scope', 'runner_type', 'work_dir')
#: Settings that are numbers, if they are there. Those with a smallest one are integers.
_NUMBERS: dict[str, int | None] = {
    'log_processor.window_size': None,
    'optim_wrapper.accumulative_counts': 1,
    'optim_wrapper.clip_grad.max_norm': None,
    'optim_wrapper.optimizer.lr': None,
    'optim_wrapper.optimizer.weight_decay': None,
    'randomness.seed': 0,
    'train_cfg.max_epochs': None,
    'train_cfg.max_iters': None,
    'train_cfg.val_begin': None,
    'train_cfg.val_interval': 1,
    'default_hooks.checkpoint.interval': None,
    'default_hooks.logger.interval': None,
    **{f'{stage}_dataloader.batch_size': 1 for stage in ('train', 'val', 'test')},
    **{f'{stage}_dataloader.num_workers': 0 for stage in ('train', 'val', 'test')},
}


def check_settings(cfg: Config) -> None:
    """Check the types of the main parts of a config.

    MMEngine fails on these later, sometimes after an epoch, without naming the setting.

    Raises:
        UserError: If a setting has the wrong type or is too small.
    """
    if cfg.model is None:
        raise UserError('model must be a dict, but got None')
    for name in _DICTS:
        part = _setting(cfg, name)
        if isinstance(part, str | int | float | tuple):
            raise UserError(f'{name} must be a dict, but got {part!r:.80}{_comma(part)}')
    for name in _STRINGS:
        if not isinstance(cfg.get(name), str | None):
            raise UserError(f'{name} must be a str, but got {cfg[name]!r}')
    if not isinstance(cfg.get('custom_hooks'), list | tuple | None):
        raise UserError(f'custom_hooks must be a list, but got {cfg.custom_hooks!r}')
    for name, least in _NUMBERS.items():
        _check_number(name, _setting(cfg, name), least)


def check_stages(cfg: Config) -> None:
    """Check that the parts of training, validation and test are complete or left out.

    Raises:
        UserError: If one is set and another is not.
    """
    for stage in ('train', 'val', 'test'):
        last = 'optim_wrapper' if stage == 'train' else f'{stage}_evaluator'
        names = (f'{stage}_dataloader', f'{stage}_cfg', last)
        missing = [name for name in names if cfg.get(name) is None]
        if missing and len(missing) < len(names):
            hint = '; use --no-validate to disable validation' if stage == 'val' else ''
            raise UserError(
                f'{", ".join(names)} must all be set or all be None, but {missing} are None{hint}'
            )


def _check_number(name: str, value: Any, least: int | None) -> None:
    if isinstance(value, str | bool | Mapping) or _comma(value):
        raise UserError(f'{name} must be a number, but got {value!r:.80}{_comma(value)}')
    if least is not None and isinstance(value, float) and not value.is_integer():
        raise UserError(f'{name} must be an integer, but got {value}')
    if least is not None and isinstance(value, int | float) and value < least:
        raise UserError(f'{name} must be at least {least}, but got {value}')


def _comma(value: Any) -> str:
    """Describe the likely cause of a tuple of one item."""
    is_single = isinstance(value, tuple) and len(value) == 1
    return ', a tuple; remove the trailing comma' if is_single else ''


def _setting(cfg: Mapping[str, Any], name: str) -> Any:
    """Return the setting of a dotted name, or None if there is none."""
    value: Any = cfg
    for key in name.split('.'):
        value = value.get(key) if isinstance(value, Mapping | Config) else None
    return value


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
    """Yield the datasets, or their configs, inside wrappers such as ConcatDataset."""
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


def registered_class(registry: Registry, cfg: Mapping[str, Any]) -> type | None:
    """Return the class of a component in the scope of the run."""
    kind = cfg.get('type')
    with registry.switch_scope_and_registry(None) as current:
        return current.get(kind) if isinstance(kind, str) else kind


def dataset_class(cfg: Mapping[str, Any]) -> type | None:
    """Return the class of a dataset in the scope of the run."""
    return registered_class(DATASETS, cfg)


def type_name(cfg: Any) -> str | None:
    """Return the name of the class in a config without its scope; '' if there is none."""
    if not isinstance(cfg, Mapping):
        return None
    kind = cfg.get('type', '')
    return str(getattr(kind, '__name__', kind)).rpartition('.')[2]


def annotation_file(cfg: Mapping[str, Any]) -> str | None:
    """Return the path of a dataset's annotation file, joined as MMEngine joins it."""
    return _join(cfg.get('data_root'), cfg.get('ann_file'))


def local_paths(cfg: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the names and paths of a dataset's local files and folders.

    Raises:
        UserError: If ``data_prefix`` is neither a folder nor a dict of folders.
    """
    backend = cfg.get('backend_args')
    if backend and backend.get('backend') not in (None, 'local', 'disk'):
        return
    root = cfg.get('data_root')
    prefix = cfg.get('data_prefix') or {}
    if isinstance(prefix, str):
        prefix = {'data_prefix': prefix}
    if not isinstance(prefix, Mapping):
        raise UserError(f'data_prefix must be a str or a dict, but got {prefix!r:.80}')
    paths = {'data_root': root, 'ann_file': annotation_file(cfg)}
    paths |= {f'folder {key}': _join(root, value) for key, value in prefix.items()}
    for name, path in paths.items():
        if isinstance(path, str) and path and '://' not in path:
            yield name, path


def _join(root: Any, path: Any) -> str | None:
    if not isinstance(path, str) or not path:
        return None
    return path if not isinstance(root, str) or '://' in path else os.path.join(root, path)
