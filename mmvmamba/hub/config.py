"""`config.json` in timm's format, which timm and transformers read too."""

import contextlib
import dataclasses
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from mmvmamba.checkpoint.keys import CLASSIFIER_HEAD, FIRST_CONV
from mmvmamba.checkpoint.released import (
    IMAGENET_CLASSES,
    IMAGENET_CROP,
    IMAGENET_MEAN,
    IMAGENET_STD,
)
from mmvmamba.nn import ARCHS, Arch, VMambaNet, resolve_arch
from mmvmamba.nn.arch import check_known
from mmvmamba.nn.factory import MODEL_NAMES
from mmvmamba.nn.layers import POOLS
from mmvmamba.nn.settings import check_choice, check_settings, stage_indices

_logger = logging.getLogger(__name__)
CONFIG = 'config.json'
#: Preprocessing of the authors' test (resize to 256 and crop the center of 224), and the layers
#: that timm adapts to other channels and classes.
PRETRAINED_CFG: dict[str, Any] = dict(
    crop_pct=IMAGENET_CROP,
    interpolation='bicubic',
    pool_size=(7, 7),
    first_conv=FIRST_CONV.removesuffix('.weight'),
    classifier=CLASSIFIER_HEAD.removesuffix('.'),
)
#: timm settings that are not saved: the weights' origin, and values stored elsewhere in the config.
_NOT_SAVED = {'url', 'file', 'hf_hub_id', 'hf_hub_filename', 'source', 'state_dict'}
_NOT_SAVED |= {'custom_load', 'architecture', 'label_names', 'num_classes'}
#: Arguments that are stored elsewhere in the config, that only timm's own models have, or that are
#: run-time choices; timm saves all arguments of a model.
_IGNORED = ('features_only', 'feature_cls', 'in_chans', 'num_classes', 'img_size')
_IGNORED += ('drop_rate', 'frozen_stages', 'with_cp', 'backend')


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
    """Parsed ``config.json``.

    Attributes:
        model_name (str): timm's name of the model, such as 'vmamba_tiny'.
        arch (Arch): The settings of the network.
        arguments (dict): The other arguments of :class:`mmvmamba.nn.VMambaNet`.
        class_names (tuple[str, ...], optional): Names of a classifier's classes.
        pretrained_cfg (dict): timm's settings, among them those of preprocessing.
    """

    model_name: str
    arch: Arch
    arguments: dict[str, Any]
    class_names: tuple[str, ...] | None
    pretrained_cfg: dict[str, Any]


def config_of(net: VMambaNet) -> dict[str, Any]:
    """Return the config of a network, which can be written as JSON.

    The settings in ``model_args`` are those that differ from the architecture's. Of a backbone
    they include ``features_only`` and ``out_indices``, so that timm builds a backbone too.
    ``net.class_names`` and ``net.pretrained_cfg`` (timm's settings) are taken over if they are set.

    Raises:
        ValueError: If ``net.class_names`` does not have a name for each class.
    """
    arch, args = _as_changes(net.settings)
    is_backbone = net.out_indices is not None
    if is_backbone:
        args |= dict(features_only=True, out_indices=net.out_indices)
    elif net.global_pool != 'avg':
        args['global_pool'] = net.global_pool
    if net.in_channels != len(IMAGENET_MEAN):
        args['in_chans'] = net.in_channels
    num_classes = 0 if is_backbone else net.num_classes
    config: dict[str, Any] = dict(
        architecture=f'vmamba_{arch}', num_classes=num_classes, num_features=net.num_features
    )
    if net.class_names is not None and not is_backbone:
        config['label_names'] = _class_names(net.class_names)
        if len(net.class_names) != num_classes:
            raise ValueError(
                f'there must be {num_classes} class names, but got {len(net.class_names)}'
            )
    given = {k: v for k, v in getattr(net, 'pretrained_cfg', {}).items() if k not in _NOT_SAVED}
    config |= dict(model_args=args, pretrained_cfg=_pretrained_cfg(given, net.in_channels))
    config['pretrained_cfg']['num_classes'] = num_classes
    return config


def _as_changes(settings: Arch) -> tuple[str, dict[str, Any]]:
    """Return the architecture closest to some settings, and what differs from it."""
    changes = {}
    # The first one of several that are equally close: the paper's names are best known.
    for name in dict.fromkeys(('tiny', 'small', 'base', *ARCHS)):
        pairs = ((f.name, getattr(settings, f.name)) for f in dataclasses.fields(Arch))
        changes[name] = {key: v for key, v in pairs if v != getattr(ARCHS[name], key)}
    closest = min(changes, key=lambda name: len(changes[name]))
    return closest, changes[closest]


