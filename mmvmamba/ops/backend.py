"""Checks of the arguments of the ops, and the choice of a backend."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .extension import architecture_error, extension_error, has_kernel, warn_no_kernel

BACKENDS = ('auto', 'native', 'reference')

FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
#: Dtypes that the native kernels of a device read and write.
NATIVE_DTYPES = {
    'cpu': (torch.float32, torch.bfloat16, torch.float64),
    'cuda': FLOAT_DTYPES,
}
#: The limit of mamba_ssm's kernels.
MAX_STATE = 256


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of states and sums: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Keep matrix products in the dtype of their operands."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def check_tensor(
    name: str,
    value: object,
    shape: tuple[int | str, ...],
    device: torch.device | None = None,
) -> None:
    """Check that an argument is a dense floating-point tensor of a shape, on a device.

    ``shape`` has a number for each fixed size and a letter for each free one.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f'{name} must be a torch.Tensor, but got {type(value).__name__}')
    if value.dtype not in FLOAT_DTYPES:
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
    # A trace of torch.jit would record these comparisons. The kernels check the sizes again.
    if not torch.jit.is_tracing():
        for size, want in zip(value.shape, shape, strict=True):
            if not isinstance(want, str) and size != want:
                raise ValueError(
                    f'{name} must have shape {_shape_text(shape)}, but got shape '
                    f'{tuple(value.shape)}'
                )
    if device is not None and value.device != device:
        raise ValueError(f'{name} must be on {device} like the input, but is on {value.device}')


def _shape_text(shape: tuple[int | str, ...]) -> str:
    return '(' + ', '.join(str(size) for size in shape) + (',)' if len(shape) == 1 else ')')


def check_state_size(d_state: int) -> None:
    """Check that every backend computes this number of states."""
    if not 1 <= d_state <= MAX_STATE:
        raise ValueError(
            f'A must have 1 to {MAX_STATE} states in its last dimension, but got {d_state}'
        )


def differentiates_functionally() -> bool:
    """Return True under forward-mode differentiation, or torch.func's grad, vjp or jvp.

    Gradients registered with torch.library support neither: forward mode would get zeros.
    """
    if torch.compiler.is_compiling():
        return False
    if forward_ad._current_level >= 0:
        return True
    transforms = torch._C._functorch.TransformType
    stack = torch._C._functorch.get_interpreter_stack() or []
    return any(level.key() in (transforms.Grad, transforms.Jvp) for level in stack)


def needs_states(inputs: Iterable[Tensor | None]) -> bool:
    """Return True if a backward may follow, for which the forward saves its states.

    A trace of torch.jit never saves them, so that it is the same with and without gradients. Its
    backward computes them again.
    """
    if torch.jit.is_tracing() or not torch.is_grad_enabled():
        return False
    return any(value is not None and value.requires_grad for value in inputs)


def choose_backend(op: str, backend: str, value: Tensor) -> str:
    """Choose between the native kernel and the PyTorch forms for an input.

    Returns:
        str: 'native', 'reference' or, if 'auto' finds no kernel, 'chunked', the faster PyTorch
        form.

    Raises:
        ValueError: If ``backend`` is unknown.
        RuntimeError: If ``backend='native'`` and no kernel can run, with the reason.
    """
    if backend not in BACKENDS:
        raise ValueError(f'backend must be one of {BACKENDS}, but got {backend!r}')
    if backend == 'reference':
        return 'reference'
    device = value.device.type
    # Neither the meta device nor an export to ONNX, which translates the op, computes anything.
    symbolic = device == 'meta' or torch.onnx.is_in_onnx_export()
    if symbolic and extension_error() is None:
        return 'native'
    if device == 'meta' and backend == 'auto':
        return 'chunked'
    if not has_kernel(op, device):
        reason = extension_error(device) or f'the library for {device} lacks {op}'
    elif differentiates_functionally():
        reason = 'the kernels have no rule for torch.func.grad, vjp, jvp and forward-mode gradients'
    elif (
        device == 'cuda'
        and not torch.compiler.is_compiling()
        and (missing := architecture_error(value.device.index))
    ):
        reason = missing
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
