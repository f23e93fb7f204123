"""Loads released files into OpenMMLab's models, from files, URLs and addresses."""

from __future__ import annotations

import io
import os
import re
from collections import OrderedDict
from collections.abc import Mapping
from http.client import HTTPException
from os import PathLike
from typing import Any
from urllib.parse import urlparse

import torch
from mmengine import fileio
from mmengine.config import ConfigDict
from mmengine.dist import broadcast_object_list, get_rank
from mmengine.logging import HistoryBuffer, MMLogger
from mmengine.runner.checkpoint import CheckpointLoader
from torch import Tensor, nn

from mmvmamba.checkpoint import reader
from mmvmamba.checkpoint.keys import convert_state_dict, to_image_classifier
from mmvmamba.checkpoint.matching import (
    Fit,
    compare,
    listing,
    load_tensors,
    surprising,
    with_resized,
)
from mmvmamba.checkpoint.reader import as_text, read_stream, state_dict_of
from mmvmamba.nn import VMambaNet

_HTTP = ('http://', 'https://')
#: Ceph, as MMEngine writes it: the name of a cluster may stand before.
_CEPH = (r'(\S+\:)?s3://', r'(\S+\:)?petrel://')


def read_checkpoint(filename: str | os.PathLike, map_location: Any = 'cpu') -> Any:
    """Reads a checkpoint of MMEngine or of the authors.

    Only tensors, numbers, containers and what MMEngine's runner saves are built; classes that
    :func:`torch.serialization.add_safe_globals` knows are allowed too.

    Args:
        filename (str | PathLike): A path, a URL (http, https), or an address of MMEngine's Ceph
            client (s3, petrel).
        map_location (Any): As in :func:`torch.load`. Defaults to 'cpu'.

    Raises:
        FileNotFoundError: If there is no such file.
        TypeError: If ``filename`` is no path.
        ValueError: If it is truncated, no checkpoint, needs another class, or if its address is of
            another kind.
    """
    filename = as_text(filename)
    if is_local(filename):
        return read_local_checkpoint(filename, map_location)
    if filename.startswith(_HTTP):
        return read_local_checkpoint(_download(filename), map_location)
    with io.BytesIO(fileio.get(filename, backend_args=dict(backend='petrel'))) as buffer:
        return read_stream(buffer, filename, map_location, HistoryBuffer, ConfigDict)


def is_local(filename: str | os.PathLike) -> bool:
    """Whether a checkpoint is a file of this machine and not an address.

    Raises:
        TypeError: If ``filename`` is no path.
        ValueError: If it is an address that :func:`read_checkpoint` does not take.
    """
    filename = as_text(filename)
    if '://' not in filename:
        return True
    if not filename.startswith(_HTTP) and not any(re.match(p, filename) for p in _CEPH):
        raise ValueError(
            f'checkpoint {filename!r} must be a path or begin with http://, https://, s3:// or '
            'petrel://'
        )
    return False


def read_local_checkpoint(filename: str, map_location: Any = 'cpu') -> Any:
    """Reads a checkpoint file; see :func:`read_checkpoint`."""
    return reader.read_local_checkpoint(filename, map_location, HistoryBuffer, ConfigDict)


def use_safe_loader() -> None:
    """Makes MMEngine read files and URLs as :func:`read_checkpoint` does, in this process.

    MMEngine's names of other networks' weights, such as ``torchvision://``, stay with it.
    """

    def load_from_local(filename: str, map_location: Any = None) -> Any:
        return read_checkpoint(filename, map_location)

    CheckpointLoader.register_scheme('', load_from_local, force=True)
    CheckpointLoader.register_scheme([*_HTTP, *_CEPH], load_from_local, force=True)


