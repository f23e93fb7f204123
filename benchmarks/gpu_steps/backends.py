"""Backends of the GPU check."""

import torch

from gpu_steps.context import NEEDS_CUDA, Context, Skip
from mmvmamba.ops.backend import why_not

BACKENDS = ('native', 'triton')


def require(
    context: Context, backend: str, op: str = 'ss2d_scan', dtype: torch.dtype = torch.float32
) -> None:
    """Skip the current item if the kernels of a backend cannot run an op.

    Raises:
        Skip: With the reason. A CPU has no Triton kernels.
    """
    reason = why_not(backend, op, torch.device(context.device, 0), dtype)
    if reason is not None:
        raise Skip(NEEDS_CUDA if backend == 'triton' and not context.cuda else reason)
