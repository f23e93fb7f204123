"""The scans in Triton, which need neither nvcc nor a build: availability and launch.

The kernels, and with them triton, are imported at the first launch.
"""

import functools
import importlib
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

#: The triton of torch 2.10.
MIN_VERSION = (3, 6)
#: The oldest NVIDIA GPUs with matrix products of bfloat16.
MIN_CAPABILITY = (8, 0)


@functools.cache
def package_error() -> str | None:
    """Return the reason why the triton package cannot be used, or None if it can."""
    try:
        version = importlib.import_module('triton').__version__
    except Exception as error:  # a broken installation may raise anything
        return f'triton cannot be imported: {error}'
    if tuple(map(int, version.split('.')[:2])) >= MIN_VERSION:
        return None
    return f'triton {version} is installed, but {".".join(map(str, MIN_VERSION))} is required'


@functools.cache
def _gpu_error(index: int | None) -> str | None:
    if not torch.cuda.is_available():
        return 'there is no GPU'
    capability = torch.cuda.get_device_capability(index)
    if torch.version.hip is None and capability < MIN_CAPABILITY:
        needed, found = ('.'.join(map(str, numbers)) for numbers in (MIN_CAPABILITY, capability))
        return f'a compute capability of {needed} is required, but this GPU has {found}'
    # Before triton 3.8, and on AMD, this builds a launcher with gcc or clang, unless it is cached.
    try:
        importlib.import_module('triton.runtime').driver.active.get_current_target()
    except Exception as error:  # what fails depends on the version
        return f"triton's driver does not load: {error}"
    return None


def interprets() -> bool:
    """Return True if Triton's interpreter runs the kernels on CPU tensors, for tests."""
    return os.environ.get('TRITON_INTERPRET', '').lower() in ('1', 'true', 'on', 'yes', 'y')


def triton_error(device: torch.device) -> str | None:
    """Return the reason why the kernels cannot run on a device, or None if they can."""
    if device.type == 'cuda':
        return package_error() or _gpu_error(device.index)
    if device.type == 'cpu' and interprets():
        return package_error()
    return 'a GPU is required'


def run(function: str, fake: Callable[..., Any], *args: Any) -> Any:
    """Call a function of ``mmvmamba.ops.triton.launch`` on the device of its first argument.

    ``fake`` returns empty results of the right shapes: without an element there is no launch.
    """
    first: Tensor = args[0]
    if first.numel() == 0:
        return tree_map(torch.zero_, fake(*args))
    launch = importlib.import_module(f'{__name__}.launch')
    with torch.cuda.device_of(first):
        return getattr(launch, function)(*args)
