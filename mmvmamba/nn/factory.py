"""Networks by timm's names and arguments."""

import fnmatch
import logging
import os
from collections.abc import Sequence
from typing import Any

from mmvmamba.checkpoint.download import download, is_url
from mmvmamba.checkpoint.keys import CLASSIFIER_HEAD, split_state_dict
from mmvmamba.checkpoint.matching import load_tensors, naming_file
from mmvmamba.checkpoint.reader import (
    as_filename,
    class_names_of,
    read_local_checkpoint,
    state_dict_of,
)
from mmvmamba.checkpoint.redaction import redacted
from mmvmamba.checkpoint.released import IMAGENET_CLASSES, released_file

from .arch import ARCHS, resolve_arch
from .hub_methods import is_hub_name
from .network import VMambaNet
from .settings import check_backbone_arguments, did_you_mean

_logger = logging.getLogger(__name__)
#: Architectures by model name.
MODEL_NAMES = {f'vmamba_{arch}': arch for arch in ARCHS}


def all_stages(arch: str, dims: Any = None, depths: Any = None, **_: Any) -> tuple[int, ...]:
    """Return the indices of all stages of an architecture, optionally with other ``dims``."""
    return tuple(range(len(resolve_arch(arch, dims=dims, depths=depths).dims)))


def list_models(filter: str = '*') -> list[str]:
    """Return the model names for :func:`create_model`. All models have released weights.

    'vmamba_tiny', 'vmamba_small' and 'vmamba_base' are those of the paper, and aliases of
    'vmamba_tiny_s1l8', 'vmamba_small_s2l15' and 'vmamba_base_s2l15'.

    Args:
        filter (str): A pattern with wildcards, e.g. 'vmamba_small*'. Defaults to '*'.
    """
    return sorted(fnmatch.filter(MODEL_NAMES, filter))


def create_model(
    model_name: str,
    pretrained: str | os.PathLike[str] | bool = False,
    num_classes: int | None = None,
    features_only: bool = False,
    out_indices: Sequence[int] | None = None,
    in_chans: int | None = None,
    **kwargs: Any,
) -> VMambaNet:
    """Create a classifier, or a backbone with ``features_only``, by its name in timm.

    Args:
        model_name (str): One of :func:`list_models`: 'vmamba_tiny', 'vmamba_small', 'vmamba_base',
            'vmamba_vanilla_tiny', ...
        pretrained (str | PathLike | bool): True for the released ImageNet weights, a file, or a
            URL (http, https), of a released file or a training checkpoint. Downloads are cached in
            ``checkpoints/mmvmamba`` in torch.hub's folder. The first convolution of a file for
            3 channels is adapted to ``in_chans``. 'local-dir:FOLDER' and 'hf-hub:OWNER/NAME'
            (optionally with '@REVISION') load a saved network as ``VMambaNet.from_pretrained``
            does; arguments given here override the saved ones. Defaults to False, random weights.
        num_classes (int, optional): Number of classes; 0 returns the pooled map (N, C). If the
            file has another number of classes, the last layer is initialized randomly. Must be None
            or 0 for a backbone. Defaults to None: the number in the file, otherwise 1000.
        features_only (bool): Whether to return the normalized maps (N, C, H, W) of the stages, for
            detectors and segmentors, instead of scores. Defaults to False.
        out_indices (Sequence[int], optional): Stages whose maps are returned, in this order;
            negative indices count from the last stage. Defaults to None, all stages.
        in_chans (int, optional): Channels of the images. Defaults to None: those of the saved
            network, otherwise 3.
        **kwargs: Other arguments of :class:`mmvmamba.nn.VMambaNet`, e.g. ``drop_path_rate``.

    Returns:
        VMambaNet: The network in training mode. Its ``class_names`` are those in the file, if
        there are any.

    Raises:
        FileNotFoundError: If the file does not exist.
        TypeError: If an argument has a wrong type.
        ValueError: If a name or a number is not allowed, or the file cannot be downloaded, cannot
            be read or does not match.
    """
    if not isinstance(model_name, str):
        raise TypeError(f'model_name must be a str, but got {model_name!r}')
    if model_name not in MODEL_NAMES:
        whole = f'vmamba_{model_name}'  # in configs, arch='tiny' is the name
        raise ValueError(
            f'model_name must be one of {list_models()}, but got {model_name!r}'
            f'{did_you_mean(whole if whole in MODEL_NAMES else model_name, MODEL_NAMES)}'
        )
    if not isinstance(pretrained, str | os.PathLike | bool):
        raise TypeError(f'pretrained must be a bool, a file or a URL, but got {pretrained!r}')
    if out_indices is not None and not features_only:
        raise ValueError(f'out_indices requires features_only=True, but got {out_indices!r}')
    if 'in_channels' in kwargs:
        raise TypeError(
            f'in_channels is called in_chans here: pass in_chans={kwargs["in_channels"]!r}'
        )
    if isinstance(pretrained, str) and is_hub_name(pretrained):
        kwargs |= dict(num_classes=num_classes, features_only=features_only, in_chans=in_chans)
        kwargs |= dict(model_name=model_name, out_indices=out_indices)
        return VMambaNet.from_pretrained(pretrained, **kwargs).train()
    if features_only:
        check_backbone_arguments(num_classes, **kwargs)
    arch = MODEL_NAMES[model_name]
    if features_only and out_indices is None:
        out_indices = all_stages(arch, **kwargs)
    classes = IMAGENET_CLASSES if num_classes is None else num_classes
    channels = 3 if in_chans is None else in_chans
    net = VMambaNet(arch, channels, classes, out_indices, **kwargs)
    if pretrained is not False:
        content, name = _read_weights(pretrained, arch)
        _load_weights(net, content, name, new_head=num_classes is not None)
    return net


def _read_weights(pretrained: str | os.PathLike[str] | bool, arch: str) -> tuple[Any, str]:
    """Load the checkpoint that ``pretrained`` refers to; return it and its name in messages."""
    source = '' if isinstance(pretrained, bool) else as_filename(pretrained)
    if pretrained is True:
        path = source = released_file(arch)
    else:
        path = download(source) if is_url(source) else source
        if os.path.isdir(path):
            raise ValueError(
                f"pretrained must be 'local-dir:{path}' for a folder, but got {path!r}"
            )
    name = redacted(source) + (f', cached in {path}' if path != source else '')
    return read_local_checkpoint(path, name=name), name


def _load_weights(net: VMambaNet, content: Any, name: str, new_head: bool) -> None:
    """Load a file; a classifier takes its classes unless ``new_head``."""
    tensors = state_dict_of(content, name)
    is_classifier = net.out_indices is None
    if is_classifier and not new_head:
        with naming_file(f'checkpoint {name!r}'):
            head = split_state_dict(tensors)[0].get(f'{CLASSIFIER_HEAD}weight')
        if head is not None and head.shape[1:] == (net.num_features,):
            net.reset_classifier(head.shape[0])
    _logger.info('%s: %s', name, load_tensors(net, tensors, name, new_head=new_head))
    class_names = class_names_of(content)
    if is_classifier and class_names is not None and len(class_names) == net.num_classes:
        net.class_names = class_names
