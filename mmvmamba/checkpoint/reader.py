"""Reads checkpoint files without running code that they may hold. Needs torch alone."""

from __future__ import annotations

import argparse
import codecs
import os
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any

import torch
from torch import Tensor

_DTYPES = ('float16', 'float32', 'float64', 'int32', 'int64', 'uint8', 'uint32', 'bool')


class _Dictionary:
    """Stands for a class that need not be installed; nothing reads what is in it."""

    def __new__(cls, *items: Mapping) -> OrderedDict:
        # PyTorch fills no other kind of dictionary when it reads weights only.
        return OrderedDict(*items)


def _stand_in(module: str, name: str) -> type:
    return type(name, (_Dictionary,), {'__module__': module, '__qualname__': name})


#: The yacs node in the authors' full training files.
CFG_NODE = _stand_in('yacs.config', 'CfgNode')
#: The losses that MMEngine's runner saves.
_HISTORY = _stand_in('mmengine.logging.history_buffer', 'HistoryBuffer')
#: A dictionary of a config within a data set's meta information.
_CONFIG = _stand_in('mmengine.config.config', 'ConfigDict')


def read_local_checkpoint(
    filename: str | os.PathLike,
    map_location: Any = 'cpu',
    history: type = _HISTORY,
    config: type = _CONFIG,
) -> Any:
    """Reads a checkpoint file of the authors, of MMEngine or of timm's train script.

    Only tensors, numbers, containers and what MMEngine's runner saves are built; classes that
    :func:`torch.serialization.add_safe_globals` knows are allowed too.

    Args:
        filename (str | PathLike): A path.
        map_location (Any): As in :func:`torch.load`. Defaults to 'cpu'.
        history (type): MMEngine's HistoryBuffer, for who needs what is in it. Defaults to a
            dictionary in its place.
        config (type): MMEngine's ConfigDict, likewise.

    Raises:
        FileNotFoundError: If there is no such file.
        TypeError: If ``filename`` is no path.
        ValueError: If it is truncated, no checkpoint or needs another class.
    """
    filename = as_text(filename)
    path = os.path.expanduser(filename)
    if not os.path.isfile(path):
        raise FileNotFoundError(f'checkpoint {filename!r} does not exist')
    return read_stream(path, filename, map_location, history, config)


def as_text(filename: Any) -> str:
    """A path or an address as text.

    Raises:
        TypeError: If it is neither.
    """
    if not isinstance(filename, str | os.PathLike):
        raise TypeError(f'checkpoint must be a path or a URL, but got {filename!r}')
    return os.fsdecode(filename)


def read_stream(
    file: str | IO[bytes], filename: str, map_location: Any, history: type, config: type
) -> Any:
    """Reads a path or what was fetched; ``filename`` is for the messages."""
    try:
        with _safe_globals(history, config):
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


def _first_line(error: BaseException) -> str:
    text = (str(error).strip().splitlines() or [''])[0].split('. ')[0]
    return f'{type(error).__name__}: {text}' if text else type(error).__name__


@contextmanager
def _safe_globals(history: type, config: type) -> Iterator[None]:
    """Allows what training runs save; torch 2.4 has no such context manager."""
    before = list(torch.serialization.get_safe_globals())  # torch 2.4 returns the list it adds to
    torch.serialization.add_safe_globals(
        [argparse.Namespace, CFG_NODE, history, config, *_numpy_globals(), _getter(history)]
    )
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def _numpy_globals() -> list[Callable]:
    try:
        import numpy as np
    except ImportError:
        return []  # a file with arrays is refused, one with tensors is read
    dtypes = [type(np.dtype(name)) for name in _DTYPES]
    reconstruct = np.ndarray(0).__reduce__()[0]
    scalar = np.float64(0).__reduce__()[0]
    aliases = [
        _named(function, f'numpy.{core}.multiarray.{name}')
        for core in ('core', '_core')  # numpy 1 and 2
        for function, name in ((reconstruct, '_reconstruct'), (scalar, 'scalar'))
    ]
    # A pickle writes the bytes of a scalar as text; PyTorch knows it from 2.5 on.
    return [np.ndarray, np.dtype, codecs.encode, *dtypes, *aliases]


def _getter(history: type) -> Callable:
    """The only attributes that MMEngine's checkpoints look up: those of its HistoryBuffer."""

    def history_method(owner: Any, name: str) -> Any:
        if owner is not history or name.startswith('_'):
            raise pickle.UnpicklingError(f'GLOBAL {getattr(owner, "__name__", owner)}.{name}')
        return getattr(owner, name, None)

    return _named(history_method, 'builtins.getattr')


def _named(function: Callable, path: str) -> Callable:
    """A function that a pickle finds under another name."""

    def call(*args: Any) -> Any:
        return function(*args)

    call.__module__, _, call.__name__ = path.rpartition('.')
    call.__qualname__ = call.__name__
    return call
