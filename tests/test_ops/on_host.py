"""The CUDA kernels on the CPU: builds the host harness and wraps its ops."""

import functools
import os
import shutil
from pathlib import Path

import torch
import torch.utils.cpp_extension

from mmvmamba.ops.backend import accumulate_dtype
from mmvmamba.ops.cross_scan import resolve_pattern

ROOT = Path(__file__).resolve().parents[2]
HARNESS = Path(__file__).resolve().parent / 'host_harness' / 'harness.cpp'
# The harness is built by torch's own tools, with its headers.
FOLDER = ROOT / 'build' / 'host_harness' / torch.__version__


def can_build():
    """Return True if there are a compiler and ninja."""
    compiler = os.environ.get('CXX', 'c++').split()[0]
    return shutil.which(compiler) is not None and torch.utils.cpp_extension.is_ninja_available()


def build(csrc=ROOT / 'csrc', folder=FOLDER, name='mmvmamba_host'):
    """Compile the harness with the headers and the host code in ``csrc``."""
    folder.mkdir(parents=True, exist_ok=True)
    flags = ['-O1', '-g0', '-fvisibility=hidden']
    if torch.backends.cpu.get_cpu_capability() in ('AVX2', 'AVX512'):
        flags += ['-mfma', '-ffp-contract=fast']  # as on a GPU
    sanitize = os.environ.get('MMVMAMBA_SANITIZE') == '1'
    if sanitize:
        flags += ['-fsanitize=address,undefined', '-fno-sanitize=vptr', '-fno-sanitize-recover=all']
    flags += ['-DTORCH_TARGET_VERSION=0x020a000000000000']
    flags += ['-include', str(HARNESS.with_name('register_on_host.h'))]
    sources = [*csrc.glob('*.cpp'), *(csrc / 'cuda').glob('*_kernel.cpp'),
               csrc / 'cuda' / 'scan_launch.cpp', HARNESS]  # fmt: skip
    torch.utils.cpp_extension.load(
        name + ('_sanitized' if sanitize else ''),
        sorted(str(source) for source in sources),
        extra_cflags=flags,
        extra_ldflags=[flag for flag in flags if 'sanitize' in flag],
        extra_include_paths=[str(csrc)],
        build_directory=str(folder),
        is_python_module=False,
    )


@functools.cache
def host():
    """The harness's ops, compiled on the first call of a session."""
    build()
    return torch.ops.mmvmamba_host


class _SS2DScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, orders, out_dtype, *tensors):
        y, states = host().ss2d_scan(*tensors, orders, out_dtype, True)
        ctx.save_for_backward(*tensors, states)
        ctx.orders = orders
        return y

    @staticmethod
    def backward(ctx, grad):
        return None, None, *host().ss2d_scan_backward(grad, *ctx.saved_tensors, ctx.orders)


def ss2d_scan(x, proj, dt_weight, dt_bias, A, D, pattern='cross', out_dtype=None):
    """:func:`mmvmamba.ops.ss2d_scan` by the harness."""
    acc = accumulate_dtype(x.dtype)
    params = (v.to(acc) for v in (dt_weight, dt_bias, A, D))
    orders = list(resolve_pattern(pattern))
    return _SS2DScan.apply(orders, out_dtype or x.dtype, x, proj, *params)


class _SelectiveScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, delta_softplus, *tensors):
        y, last_state, states = host().selective_scan(*tensors, delta_softplus, True)
        ctx.save_for_backward(*tensors, states)
        ctx.delta_softplus = delta_softplus
        ctx.mark_non_differentiable(last_state)
        return y, last_state

    @staticmethod
    def backward(ctx, grad, _):
        *tensors, states = ctx.saved_tensors
        grads = host().selective_scan_backward(grad, *tensors, states, ctx.delta_softplus)
        return None, *(None if v is None else g for g, v in zip(grads, tensors, strict=True))


def selective_scan(
    u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False,
    return_last_state=False,
):  # fmt: skip
    """:func:`mmvmamba.ops.selective_scan` by the harness; B and C in the same number of groups."""
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
