"""Argument checks that the backbones share."""

from collections.abc import Mapping
from os import PathLike
from typing import Any

from mmvmamba.checkpoint.redaction import redacted
from mmvmamba.nn.settings import check_choice


def check_init_cfg(init_cfg: Any) -> None:
    """Check that an ``init_cfg`` is one or several dicts with a type, and names its checkpoint."""
    for cfg in init_cfg if isinstance(init_cfg, list | tuple) else [init_cfg or {}]:
        if not isinstance(cfg, Mapping):
            got = redacted(repr(init_cfg))
            raise TypeError(f'init_cfg must be a dict or a list of dicts, but got {got}')
        got = redacted(str(cfg))
        if cfg and not cfg.get('type'):
            raise ValueError(f"init_cfg must have a type, e.g. 'Pretrained', but got {got}")
        is_path = isinstance(cfg.get('checkpoint'), str | PathLike)
        if cfg.get('type') == 'Pretrained' and not is_path:
            raise TypeError(f'checkpoint in init_cfg must be a path or a URL, but got {got}')


def resolve_settings(
    arch: str | Mapping[str, Any], archs: Mapping[str, Mapping[str, Any]], **defaults: Any
) -> dict[str, Any]:
    """Return the settings of an architecture, given by its name in ``archs`` or as a dict."""
    if isinstance(arch, str):
        check_choice('arch', arch, archs)
        arch = archs[arch]
    if not isinstance(arch, Mapping):
        raise TypeError(f'arch must be a str or a dict, but got {type(arch).__name__}')
    settings = {**defaults, **arch}
    names = [*next(iter(archs.values())), *defaults]
    if settings.keys() != set(names):
        raise ValueError(f'arch must be a dict with {names}, but got {dict(arch)}')
    return settings
