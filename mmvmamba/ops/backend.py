"""Checks of the arguments of the ops, and the choice of a backend."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .extension import architecture_error, extension_error, has_kernel, warn_no_kernel
from .triton import triton_error

BACKENDS = ('auto', 'native', 'triton', 'reference')
#: The backends that 'auto' tries on a type of device, in this order.
AUTO_ORDER: dict[str, tuple[str, ...]] = {
    'cpu': ('native',),
    # Neither has run on a GPU, and Triton's compiler is proven. By instruction count, the CUDA
    # kernels are faster in training (docs/dev/triton-kernels.md). A measurement has to decide.
    'cuda': ('triton', 'native'),
    # Computes nothing. The native op comes first, because it also stands for a CPU.
    'meta': ('native', 'triton'),
}

FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
#: Dtypes that the native kernels of a device read and write.
NATIVE_DTYPES = {
    'cpu': (torch.float32, torch.bfloat16, torch.float64),
    'cuda': FLOAT_DTYPES,
}
TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
#: Triton's interpreter takes bfloat16 for integers.
INTERPRETED_DTYPES = (torch.float32, torch.float16)
#: The limit of mamba_ssm's kernels.
MAX_STATE = 256
#: The combination in Triton takes the direction of each walk from the bits of an integer.
MAX_TRITON_DIRECTIONS = 31


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of states and sums: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def autocast_enabled(device: str) -> bool:
    """Return True under autocast for a type of device."""
    # torch 2.10 cannot compile the first call, which is true for each device that it compiles for.
    available = torch.compiler.is_compiling() or torch.amp.is_autocast_available(device)
    return available and torch.is_autocast_enabled(device)


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Keep matrix products in the dtype of their operands."""
    if not autocast_enabled(device.type):
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


def check_dtype(name: str, value: Tensor | None, *allowed: torch.dtype) -> None:
    """Check that an argument of a direct call of an op has one of the dtypes, or is None."""
    if value is not None and value.dtype not in allowed:
        names = ' or '.join(dict.fromkeys(map(str, allowed)))
        raise TypeError(f'{name} must be {names}, but is {value.dtype}')


def check_out_dtype(dtype: torch.dtype, out_dtype: torch.dtype | None) -> None:
    """Check that an output has the dtype of its input, or that of the sums."""
    allowed = (None, dtype, accumulate_dtype(dtype))
    if out_dtype not in allowed:
        raise TypeError(
            f'out_dtype must be one of {allowed} for an input of {dtype}, but got {out_dtype}'
        )


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
    """Return True if a backward pass may follow, for which the forward pass saves its states.

    A trace of torch.jit never saves them, so that it is the same with and without gradients. Its
    backward computes them again.
    """
    if torch.jit.is_tracing() or not torch.is_grad_enabled():
        return False
    return any(value is not None and value.requires_grad for value in inputs)


def _dtype_error(
    device: torch.device, dtype: torch.dtype, allowed: Iterable[torch.dtype]
) -> str | None:
    if dtype in allowed:
        return None
    names = ', '.join(str(d).removeprefix('torch.') for d in allowed)
    return f'the kernels for {device.type} take {names}, not {dtype}'


def _why_not_native(op: str, device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type == 'meta':  # nothing is computed, but the extension defines the op
        return extension_error()
    if not has_kernel(op, device.type):
        return extension_error(device.type) or f'the library for {device.type} lacks {op}'
    if device.type == 'cuda' and (reason := architecture_error(device.index)):
        return reason
    return _dtype_error(device, dtype, NATIVE_DTYPES[device.type])


def _why_not_triton(op: str, device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type == 'meta':
        return None
    allowed = INTERPRETED_DTYPES if device.type == 'cpu' else TRITON_DTYPES
    return triton_error(device) or _dtype_error(device, dtype, allowed)


def _why_not_triton_call(directions: int) -> str | None:
    if torch.onnx.is_in_onnx_export():
        return 'ONNX has no equivalent of the op'
    if directions > MAX_TRITON_DIRECTIONS:
        return f'the kernels support up to {MAX_TRITON_DIRECTIONS} directions, not {directions}'
    return None


_WHY_NOT = {'native': _why_not_native, 'triton': _why_not_triton}


def why_not(
    backend: str, op: str, device: torch.device, dtype: torch.dtype = torch.float32
) -> str | None:
    """Return the reason why the kernels of a backend cannot run an op, or None if they can.

    Args:
        backend (str): 'native' or 'triton'.
        op (str): 'ss2d_scan' or 'selective_scan'.
        device (torch.device): The device of the input.
        dtype (torch.dtype): The dtype of the input. Defaults to float32.
    """
    return _WHY_NOT[backend](op, device, dtype)


# torch.compile calls the function, which may import, and keeps the result. The decorator for this,
# torch.compiler.assume_constant_result, imports the whole compiler.
why_not._dynamo_marked_constant = True  # type: ignore[attr-defined]


def choose_backend(op: str, backend: str, value: Tensor, directions: int = 1) -> str:
    """Choose kernels or a PyTorch implementation for an input and a number of directions.

    Returns:
        str: 'native', 'triton', 'reference' or, if 'auto' finds no kernel, 'chunked', the faster
        PyTorch implementation.

    Raises:
        ValueError: If ``backend`` is unknown.
        RuntimeError: If ``backend`` is 'native' or 'triton' and cannot run, with the reason.
    """
    if backend not in BACKENDS:
        raise ValueError(f'backend must be one of {BACKENDS}, but got {backend!r}')
    if backend == 'reference':
        return 'reference'
    # An export to ONNX computes nothing, and translates the native op.
    if torch.onnx.is_in_onnx_export() and extension_error() is None:
        return 'native'
    device = value.device
    functional = device.type != 'meta' and differentiates_functionally()
    reasons = []
    for name in AUTO_ORDER.get(device.type, ('native',)) if backend == 'auto' else (backend,):
        reason = why_not(name, op, device, value.dtype)
        if reason is None and functional:
            reason = 'no rule for torch.func.grad, vjp, jvp and forward-mode gradients'
        if reason is None and name == 'triton':
            reason = _why_not_triton_call(directions)
        if reason is None:
            return name
        reasons.append((name, reason))
    if backend != 'auto':
        raise RuntimeError(f'backend={backend!r} cannot run {op} on {device.type}: {reason}')
    if not torch.compiler.is_compiling():
        warn_no_kernel(device.type, tuple(reasons))
    return 'chunked'