def _download(url: str) -> str:
    """Downloads into torch.hub's cache, once for the processes of a run.

    Where the first process fails all of them raise its error: one that waited for the others
    would wait until the time limit of the group.
    """
    folder = os.path.join(torch.hub.get_dir(), 'checkpoints')
    path = os.path.join(folder, os.path.basename(urlparse(url).path))
    failure: list[str | None] = [None]
    if get_rank() == 0:
        try:
            _download_to(url, path)
        except ValueError as error:
            failure[0] = str(error)
    broadcast_object_list(failure)
    if failure[0] is not None:
        raise ValueError(failure[0])
    # On another machine the file may still be missing; whoever is first moves it into place whole.
    _download_to(url, path, progress=False)
    return path


def _download_to(url: str, path: str, progress: bool = True) -> None:
    if os.path.isfile(path):
        return
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        torch.hub.download_url_to_file(url, path, progress=progress)
    except (OSError, ValueError, HTTPException) as error:
        raise ValueError(f'checkpoint {url!r} cannot be downloaded: {error}') from error


#: Why a file of the authors' classifier leaves a backbone in a whole model empty.
_NO_PREFIX = (
    '; no key has the prefix of this backbone: tools/model_converters/convert_vmamba.py gives a '
    'file the names of a whole model'
)
#: The mark of :func:`as_logged`.
_LOGGED = 'fit_is_logged'


def load_pretrained(model: nn.Module, filename: str | PathLike, prefix: str | None = None) -> None:
    """Loads a file into a backbone; anything but a whole fit is an error.

    Args:
        model (nn.Module): A :class:`mmvmamba.nn.VMambaNet`.
        filename (str | PathLike): What :func:`read_checkpoint` takes.
        prefix (str, optional): The part of a larger model that is taken, e.g. 'backbone'.
            Defaults to None, the whole or what stands behind 'backbone.'.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be read, nothing or not all of the model is in it, or a
            shape differs.
    """
    filename = str(filename)
    tensors = state_dict_of(read_checkpoint(filename), filename)
    if prefix is not None:
        start = prefix.rstrip('.') + '.'
        tensors = {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
        if not tensors:
            raise ValueError(f'checkpoint {filename!r} holds nothing with the prefix {prefix!r}')
    fit = load_tensors(model, tensors, filename)
    MMLogger.get_current_instance().info(f'{filename}: {fit}')


def check_backbone(
    model: nn.Module, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]
) -> None:
    """Checks what a model, an inferencer or a user loads into a backbone, and logs it.

    Args:
        model (nn.Module): A :class:`mmvmamba.nn.VMambaNet`.
        tensors (Mapping[str, Tensor]): Tensors by the model's names.
        metadata (Mapping): What the state dict says of this module; nothing is logged for one of
            :func:`as_logged`.

    Raises:
        ValueError: If nothing fits, a block is missing or a shape differs.
    """
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    if any('_fsdp_wrapped_module' in key or '_flat_param' in key for key in own):
        return  # FSDP's names and shapes say nothing about a file
    fit = compare(own, tensors)
    if not fit.found or fit.differing or surprising(fit.missing):
        hint = '' if tensors else _NO_PREFIX
        raise ValueError(f'the state dict does not fit {type(model).__name__}: {fit}{hint}')
    if _LOGGED not in metadata:
        MMLogger.get_current_instance().info(f'{type(model).__name__}: {fit}')


def load_whole(model: nn.Module, checkpoint: Any, filename: str) -> None:
    """Loads a detector, segmentor or classifier from a checkpoint of MMEngine or of the authors.

    Args:
        model (nn.Module): The whole model.
        checkpoint (Any): What :func:`read_checkpoint` returned.
        filename (str): Its name, for messages.

    Raises:
        ValueError: If not every tensor of the model is in it.
    """
    tensors = adapt_state_dict(model, state_dict_of(checkpoint, filename))
    check_fit(model, tensors, filename, whole=True)
    model.load_state_dict(tensors, strict=False)


