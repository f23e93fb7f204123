"""Reads checkpoint files without running code that they may hold."""

from __future__ import annotations

import io
import os
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPException
from typing import Any
from urllib.parse import urlparse

import numpy as np
import torch
from mmengine import fileio
from mmengine.dist import broadcast_object_list, get_rank
from mmengine.logging import HistoryBuffer
from mmengine.runner.checkpoint import CheckpointLoader
from torch import Tensor

_HTTP = ('http://', 'https://')
#: Ceph, as MMEngine writes it: the name of a cluster may stand before.
_CEPH = (r'(\S+\:)?s3://', r'(\S+\:)?petrel://')
_DTYPES = ('float16', 'float32', 'float64', 'int32', 'int64', 'uint8', 'uint32', 'bool')


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
    filename = _as_text(filename)
    if is_local(filename):
        return read_local_checkpoint(filename, map_location)
    if filename.startswith(_HTTP):
        return read_local_checkpoint(_download(filename), map_location)
    with io.BytesIO(fileio.get(filename, backend_args=dict(backend='petrel'))) as buffer:
        return _read(buffer, filename, map_location)


def is_local(filename: str | os.PathLike) -> bool:
    """Whether a checkpoint is a file of this machine and not an address.

    Raises:
        TypeError: If ``filename`` is no path.
        ValueError: If it is an address that :func:`read_checkpoint` does not take.
    """
    filename = _as_text(filename)
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
    path = os.path.expanduser(filename)
    if not os.path.isfile(path):
        raise FileNotFoundError(f'checkpoint {filename!r} does not exist')
    return _read(path, filename, map_location)


def _as_text(filename: Any) -> str:
    if not isinstance(filename, str | os.PathLike):
        raise TypeError(f'checkpoint must be a path or a URL, but got {filename!r}')
    return os.fsdecode(filename)


def _read(file: str | io.BytesIO, filename: str, map_location: Any) -> Any:
    """Reads a path or what was fetched; ``filename`` is for the messages."""
    try:
        with _safe_globals():
            return torch.load(file, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        foreign = re.search(r'GLOBAL ([\w.]+)', str(error))
        if foreign is None:
            raise ValueError(f'{filename!r} is no checkpoint: {_first_line(error)}') from error
        raise ValueError(
            f'checkpoint {filename!r} needs {foreign[1]}, which is not loaded from files; for a '
            'file that you trust, allow it with torch.serialization.add_safe_globals before'
        ) from error
    except (EOFError, RuntimeError, KeyError, ValueError, OSError) as error:
        # A zip archive without its end, an empty file, pickles of other things.
        raise ValueError(
            f'checkpoint {filename!r} is truncated or no checkpoint: {_first_line(error)}'
        ) from error


def use_safe_loader() -> None:
    """Makes MMEngine read files and URLs as :func:`read_checkpoint` does, in this process.

    MMEngine's names of other networks' weights, such as ``torchvision://``, stay with it.
    """

    def load_from_local(filename: str, map_location: Any = None) -> Any:
        return read_checkpoint(filename, map_location)

    CheckpointLoader.register_scheme('', load_from_local, force=True)
    CheckpointLoader.register_scheme([*_HTTP, *_CEPH], load_from_local, force=True)


def state_dict_of(content: Any, filename: str) -> dict[str, Tensor]:
    """Unwraps ``state_dict`` or ``model`` and keeps the tensors.

    Raises:
        ValueError: If there are none.
    """
    for key in ('state_dict', 'model'):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        raise ValueError(f'checkpoint {filename!r} holds a {type(content).__name__}, no state dict')
    tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f'checkpoint {filename!r} holds no tensors')
    return tensors


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


def _first_line(error: BaseException) -> str:
    text = (str(error).strip().splitlines() or [''])[0].split('. ')[0]
    return f'{type(error).__name__}: {text}' if text else type(error).__name__


@contextmanager
def _safe_globals() -> Iterator[None]:
    """Allows what MMEngine's runner saves; torch 2.4 has no such context manager."""
    before = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals(_runner_globals())
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def _runner_globals() -> list[Callable]:
    dtypes = [type(np.dtype(name)) for name in _DTYPES]
    reconstruct = np.ndarray(0).__reduce__()[0]
    scalar = np.float64(0).__reduce__()[0]
    aliases = [
        _named(function, f'numpy.{core}.multiarray.{name}')
        for core in ('core', '_core')  # numpy 1 and 2
        for function, name in ((reconstruct, '_reconstruct'), (scalar, 'scalar'))
    ]
    getter = _named(_history_method, 'builtins.getattr')
    return [HistoryBuffer, np.ndarray, np.dtype, *dtypes, *aliases, getter, _CfgNode]


def _named(function: Callable, path: str) -> Callable:
    """A function that a pickle finds under another name."""

    def call(*args: Any) -> Any:
        return function(*args)

    call.__module__, _, call.__name__ = path.rpartition('.')
    call.__qualname__ = call.__name__
    return call


def _history_method(owner: Any, name: str) -> Any:
    """The only attributes that MMEngine's checkpoints look up: those of its HistoryBuffer."""
    if owner is not HistoryBuffer or name.startswith('_'):
        raise pickle.UnpicklingError(f'GLOBAL {getattr(owner, "__name__", owner)}.{name}')
    return getattr(owner, name)


class _CfgNode:
    """Stands for the yacs node in the authors' full training files; nothing reads it."""

    def __new__(cls) -> OrderedDict:
        # PyTorch fills no other kind of dictionary when it reads weights only.
        return OrderedDict()


_CfgNode.__module__, _CfgNode.__name__, _CfgNode.__qualname__ = 'yacs.config', 'CfgNode', 'CfgNode'
