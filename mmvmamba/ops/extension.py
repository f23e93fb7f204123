"""The native extension: loading it, why it did not load, and registration of ops."""

import functools
import importlib
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_PACKAGE = Path(__file__).resolve().parent.parent


class ExtensionUnavailableWarning(UserWarning):
    """Warning that a slower PyTorch implementation replaces kernels that cannot run."""


def build_info() -> dict[str, Any]:
    """Return the record of the build, or {} if there is none.

    Keys are torch, cuda, arch_list, sources (a hash), error and cuda_error.
    """
    # An editable installation's finder would find its record for any other copy of the package.
    if PathFinder.find_spec('mmvmamba._build_info', [str(_PACKAGE)]) is None:
        return {}
    return getattr(importlib.import_module('mmvmamba._build_info'), 'BUILD_INFO', {})


def library_path(name: str) -> Path | None:
    """Return the file of a library of the package, or None if it was not built."""
    return next((p for p in _PACKAGE.glob(f'{name}.*') if p.suffix in ('.so', '.pyd')), None)


def _load(name: str, why_not_built: str | None) -> str | None:
    """Load a library of the package; return None, or the reason why it did not load."""
    library = library_path(name)
    if library is None:
        return f'it was not built ({why_not_built})' if why_not_built else 'it was not built'
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        # torch's own message has only the path; the loader's says what is missing.
        reason = error.__cause__ or error
        return f'{library.name} did not load with torch {torch.__version__}: {reason}'
    return None


def _load_cuda() -> str | None:
    found = torch.version.cuda or torch.version.hip
    if found is None:
        return f'torch {torch.__version__} is built without CUDA'
    info = build_info()
    built = info.get('cuda')
    # CUDA is compatible within a major version. With another one the library loads where that
    # CUDA is on the system, but it needs another driver than torch.
    if built is not None and built.split('.')[0] != found.split('.')[0]:
        return f'it was built for CUDA {built}, but torch {torch.__version__} is for CUDA {found}'
    return _load('_C_cuda', info.get('cuda_error') or 'CUDA was not found during the build')


def _find_kernels() -> frozenset[tuple[str, str]]:
    return frozenset(
        (op, device)
        for op in ('ss2d_scan', 'selective_scan')
        for device, key in (('cpu', 'CPU'), ('cuda', 'CUDA'))
        if torch._C._dispatch_has_kernel_for_dispatch_key(f'mmvmamba::{op}', key)
    )


# Done once, at import: torch.compile can trace a look-up, but not the loading of a library.
_ERROR = _load('_C', build_info().get('error'))
_CUDA_ERROR = _load_cuda() if _ERROR is None else None
_KERNELS = _find_kernels() if _ERROR is None else frozenset()


def extension_error(device_type: str = 'cpu') -> str | None:
    """Return the reason why a device has no kernels, or None if its library loaded at import.

    The CPU's library also defines the ops.
    """
    if _ERROR is not None or device_type == 'cpu':
        return _ERROR
    return _CUDA_ERROR if device_type == 'cuda' else f'there are no kernels for {device_type}'


def has_kernel(op: str, device_type: str) -> bool:
    """Return True if the loaded extension has a kernel of ``mmvmamba::op`` for a device type."""
    return (op, device_type) in _KERNELS


def runs_on(capability: tuple[int, int], arch_list: list[str]) -> bool:
    """Return True if a build for ``arch_list`` has code for a GPU of this compute capability.

    The list has the format of TORCH_CUDA_ARCH_LIST: code for 8.6 runs on 8.6 and later of the same
    major version, '9.0a' only on 9.0, '9.0+PTX' on 9.0 and everything later. An empty list means
    an unknown build, which is assumed to have code.
    """
    for arch in arch_list:
        match = re.fullmatch(r'(\d+)\.(\d+)([af]?)(\+PTX)?', arch)
        if match is None:  # a name such as Hopper: not compared
            return True
        built = int(match[1]), int(match[2])
        same_major = built[0] == capability[0] and match[3] != 'a'
        if built == capability or (built < capability and (match[4] or same_major)):
            return True
    return not arch_list


@functools.cache
def architecture_error(index: int | None) -> str | None:
    """Return the reason why the CUDA kernels do not run on a GPU, or None if they do."""
    if not torch.cuda.is_available():
        return 'there is no GPU'
    arch_list = build_info().get('arch_list', [])
    capability = torch.cuda.get_device_capability(index)
    if torch.version.hip is not None or runs_on(capability, arch_list):
        return None
    arch = f'{capability[0]}.{capability[1]}'
    return (
        f'the kernels were built for the architectures {", ".join(arch_list)}, but this GPU has '
        f'{arch}; build them with TORCH_CUDA_ARCH_LIST="{arch}"'
    )


@functools.cache
def warn_no_kernel(device_type: str, reasons: tuple[tuple[str, str], ...]) -> None:
    """Warn once that the slow PyTorch implementation runs, and why each backend cannot run."""
    text = '; '.join(f'no {name} kernel for {device_type}: {reason}' for name, reason in reasons)
    warnings.warn(
        f'mmvmamba: {text}. Falling back to a much slower PyTorch implementation.',
        ExtensionUnavailableWarning,
        stacklevel=4,
    )


# ---- registration of the ops: each at the end of its own file ----

#: The ops that are defined in Python. In a variable, as an op disappears with its library.
LIBRARY = torch.library.Library('mmvmamba', 'FRAGMENT')

#: Positions between two saved states by the device: as ``kChunk`` in ``csrc/scan_common.h``, and
#: ``kTilePositions`` in ``csrc/cuda/scan_args.h``.
CHUNK = {'cpu': 64, 'cuda': 32}


def num_chunks(length: int, device: torch.device) -> int:
    """Return the number of states that the forward pass saves for a sequence."""
    chunk = CHUNK.get(device.type, CHUNK['cpu'])
    return (length + chunk - 1) // chunk


def register_op(
    name: str,
    fake: Callable[..., Any],
    backward: Callable[..., Any] | None = None,
    setup_context: Callable[..., None] | None = None,
    schema: str | None = None,
    kernel: Callable[..., Any] | None = None,
    dispatch_keys: Sequence[str] = ('CPU', 'CUDA'),
    tags: Sequence[torch.Tag] = (),
) -> None:
    """Register shapes and gradient of ``mmvmamba::name``.

    An op without ``backward`` is itself a backward; its gradient raises RuntimeError. The schema
    of a native op is in ``csrc/``; with a ``schema`` and a ``kernel`` the op is defined here.
    """

    def no_second_derivative(ctx: Any, *grads: Tensor) -> None:
        raise RuntimeError(
            f'mmvmamba: {name} does not support second derivatives; use backend="reference" for '
            'double backward'
        )

    if schema is not None and kernel is not None:
        LIBRARY.define(name + schema, tags=tuple(tags))
        for key in dispatch_keys:
            LIBRARY.impl(name, kernel, key)
    op = f'mmvmamba::{name}'
    torch.library.register_fake(op, fake)
    torch.library.register_autograd(
        op, backward or no_second_derivative, setup_context=setup_context
    )


def input_gradients(ctx: Any, grads: Iterable[Tensor | None] = ()) -> tuple[Tensor | None, ...]:
    """Return the gradients of an op's first arguments, and None for the arguments after them."""
    grads = tuple(grads)
    return grads + (None,) * (len(ctx.needs_input_grad) - len(grads))