def _pretrained_cfg(given: Mapping[str, Any], channels: int) -> dict[str, Any]:
    """Complete timm's settings, with one mean for images that do not have three channels."""
    cfg = {
        **PRETRAINED_CFG,
        'input_size': (channels, 224, 224),
        'mean': IMAGENET_MEAN,
        'std': IMAGENET_STD,
        **given,
    }
    cfg['input_size'] = (channels, *cfg['input_size'][1:])
    for name in ('mean', 'std'):
        if len(cfg[name]) not in (1, channels):
            cfg[name] = (sum(cfg[name]) / len(cfg[name]),)
    return cfg


def read_config(filename: str | os.PathLike[str]) -> NetworkConfig:
    """Read and check a VMamba config from this package, timm or transformers.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If it is not the config of a VMamba, or a value is not allowed.
    """
    with _naming(filename), open(filename, encoding='utf-8') as file:
        return parse_config(json.load(file))


@contextlib.contextmanager
def _naming(filename: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f'{os.fspath(filename)!r} is not a VMamba config: {error}') from None


def parse_config(config: Any) -> NetworkConfig:
    """Check the content of a config.

    Raises:
        TypeError: If a value has a wrong type.
        ValueError: If a name is unknown or a value is not allowed.
    """
    _check_mapping('the content', config)
    check_choice('architecture', config.get('architecture'), sorted(MODEL_NAMES))
    args, cfg = config.get('model_args') or {}, config.get('pretrained_cfg') or {}
    _check_mapping('model_args', args)
    _check_mapping('pretrained_cfg', cfg)
    args, cfg = ({k: _as_tuple(v) for k, v in dict_.items()} for dict_ in (args, cfg))
    for name in ('input_size', 'mean', 'std'):
        values = cfg.get(name, (0.0,))
        if not isinstance(values, tuple) or not values or not _are_numbers(values):
            raise TypeError(f'pretrained_cfg.{name} must be a list of numbers, but got {values!r}')
    arch_name = MODEL_NAMES[config['architecture']]
    rest = {k: v for k, v in args.items() if k not in _IGNORED}
    global_pool, out_indices = rest.pop('global_pool', 'avg'), rest.pop('out_indices', None)
    check_known(rest, (*_IGNORED, 'global_pool', 'out_indices'))
    arch = resolve_arch(arch_name, **rest)

    channels = args.get('in_chans') or cfg.get('input_size', (3,))[0]
    check_settings(in_channels=channels)
    arguments = dict(in_channels=channels)
    if args.get('features_only') or out_indices is not None:
        stages = range(len(arch.dims)) if out_indices is None else out_indices
        arguments['out_indices'] = stage_indices(stages, len(arch.dims))
        return NetworkConfig(config['architecture'], arch, arguments, None, cfg)

    sources = (config, args, cfg, {'num_classes': IMAGENET_CLASSES})
    num_classes = next(c['num_classes'] for c in sources if c.get('num_classes') is not None)
    check_settings(num_classes=num_classes)
    check_choice('global_pool', global_pool, POOLS)
    arguments |= dict(num_classes=num_classes, global_pool=global_pool)
    names = config.get('label_names') or cfg.get('label_names')
    if names is not None and len(names := _class_names(names)) != num_classes:
        # transformers keeps the names of the model that was fine-tuned.
        _logger.warning('ignoring %d class names for %d classes', len(names), num_classes)
        names = None
    return NetworkConfig(config['architecture'], arch, arguments, names, cfg)


def _check_mapping(name: str, value: Any) -> None:
    if not isinstance(value, Mapping):
        raise TypeError(f'{name} must be a dict, but got {value!r}')


def _are_numbers(values: Iterable[Any]) -> bool:
    return all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)


def _as_tuple(value: Any) -> Any:
    """Turn the lists of JSON into tuples."""
    return tuple(_as_tuple(v) for v in value) if isinstance(value, list) else value


def _class_names(names: Any) -> tuple[str, ...]:
    """Check names of classes; timm allows a dict from numbers to names too."""
    if isinstance(names, Mapping):
        names = [names.get(str(i), names.get(i)) for i in range(len(names))]
    is_sequence = isinstance(names, Sequence) and not isinstance(names, str)
    if not is_sequence or not all(isinstance(name, str) for name in names):
        raise TypeError(f'class names must be a sequence of str, but got {names!r:.100}')
    return tuple(names)
