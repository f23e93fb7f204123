"""Reading and writing folders with a config and weights."""

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmvmamba.checkpoint.keys import convert_state_dict, split_state_dict
from mmvmamba.checkpoint.matching import (
    STAGE_NORMS,
    load_tensors,
    match_tensors,
    naming_file,
)
from mmvmamba.checkpoint.reader import read_local_checkpoint, state_dict_of
from mmvmamba.checkpoint.tensors import unusable
from mmvmamba.nn import ARCHS, VMambaNet
from mmvmamba.nn.factory import MODEL_NAMES
from mmvmamba.nn.settings import check_backbone_arguments

from .config import CONFIG, NetworkConfig, config_of, read_config

_logger = logging.getLogger(__name__)
WEIGHTS = 'model.safetensors'
#: Files of weights in the order of preference; timm's ``save_for_hf`` writes the second one.
WEIGHT_FILES = (WEIGHTS, 'pytorch_model.bin')


def load_folder(
    folder: str | os.PathLike[str],
    net_class: type[VMambaNet] = VMambaNet,
    model_name: str | None = None,
    **overrides: Any,
) -> VMambaNet:
    """Build the network of a local folder and load its weights. Nothing is executed.

    Args:
        folder (str | PathLike): A folder that :func:`write_folder`, timm's ``save_for_hf`` or
            transformers wrote.
        net_class (type): The class of the network. Defaults to :class:`mmvmamba.nn.VMambaNet`.
        model_name (str, optional): The model that must be in the folder. Defaults to None, any.
        **overrides: Arguments of ``net_class`` that replace the folder's. ``in_chans`` and
            ``features_only`` are taken as in ``mmvmamba.create_model``.

    Returns:
        VMambaNet: The network in training mode. A classifier has ``class_names`` if the folder
        does, and ``pretrained_cfg`` contains timm's settings for its transforms.

    Raises:
        FileNotFoundError: If the folder or one of its files does not exist.
        ValueError: If the folder has another network, its weights do not match or are damaged, or a
            backbone is given ``num_classes`` or ``global_pool``.
    """
    config_file, weights_file = _files(Path(folder).expanduser())
    config = read_config(config_file)
    if model_name and ARCHS[MODEL_NAMES[model_name]] != ARCHS[MODEL_NAMES[config.model_name]]:
        raise ValueError(
            f'model_name must be {config.model_name!r}, the model in {os.fspath(folder)!r}, but '
            f'got {model_name!r}'
        )
    content = read_local_checkpoint(weights_file, warn_unverified=False)
    tensors = state_dict_of(content, str(weights_file))
    _check_sizes(config, tensors, str(weights_file))
    net = _build(net_class, config, overrides)
    matching = load_tensors(net, tensors, str(weights_file), new_head=True)
    _logger.info('%s: %s', weights_file, matching)
    return net


def _files(folder: Path) -> tuple[Path, Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f'folder {str(folder)!r} does not exist or is not a folder')
    config = folder / CONFIG
    if not config.is_file():
        raise FileNotFoundError(f'folder {str(folder)!r} has no {CONFIG}')
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return config, folder / name
    raise FileNotFoundError(f'folder {str(folder)!r} has neither {" nor ".join(WEIGHT_FILES)}')


def _check_sizes(config: NetworkConfig, tensors: Mapping[str, Tensor], filename: str) -> None:
    """Check that config and weights match before allocating the network.

    Raises:
        ValueError: If they do not match.
    """
    file = f'checkpoint {filename!r}'
    blocks = sum(config.arch.depths)
    if blocks > len(tensors):  # each would take memory even without values
        raise ValueError(f'{file} has {len(tensors)} tensors, but {CONFIG} has {blocks} blocks')
    try:
        with torch.device('meta'):
            net = VMambaNet(config.arch, **config.arguments)
    except (RuntimeError, TypeError) as error:  # of torch, for sizes that overflow
        raise ValueError(f'the sizes in {CONFIG} next to {file} are too large') from error
    with naming_file(file):
        is_backbone = net.out_indices is not None
        given = convert_state_dict(tensors) if is_backbone else split_state_dict(tensors)[0]
    matching = match_tensors(net.state_dict(), given, assign=True)
    matching.check(file, type(net).__name__, allow_missing=STAGE_NORMS)


def _build(
    net_class: type[VMambaNet], config: NetworkConfig, overrides: dict[str, Any]
) -> VMambaNet:
    given = dict(overrides)
    if (in_chans := given.pop('in_chans', None)) is not None:
        given['in_channels'] = in_chans
    saved = dict(config.arguments)
    features_only = given.pop('features_only', False) or given.get('out_indices') is not None
    if features_only and 'out_indices' not in saved:
        saved = {k: v for k, v in saved.items() if k not in ('num_classes', 'global_pool')}
        saved['out_indices'] = range(len(config.arch.dims))
    if 'out_indices' in saved:
        check_backbone_arguments(**given)
    net = net_class(config.arch, **{**saved, **{k: v for k, v in given.items() if v is not None}})
    if net.out_indices is None and net.num_classes == config.arguments.get('num_classes'):
        net.class_names = config.class_names
    net.pretrained_cfg = config.pretrained_cfg
    return net


def write_folder(net: VMambaNet, folder: str | os.PathLike[str]) -> None:
    """Write the config and the weights of a network into a folder, which is created if needed.

    Raises:
        ValueError: If the network could not be built from its config; nothing is written then.
    """
    from safetensors.torch import save_file

    check_network(net)
    state = {key: value.detach().cpu().contiguous() for key, value in net.state_dict().items()}
    os.makedirs(folder, exist_ok=True)
    save_file(state, Path(folder, WEIGHTS), metadata={'format': 'pt'})  # transformers asks for it
    Path(folder, CONFIG).write_text(json.dumps(config_of(net), indent=2) + '\n', encoding='utf-8')


def check_network(net: VMambaNet) -> None:
    """Check that a network could be built again from its config.

    Raises:
        ValueError: If layers were replaced or removed after the network was built, if a tensor is
            on the meta device, or if the number of ``class_names`` is wrong.
    """
    config_of(net)
    state = net.state_dict()
    for key, value in state.items():
        if kind := unusable(value):
            raise ValueError(f'tensor {key!r} must be dense and have data, but is {kind}')
    with torch.device('meta'):
        network = VMambaNet(net.settings, net.in_channels, net.num_classes, net.out_indices)
    built = network.state_dict()
    names = {k for k in built.keys() | state.keys() if k not in built or k not in state}
    names |= {k for k in built.keys() & state.keys() if built[k].shape != state[k].shape}
    if names:
        raise ValueError(
            'the layers of the network must not change after it is built, but these did: '
            f'{sorted(names)[:4]}'
        )
