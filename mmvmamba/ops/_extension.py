"""Loads the native extension and says why it did not load."""

from __future__ import annotations

import functools
import importlib.util
import logging
import warnings
from pathlib import Path

import torch

logger = logging.getLogger('mmvmamba')

_PACKAGE = Path(__file__).resolve().parent.parent


class ExtensionUnavailableWarning(UserWarning):
    """The native kernels cannot be used and a slower PyTorch form runs in their place."""


def _build_error() -> str | None:
    """The reason that setup.py recorded when it could not build the extension."""
    if importlib.util.find_spec('mmvmamba._build_info') is None:
        return None
    from mmvmamba import _build_info

    return getattr(_build_info, 'BUILD_INFO', {}).get('error')


def _load() -> str | None:
    libraries = sorted(p for p in _PACKAGE.glob('_C*') if p.suffix in ('.so', '.pyd', '.dll'))
    if not libraries:
        reason = _build_error()
        return f'it was not built ({reason})' if reason else 'it was not built'
    try:
        torch.ops.load_library(str(libraries[0]))
    except OSError as error:
        return f'{libraries[0].name} did not load with torch {torch.__version__}: {error}'
    return None


def _find_kernels() -> frozenset[tuple[str, str]]:
    return frozenset(
        (op, device)
        for op in ('ss2d_scan', 'selective_scan')
        for device, key in (('cpu', 'CPU'), ('cuda', 'CUDA'))
        if torch._C._dispatch_has_kernel_for_dispatch_key(f'mmvmamba::{op}', key)
    )


# Found once, at import: torch.compile can trace a look-up, but not the loading of a library.
_REASON = _load()
_KERNELS = _find_kernels() if _REASON is None else frozenset()


def load_extension() -> str | None:
    """Whether ``mmvmamba/_C*.so`` was loaded, at import.

    Returns:
        None when the extension is loaded, else the reason why it is not, as a sentence.
    """
    return _REASON


def has_kernel(op: str, device_type: str) -> bool:
    """Whether the loaded extension holds a kernel of ``mmvmamba::op`` for a device type."""
    return (op, device_type) in _KERNELS


@functools.cache
def warn_no_kernel(device_type: str, reason: str) -> None:
    """Warns, once for each device type and reason, that the slow PyTorch form runs."""
    advice = (
        ''
        if load_extension() is None
        else ('; `pip install --no-build-isolation .` builds the kernels')
    )
    warnings.warn(
        f'mmvmamba: no native kernel for {device_type}: {reason}. A much slower PyTorch form '
        f'runs in its place{advice}.',
        ExtensionUnavailableWarning,
        stacklevel=4,
    )
