"""Loads the native extension and says why it did not load."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import re
import warnings
from pathlib import Path

import torch

_PACKAGE = Path(__file__).resolve().parent.parent
#: The name under which setup.py files what it builds for this torch.
_TAG = re.sub(r'\W', '_', torch.__version__)


class ExtensionUnavailableWarning(UserWarning):
    """The native kernels cannot be used and a slower PyTorch form runs in their place."""


def build_info() -> dict:
    """What setup.py recorded, if it did: ``torch``, ``cuda``, ``arch_list``, ``error``."""
    for name in (f'mmvmamba._build_info_{_TAG}', 'mmvmamba._build_info'):
        if importlib.util.find_spec(name) is not None:
            return getattr(importlib.import_module(name), 'BUILD_INFO', {})
    return {}


def _load() -> str | None:
    # A source tree may hold the builds of several environments, each for its own torch.
    libraries = [p for p in _PACKAGE.glob('_C_*') if p.suffix in ('.so', '.pyd', '.dll')]
    library = next((p for p in libraries if p.stem == f'_C_{_TAG}'), None)
    if library is None:
        reason = build_info().get('error')
        if reason is None and libraries:
            names = ', '.join(sorted(p.name for p in libraries))
            reason = f'not for torch {torch.__version__}, there is {names}'
        return f'it was not built ({reason})' if reason else 'it was not built'
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        return f'{library.name} did not load with torch {torch.__version__}: {error}'
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
    """Whether ``mmvmamba/_C_<torch>.so`` was loaded, at import.

    Returns:
        None when the extension is loaded, else the reason why it is not, as a sentence.
    """
    return _REASON


def has_kernel(op: str, device_type: str) -> bool:
    """Whether the loaded extension holds a kernel of ``mmvmamba::op`` for a device type."""
    return (op, device_type) in _KERNELS


def runs_on(capability: tuple[int, int], arch_list: list[str]) -> bool:
    """Whether a build for ``arch_list`` has code for a GPU.

    Args:
        capability (tuple[int, int]): The GPU's compute capability.
        arch_list (list[str]): As in TORCH_CUDA_ARCH_LIST: machine code for 8.6 runs on 8.6 and
            later of the same major version, '9.0+PTX' on all from 9.0 on. An empty list is of an
            unknown build and counts as one that does.
    """
    for arch in arch_list:
        match = re.fullmatch(r'(\d+)\.(\d+)[af]?(\+PTX)?', arch)
        if match is None:  # a name such as Hopper: not compared
            return True
        built = int(match[1]), int(match[2])
        if built <= capability and (match[3] or built[0] == capability[0]):
            return True
    return not arch_list


@functools.cache
def missing_architecture(index: int | None) -> str | None:
    """Why the CUDA kernels do not run on a GPU, as a sentence, or None where they do."""
    arch_list = build_info().get('arch_list', [])
    capability = torch.cuda.get_device_capability(index)
    if torch.version.hip is not None or runs_on(capability, arch_list):
        return None
    arch = f'{capability[0]}.{capability[1]}'
    return (
        f'the kernels were built for the architectures {", ".join(arch_list)}, this GPU has '
        f'{arch}: build them with TORCH_CUDA_ARCH_LIST="{arch}"'
    )


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