def adapt_state_dict(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gives the tensors of a file the names that a detector, segmentor or classifier uses.

    Args:
        model (nn.Module): The whole model; only a ``backbone`` that is a VMamba is translated.
        tensors (Mapping[str, Tensor]): The file's tensors.

    Returns:
        dict[str, Tensor]: The same tensors, those of the backbone by today's names.
    """
    tensors = {key.removeprefix('module.'): value for key, value in tensors.items()}
    if not isinstance(getattr(model, 'backbone', None), VMambaNet):
        return tensors
    inside = {key: value for key, value in tensors.items() if key.startswith('backbone.')}
    others = {key: value for key, value in tensors.items() if key not in inside}
    if not inside and any(key.startswith('layers.') for key in tensors):
        # A classifier's file: all of it is the backbone, but for the head of a classifier.
        inside, others = tensors, {}
        if isinstance(getattr(getattr(model, 'head', None), 'fc', None), nn.Linear):
            last = max(model.backbone.out_indices)
            tensors = to_image_classifier(convert_state_dict(inside), last)
            return with_resized(tensors, dict(model.named_parameters()), 'backbone.pos_embed')
    inside = {f'backbone.{key}': value for key, value in convert_state_dict(inside).items()}
    # Of a model in shards, state_dict() would gather them.
    return with_resized(inside | others, dict(model.named_parameters()), 'backbone.pos_embed')


def name_classifier(backbone: nn.Module, state_dict: dict[str, Any], prefix: str) -> None:
    """Gives a released classifier's file the names of mmpretrain's ImageClassifier, in place.

    Whatever loads a state dict into that classifier comes by here, MMEngine's loader with the
    whole of ``{"model": ...}`` in its hands among them. Names that are already right are kept.

    Args:
        backbone (nn.Module): The classifier's backbone, a :class:`mmvmamba.nn.VMambaNet`.
        state_dict (dict): The file's tensors, or what the file wraps them in.
        prefix (str): The classifier's place in a larger model.

    Raises:
        ValueError: If the file is that of a backbone alone, which would leave a random head.
    """
    inside = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
    content = inside.get('model', inside)
    tensors = {k.removeprefix('module.'): v for k, v in content.items() if isinstance(v, Tensor)}
    if not any(key.startswith('layers.') for key in tensors):
        return
    last = max(backbone.out_indices)
    tensors = to_image_classifier(convert_state_dict(tensors), last)
    lacking = [
        key
        for layer in (f'backbone.outnorm{last}', 'head.fc')
        for key in (f'{layer}.weight', f'{layer}.bias')
        if key not in tensors
    ]
    if lacking:
        raise ValueError(
            f'the state dict is that of a backbone and lacks {listing(lacking)}; to train a new '
            "head, name the file in the backbone's init_cfg"
        )
    for key in inside:
        del state_dict[prefix + key]
    state_dict.update({prefix + key: value for key, value in tensors.items()})


def check_fit(model: nn.Module, tensors: Mapping[str, Tensor], filename: str, whole: bool) -> Fit:
    """Refuses a state dict that MMEngine would load in part and without an error.

    Args:
        model (nn.Module): The whole model.
        tensors (Mapping[str, Tensor]): What :func:`adapt_state_dict` returned.
        filename (str): For the message.
        whole (bool): Whether every tensor of the model must be there, as for a test. Otherwise a
            VMamba backbone must be whole, if any of it is there, and something must fit.

    Raises:
        ValueError: If it does not fit.
    """
    fit = compare(model.state_dict(), tensors)
    wrong = [*fit.missing, *fit.differing] if whole else []
    if not whole and isinstance(getattr(model, 'backbone', None), VMambaNet):
        wrong = surprising(k for k in fit.missing + fit.differing if k.startswith('backbone.'))
    if wrong or not fit.found:
        raise ValueError(f'checkpoint {filename!r} does not fit {type(model).__name__}: {fit}')
    return fit


def as_logged(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A whole model's state dict whose fit was logged, so that its backbone's is not once more.

    The mark is in the metadata, which copies of a state dict keep: a moving average loads one.
    """
    state_dict = OrderedDict(tensors)
    state_dict._metadata = OrderedDict(backbone={_LOGGED: True})
    return state_dict
