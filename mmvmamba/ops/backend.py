"""Checks of the ops' arguments and the choice of a backend, in one place."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .extension import has_kernel, load_extension, missing_architecture, warn_no_kernel

Backend = Literal['auto', 'native', 'reference']
BACKENDS = ('auto', 'native', 'reference')

#: The dtypes that the native kernels of a device read and write.
NATIVE_DTYPES = {
    'cpu': (torch.float32, torch.bfloat16, torch.float64),
    'cuda': (torch.float32, torch.float16, torch.bfloat16, torch.float64),
}
MAX_STATE = 256


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of states and sums: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def without_autocast(device: torch.device) -> AbstractContextManager:
    """Keeps matrix products in their operands' dtype."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def check_tensor(
    name: str,
    value: object,
    shape: tuple[int | str | None, ...],
    device: torch.device | None = None,
) -> None:
    """Checks that an argument is a tensor of a dtype of the scans, of a shape, on a device.

    Args:
        name (str): The argument's name, for the message.
        value (object): What the user gave.
        shape (tuple): A number for a size that is fixed, a letter for one that is free.
        device (torch.device, optional): Where the tensor must be. Defaults to None, anywhere.

    Raises:
        TypeError: If ``value`` is no tensor, not dense, or of another dtype than the four of the
            scans.
        ValueError: If shape or device differ.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f'{name} must be a torch.Tensor, but got {type(value).__name__}')
    if value.dtype not in NATIVE_DTYPES['cuda']:
        raise TypeError(
            f'{name} must be float32, float16, bfloat16 or float64, but got {value.dtype}'
        )
    if value.is_nested or value.layout != torch.strided:
        layout = 'torch.nested' if value.is_nested else value.layout
        raise TypeError(f'{name} must be a dense tensor (torch.strided), but is {layout}')
    if value.dim() != len(shape):
        raise ValueError(
            f'{name} must have {len(shape)} dimensions {_shape_text(shape)}, but got shape '
            f'{tuple(value.shape)}'
        )
    # A trace of torch.jit would record these comparisons; the kernels check the sizes again.
    if not torch.jit.is_tracing():
        for size, want in zip(value.shape, shape, strict=True):
            if not (want is None or isinstance(want, str)) and size != want:
                raise ValueError(
                    f'{name} must have shape {_shape_text(shape)}, but got shape '
                    f'{tuple(value.shape)}'
                )
    if device is not None and value.device != device:
        raise ValueError(f'{name} must be on {device} as the input is, but is on {value.device}')


def _shape_text(shape: tuple[int | str | None, ...]) -> str:
    return '(' + ', '.join(str(size) for size in shape) + (',)' if len(shape) == 1 else ')')


def check_state_size(d_state: int) -> None:
    """Checks that the number of states is one that every backend computes."""
    if not 1 <= d_state <= MAX_STATE:
        raise ValueError(
            f'A must have 1 to {MAX_STATE} states in its last dimension, got {d_state}'
        )


def differentiates_functionally() -> bool:
    """Whether forward-mode differentiation or torch.func's grad, vjp or jvp is at work.

    The gradients that torch.library registers know neither: forward mode would get zeros.
    """
    if torch.compiler.is_compiling():
        return False
    if forward_ad._current_level >= 0:
        return True
    transforms = torch._C._functorch.TransformType
    stack = torch._C._functorch.get_interpreter_stack() or []
    return any(level.key() in (transforms.Grad, transforms.Jvp) for level in stack)


def needs_states(inputs: Iterable[Tensor | None]) -> bool:
    """Whether a backward may follow, for which the forward should save its states.

    A trace of torch.jit never saves them, so that it is the same with and without gradients; a
    backward of it computes them again.
    """
    if torch.jit.is_tracing() or not torch.is_grad_enabled():
        return False
    return any(value is not None and value.requires_grad for value in inputs)


def choose_backend(op: str, backend: str, value: Tensor) -> str:
    """Decides between the native kernel and the PyTorch form.

    Args:
        op (str): The op's name in ``torch.ops.mmvmamba``.
        backend (str): What the user asked for: 'auto', 'native' or 'reference'.
        value (Tensor): The input, whose device and dtype decide.

    Returns:
        str: 'native', 'reference' or, where 'auto' found no kernel, 'chunked': the PyTorch form
        that is meant to run, not to be read.

    Raises:
        ValueError: If ``backend`` is unknown.
        RuntimeError: If ``backend='native'`` and there is no kernel, with the reason.
    """
    if backend not in BACKENDS:
        raise ValueError(f'backend must be one of {BACKENDS}, but got {backend!r}')
    if backend == 'reference':
        return 'reference'
    device = value.device.type
    # Nothing is computed on the meta device and in an export to ONNX, which translates the op.
    symbolic = device == 'meta' or torch.onnx.is_in_onnx_export()
    if symbolic and load_extension() is None:
        return 'native'
    if device == 'meta' and backend == 'auto':
        return 'chunked'
    if not has_kernel(op, device):
        reason = load_extension() or f'the extension was built without {device} kernels'
    elif differentiates_functionally():
        reason = 'the kernels have no rule for torch.func.grad, vjp, jvp and forward-mode gradients'
    elif (
        device == 'cuda'
        and not torch.compiler.is_compiling()
        and missing_architecture(value.device.index)
    ):
        reason = missing_architecture(value.device.index)
    elif value.dtype not in NATIVE_DTYPES[device]:
        names = ', '.join(str(d).removeprefix('torch.') for d in NATIVE_DTYPES[device])
        reason = f'the {device} kernels take {names}, not {value.dtype}'
    else:
        return 'native'
    if backend == 'native':
        raise RuntimeError(f"backend='native' cannot run {op} on {device}: {reason}")
    if not torch.compiler.is_compiling():
        warn_no_kernel(device, reason)
    return 'chunked'


#: Positions between two saved states, as ``kChunk`` in ``csrc/scan_common.h``.
CHUNK = 64


def num_chunks(length: int) -> int:
    """Return the number of states that are saved for a sequence."""
    return (length + CHUNK - 1) // CHUNK


def no_double_backward(name: str):
    """Return a gradient that raises RuntimeError."""

    def backward(ctx, *grads):
        raise RuntimeError(
            f'mmvmamba: {name} has no second derivative; use backend="reference" for a double '
            'backward'
        )

    return backward


def register(name, fake, backward=None, setup=None) -> None:
    """Registers the shapes and the gradient of a native op.

    Without a gradient of its own, the op is a backward, which has no second derivative.
    """
    op = f'mmvmamba::{name}'
    torch.library.register_fake(op, fake)
    torch.library.register_autograd(op, backward or no_double_backward(name), setup_context=setup)
