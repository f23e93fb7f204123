"""Reading of checkpoint files that executes none of their content."""

import argparse
import os
import pickle
import re
import struct
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import IO, Any

import torch
from torch import Tensor
from torch.serialization import safe_globals

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


#: The yacs node in the authors' full training files, and the name by which a file asks for it. It
#: is read as a plain dictionary, so that yacs need not be installed.
YACS_NODE: tuple[Callable[..., Any], str] = (OrderedDict, 'yacs.config.CfgNode')


def read_local_checkpoint(
    file: str | os.PathLike[str] | IO[bytes],
    map_location: Any = 'cpu',
    *,
    name: str | None = None,
    history_buffer: type = OrderedDict,
    config_dict: type = OrderedDict,
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
        with safe_globals(_allowed(history_buffer, config_dict)):
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


def _allowed(history_buffer: type, config_dict: type) -> list[Any]:
    """Return what training runs save, as pairs of an object and the name that a file asks for."""
    pairs = {
        YACS_NODE,
        (argparse.Namespace, 'argparse.Namespace'),
        (config_dict, 'mmengine.config.config.ConfigDict'),
        (history_buffer, 'mmengine.logging.history_buffer.HistoryBuffer'),
        (_getattr_of(history_buffer), 'builtins.getattr'),
        *_numpy_pairs(),
    }
    # safe_globals forgets its pairs afterwards, those that were allowed before it too.
    return list(pairs.difference(torch.serialization.get_safe_globals()))


def _getattr_of(history_buffer: type) -> Callable[..., Any]:
    """Stand-in for getattr: MMEngine's checkpoints look up methods of its HistoryBuffer."""

    def method(owner: Any, name: str) -> Any:
        if owner is not history_buffer or name.startswith('_'):
            raise pickle.UnpicklingError(f'GLOBAL {getattr(owner, "__name__", owner)}.{name}')
        return getattr(owner, name, None)

    return method


def _numpy_pairs() -> list[tuple[Callable[..., Any], str]]:
    try:
        import numpy as np
    except ImportError:
        return []  # files with arrays are refused, files with tensors are read
    classes: list[type] = [np.ndarray, np.dtype, *(type(np.dtype(name)) for name in _DTYPES)]
    reconstruct: Any = np.ndarray(0).__reduce__()[0]
    scalar: Any = np.float64(0).__reduce__()[0]
    pairs = [
        (function, f'numpy.{core}.multiarray.{name}')
        for core in ('core', '_core')  # numpy 1 and 2
        for function, name in ((reconstruct, '_reconstruct'), (scalar, 'scalar'))
    ]
    return [*pairs, *((c, f'{c.__module__}.{c.__qualname__}') for c in classes)]
