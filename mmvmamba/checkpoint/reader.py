"""Reading of checkpoint files that executes none of their content."""

import argparse
import codecs
import os
import pickle
import re
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any

import torch
from torch import Tensor

_DTYPES = ('float16', 'float32', 'float64', 'int32', 'int64', 'uint8', 'uint32', 'bool')

#: Errors of torch.load for truncated and empty files, and for pickles of other things.
_READ_ERRORS = (
    pickle.UnpicklingError,
    struct.error,
    LookupError,
    EOFError,
    RuntimeError,
    ValueError,
    OSError,
)


def _stand_in(module: str, name: str) -> type:
    """Return a stand-in for a dictionary class that need not be installed."""

    def new(cls: type, *items: Any) -> Any:
        # With weights_only, torch.load does not fill subclasses of a dictionary.
        return OrderedDict(*items)

    return type(name, (), {'__new__': new, '__module__': module, '__qualname__': name})


#: The yacs node in the authors' full training files.
CfgNode = _stand_in('yacs.config', 'CfgNode')
#: The losses that MMEngine's runner saves.
_HistoryBuffer = _stand_in('mmengine.logging.history_buffer', 'HistoryBuffer')
#: A dictionary of a config within a data set's meta information.
_ConfigDict = _stand_in('mmengine.config.config', 'ConfigDict')


def read_local_checkpoint(
    file: str | os.PathLike[str] | IO[bytes],
    map_location: Any = 'cpu',
    *,
    name: str | None = None,
    history_buffer: type = _HistoryBuffer,
    config_dict: type = _ConfigDict,
) -> Any:
    """Read a checkpoint file of the authors, of MMEngine or of timm's train script.

    Only tensors, numbers, containers and what MMEngine's runner saves are built, and classes that
    :func:`torch.serialization.add_safe_globals` allows.

    Args:
        file (str | PathLike | IO): A path, or an open file.
        map_location (Any): As in :func:`torch.load`. Defaults to 'cpu'.
        name (str, optional): The name of an open file in messages. Defaults to None.
        history_buffer (type): MMEngine's HistoryBuffer, to read its content. Defaults to a
            dictionary in its place.
        config_dict (type): MMEngine's ConfigDict, likewise.

    Raises:
        FileNotFoundError: If the file does not exist.
        TypeError: If ``file`` is neither a path nor an open file.
        ValueError: If the file is truncated, is not a checkpoint or needs another class.
    """
    if hasattr(file, 'read'):
        name = name or str(getattr(file, 'name', 'the open file'))
    else:
        name = as_filename(file)
        file = os.path.expanduser(name)
        if not os.path.isfile(file):
            raise FileNotFoundError(f'checkpoint {name!r} does not exist or is not a file')
    try:
        with _safe_globals(history_buffer, config_dict):
            return torch.load(file, map_location=map_location, weights_only=True)
    except torch.cuda.OutOfMemoryError:
        raise
    except _READ_ERRORS as error:
        foreign = re.search(r'GLOBAL ([\w.]+)', str(error))
        if isinstance(error, pickle.UnpicklingError) and foreign is not None:
            raise ValueError(
                f'checkpoint {name!r} needs {foreign[1]}, which is not loaded from files. If you '
                'trust the file, allow the class with torch.serialization.add_safe_globals first'
            ) from error
        reason = f'{type(error).__name__}: {str(error).strip()}'.splitlines()[0].split('. ')[0]
        raise ValueError(
            f'checkpoint {name!r} cannot be read; it may be truncated or not a checkpoint: {reason}'
        ) from error


def as_filename(filename: Any) -> str:
    """Return a path or a URL as text."""
    if not isinstance(filename, str | os.PathLike):
        raise TypeError(f'checkpoint must be a path or a URL, but got {filename!r}')
    return os.fsdecode(filename)


def state_dict_of(content: Any, filename: str | None = None) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint: those of its ``state_dict`` or ``model``, or its own.

    Args:
        content (Any): The content of the file.
        filename (str, optional): The file in messages. Defaults to None.

    Raises:
        ValueError: If there are none.
    """
    checkpoint = 'the checkpoint' if filename is None else f'checkpoint {filename!r}'
    for key in ('state_dict', 'model'):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        kind = type(content).__name__
        raise ValueError(f'{checkpoint} must hold a state dict, but holds a {kind}')
    tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f'{checkpoint} holds no tensors')
    return tensors


@contextmanager
def _safe_globals(history_buffer: type, config_dict: type) -> Iterator[None]:
    """Allow what training runs save. torch 2.4 lacks ``torch.serialization.safe_globals``."""
    before = list(torch.serialization.get_safe_globals())  # torch 2.4 returns the list it adds to
    classes = [argparse.Namespace, CfgNode, history_buffer, config_dict]
    torch.serialization.add_safe_globals([*classes, _getattr_of(history_buffer), *_numpy_globals()])
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def _getattr_of(history_buffer: type) -> Callable[..., Any]:
    """Stand-in for getattr: MMEngine's checkpoints look up methods of its HistoryBuffer."""

    def method(owner: Any, name: str) -> Any:
        if owner is not history_buffer or name.startswith('_'):
            raise pickle.UnpicklingError(f'GLOBAL {getattr(owner, "__name__", owner)}.{name}')
        return getattr(owner, name, None)

    return _named(method, 'builtins.getattr')


def _numpy_globals() -> list[Any]:
    try:
        import numpy as np
    except ImportError:
        return []  # files with arrays are refused, files with tensors are read
    dtypes = [type(np.dtype(name)) for name in _DTYPES]
    reconstruct: Any = np.ndarray(0).__reduce__()[0]
    scalar: Any = np.float64(0).__reduce__()[0]
    aliases = [
        _named(function, f'numpy.{core}.multiarray.{name}')
        for core in ('core', '_core')  # numpy 1 and 2
        for function, name in ((reconstruct, '_reconstruct'), (scalar, 'scalar'))
    ]
    # A pickle writes the bytes of a scalar as text; PyTorch allows it from 2.5 on.
    return [np.ndarray, np.dtype, codecs.encode, *dtypes, *aliases]


def _named(function: Callable[..., Any], path: str) -> Callable[..., Any]:
    """Return a function that a pickle finds under another name."""

    def call(*args: Any) -> Any:
        return function(*args)

    call.__module__, _, call.__name__ = path.rpartition('.')
    call.__qualname__ = call.__name__
    return call
