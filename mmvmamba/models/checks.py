"""Argument checks that the backbones share."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any

from torch import Tensor

from mmvmamba.nn.layers import check_choice


def check_init_cfg(init_cfg: Any) -> None:
    """Check that each ``init_cfg`` is a dict with a type, and that 'Pretrained' names a file.

    Raises:
        TypeError: If it is not a dict or a list of dict, or a checkpoint is not a path or URL.
        ValueError: If a type or a checkpoint is missing.
    """
    if not init_cfg:
        return
    for cfg in init_cfg if isinstance(init_cfg, list | tuple) else [init_cfg]:
        if not isinstance(cfg, Mapping):
            raise TypeError(f'init_cfg must be a dict or a list of dict, but got {init_cfg!r}')
        if not cfg.get('type'):
            raise ValueError(f"init_cfg must have a type, e.g. 'Pretrained', but got {cfg}")
        if cfg['type'] != 'Pretrained':
            continue
        if 'checkpoint' not in cfg:
            raise ValueError(f'init_cfg must name a checkpoint, but got {cfg}')
        if not isinstance(cfg['checkpoint'], str | PathLike):
            raise TypeError(f'checkpoint in init_cfg must be a path or a URL, but got {cfg}')
        if not isinstance(cfg.get('prefix'), str | None):
            raise TypeError(f'prefix in init_cfg must be a str, but got {cfg}')


def resolve_settings(
    arch: str | Mapping[str, Any],
    archs: Mapping[str, Mapping[str, Any]],
    optional: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the settings of a named architecture, or a dict with the same keys.

    Args:
        arch (str | dict): A key of ``archs``, or settings.
        archs (dict[str, dict]): The settings of each name.
        optional (dict, optional): Other settings and their defaults. Defaults to None.

    Raises:
        TypeError: If ``arch`` is another type.
        ValueError: If the name is unknown, or a setting is unknown or missing.
    """
    if isinstance(arch, str):
        check_choice('arch', arch, archs)
        arch = archs[arch]
    if not isinstance(arch, Mapping):
        raise TypeError(f'arch must be a str or a dict, but got {type(arch).__name__}')
    optional = optional or {}
    required = next(iter(archs.values())).keys()
    if not required <= arch.keys() <= required | optional.keys():
        extra = f' and perhaps {list(optional)}' if optional else ''
        raise ValueError(f'arch must be a dict with {list(required)}{extra}, but got {dict(arch)}')
    return {**optional, **arch}


def check_images(x: Tensor, in_channels: int, min_side: int) -> None:
    """Check that ``x`` is a batch of images (N, in_channels, H, W) of at least ``min_side``.

    Raises:
        ValueError: If the shape is another one.
    """
    if x.dim() != 4 or x.shape[1] != in_channels or min(x.shape[2:]) < min_side:
        raise ValueError(
            f'the images must have shape (N, {in_channels}, H, W) with sides of at least '
            f'{min_side} pixels, but got {tuple(x.shape)}'
        )
