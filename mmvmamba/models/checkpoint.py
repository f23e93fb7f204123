"""Loads a released file into a backbone and says what the load did."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from mmengine.logging import MMLogger
from mmengine.runner.checkpoint import CheckpointLoader
from torch import Tensor, nn

from mmvmamba.nn import convert_state_dict
from mmvmamba.nn.checkpoint import resize_pos_embed

#: What a classification file lacks in a backbone, and the other way round.
_EXPECTED_MISSING = re.compile(r'outnorm\d+\.')
_EXPECTED_UNEXPECTED = re.compile(r'classifier\.')


def read_state_dict(filename: str) -> dict[str, Tensor]:
    """Reads a file or URL and unwraps ``model`` or ``state_dict``.

    Args:
        filename (str): A path, URL or any address that MMEngine's CheckpointLoader takes.

    Returns:
        dict[str, Tensor]: The tensors by the names that the file gives them.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is truncated or holds no checkpoint.
    """
    try:
        content = CheckpointLoader.load_checkpoint(filename, map_location='cpu', logger='current')
    except FileNotFoundError as error:
        raise FileNotFoundError(f'checkpoint {filename!r} does not exist') from error
    except (EOFError, RuntimeError, KeyError, UnicodeDecodeError, ValueError) as error:
        raise ValueError(
            f'checkpoint {filename!r} cannot be read; it is truncated or no checkpoint: {error}'
        ) from error
    except Exception as error:
        # torch raises pickle.UnpicklingError, zipfile errors and more for a file of another kind.
        raise ValueError(
            f'checkpoint {filename!r} cannot be read ({type(error).__name__}): {error}'
        ) from error
    for key in ('state_dict', 'model'):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        raise ValueError(f'checkpoint {filename!r} holds a {type(content).__name__}, no state dict')
    tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f'checkpoint {filename!r} holds no tensors')
    return tensors


def load_pretrained(model: nn.Module, filename: str, prefix: str | None = None) -> None:
    """Loads a file into a backbone; anything but a whole fit is an error.

    Args:
        model (nn.Module): A :class:`mmvmamba.nn.VMambaNet`.
        filename (str): What :func:`read_state_dict` takes.
        prefix (str, optional): The part of a larger model that is taken, e.g. 'backbone'.
            Defaults to None, the whole or what stands behind 'backbone.'.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be read, nothing or not all of the model is in it, or a
            shape differs.
    """
    tensors = read_state_dict(filename)
    if prefix is not None:
        start = prefix.rstrip('.') + '.'
        tensors = {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
        if not tensors:
            raise ValueError(f'checkpoint {filename!r} holds nothing with the prefix {prefix!r}')
    tensors = convert_state_dict(tensors)
    own = model.state_dict()
    if 'pos_embed' in tensors and 'pos_embed' in own:
        tensors['pos_embed'] = resize_pos_embed(tensors['pos_embed'], own['pos_embed'].shape[2:])
    missing = [k for k in own if k not in tensors and not _EXPECTED_MISSING.match(k)]
    unexpected = [k for k in tensors if k not in own and not _EXPECTED_UNEXPECTED.match(k)]
    differing = [
        f'{k} {tuple(tensors[k].shape)} instead of {tuple(own[k].shape)}'
        for k in own
        if k in tensors and tensors[k].shape != own[k].shape
    ]
    loaded = [k for k in own if k in tensors]
    if not loaded or missing or differing:
        raise ValueError(
            f'checkpoint {filename!r} does not fit {type(model).__name__}: {len(loaded)} of '
            f'{len(own)} tensors found; missing {_listing(missing)}; of another shape '
            f'{_listing(differing)}; unexpected {_listing(unexpected)}'
        )
    with torch.no_grad():
        for key in loaded:
            own[key].copy_(tensors[key])
    MMLogger.get_current_instance().info(
        f'loaded {len(loaded)} of {len(own)} tensors from {filename}; missing '
        f'{_listing([k for k in own if k not in tensors])}; unexpected '
        f'{_listing([k for k in tensors if k not in own])}'
    )


def _listing(keys: list[str], limit: int = 12) -> str:
    if not keys:
        return 'none'
    more = f' and {len(keys) - limit} more' if len(keys) > limit else ''
    return ', '.join(keys[:limit]) + more
