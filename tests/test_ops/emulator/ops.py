"""The ops with their CUDA kernels in the emulator."""

import functools
import re
import shutil
from pathlib import Path

import torch
import torch.utils.cpp_extension

from mmvmamba.ops.backend import accumulate_dtype
from mmvmamba.ops.scan_orders import resolve_pattern

from . import translate

ROOT = Path(__file__).resolve().parents[3]
# Built by torch's own tools, with its headers.
FOLDER = ROOT / 'build' / 'emulator' / torch.__version__
#: Of a block, on the smallest of the GPUs.
MAX_SHARED = 99 * 1024
#: Changes of host code, by file: tensors are on the CPU, and tests choose the number of blocks.
CHANGES = {
    'scan_device.cpp': [
        (r'return DeviceType::CUDA;', 'return DeviceType::CPU;'),
        (
            r'(target_threads\(\) const {) return (\d+); }',
            r'\1 const auto n = cuda_emulator::settings().target_blocks; '
            r'return n > 0 ? 512 * n : \2; }',
        ),
        (
            r'(least_split\(\) const {) return (\d+); }',
            r'\1 return cuda_emulator::settings().target_blocks > 0 ? 0 : \2; }',
        ),
    ],
}


def can_build():
    """Return True if there are a compiler and ninja."""
    compiler = translate.compiler()[0]
    return shutil.which(compiler) is not None and torch.utils.cpp_extension.is_ninja_available()


def adapt(text, path):
    """Apply :data:`CHANGES`, each at exactly one place."""
    for pattern, new in CHANGES.get(path.name, []):
        text, count = re.subn(pattern, new, text)
        if count != 1:
            raise ValueError(f'{path}: {count} places match {pattern!r}')
    if path.suffix == '.cpp':
        text = f'#include "emulator.h"\n#include "register.h"\n#line 1 "{path}"\n{text}'
    return text


def build(csrc=ROOT / 'csrc', folder=FOLDER, name='mmvmamba_emulated', more_flags=()):
    """Compile the kernels and the host code in ``csrc``."""
    sanitize = translate.sanitizer()
    folder = folder / (sanitize or 'plain')
    sources = translate.translate_tree(csrc, folder / 'csrc', adapt)
    sources = [path for path in sources if not {'cpu', 'onnx'} & set(path.parts)]
    flags = ['-O1', '-g1' if sanitize else '-g0', '-fvisibility=hidden']
    if torch.backends.cpu.get_cpu_capability() in ('AVX2', 'AVX512'):
        flags += ['-mfma', '-ffp-contract=fast']  # as on a GPU
    flags += [*translate.SANITIZERS[sanitize], *more_flags]
    flags += ['-DTORCH_TARGET_VERSION=0x020a000000000000', '-DUSE_CUDA']
    include = [str(folder / 'csrc'), str(translate.INCLUDE), str(translate.FOLDER)]
    with translate.without_preload():
        runtime = translate.build_runtime(folder, sanitize)
        torch.utils.cpp_extension.load(
            name + (f'_{sanitize}' if sanitize else ''),
            [str(path) for path in [*sources, translate.FOLDER / 'device.cpp']],
            extra_cflags=flags,
            extra_ldflags=[str(runtime), '-Wl,-Bsymbolic', *translate.SANITIZERS[sanitize]],
            extra_include_paths=include,
            build_directory=str(folder),
            is_python_module=False,
        )


@functools.cache
def library():
    """The ops ``mmvmamba_emulated``, compiled on the first call of a session."""
    build()
    return torch.ops.mmvmamba_emulated


def configure(seed=0, blocks=0, shared=MAX_SHARED):
    """Set the order of threads, the number of blocks to aim at (0: the kernels' own) and the limit.

    Forgets the launches so far.
    """
    library().set(seed, blocks, shared)


def launches():
    """The blocks, threads of a block and bytes of shared memory of each launch."""
    numbers = iter(library().launches())
    return list(zip(numbers, numbers, numbers, strict=True))


class _SS2DScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, orders, out_dtype, *tensors):
        y, states = library().ss2d_scan(*tensors, orders, out_dtype, True)
        ctx.save_for_backward(*tensors, states)
        ctx.orders = orders
        return y

    @staticmethod
    def backward(ctx, grad):
        return None, None, *library().ss2d_scan_backward(grad, *ctx.saved_tensors, ctx.orders)


def ss2d_scan(x, proj, dt_weight, dt_bias, A, D, pattern='cross', out_dtype=None):
    """:func:`mmvmamba.ops.ss2d_scan` in the emulator."""
    acc = accumulate_dtype(x.dtype)
    params = (v.to(acc) for v in (dt_weight, dt_bias, A, D))
    orders = list(resolve_pattern(pattern))
    return _SS2DScan.apply(orders, out_dtype or x.dtype, x, proj, *params)


class _SelectiveScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, delta_softplus, *tensors):
        y, last_state, states = library().selective_scan(*tensors, delta_softplus, True)
        ctx.save_for_backward(*tensors, states)
        ctx.delta_softplus = delta_softplus
        ctx.mark_non_differentiable(last_state)
        return y, last_state

    @staticmethod
    def backward(ctx, grad, _):
        *tensors, states = ctx.saved_tensors
        grads = library().selective_scan_backward(grad, *tensors, states, ctx.delta_softplus)
        return None, *(None if v is None else g for g, v in zip(grads, tensors, strict=True))


def selective_scan(
    u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False,
    return_last_state=False,
):  # fmt: skip
    """:func:`mmvmamba.ops.selective_scan` in the emulator; B and C in the same number of groups."""
    acc = accumulate_dtype(u.dtype)
    groups = max(v.shape[1] if v.dim() == 4 else 1 for v in (B, C))

    def grouped(v):
        if v.dim() == 2:
            return v.to(acc)
        v = v.unsqueeze(1) if v.dim() == 3 else v
        return v.repeat_interleave(groups // v.shape[1], dim=1)

    params = [v if v is None else v.to(acc) for v in (A, D, delta_bias)]
    y, last_state = _SelectiveScan.apply(
        delta_softplus, u, delta, params[0], grouped(B), grouped(C), params[1], z, params[2]
    )
    return (y, last_state) if return_last_state else y
