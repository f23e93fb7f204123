"""Reads the checkpoints that MMEngine's configs name: files, URLs and addresses."""

from __future__ import annotations

import io
import os
import re
from http.client import HTTPException
from typing import Any
from urllib.parse import urlparse

import torch
from mmengine import fileio
from mmengine.config import ConfigDict
from mmengine.dist import broadcast_object_list, get_rank
from mmengine.logging import HistoryBuffer
from mmengine.runner.checkpoint import CheckpointLoader

from mmvmamba.nn import checkpoint_file as nn_checkpoint_file
from mmvmamba.nn.checkpoint_file import as_text, read_stream

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
    return nn_checkpoint_file.read_local_checkpoint(
        filename, map_location, HistoryBuffer, ConfigDict
    )


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
