"""Mixed precision where MMEngine has none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.optim import OptimWrapper
from torch import nn

from mmvmamba.registry import OPTIM_WRAPPERS


@OPTIM_WRAPPERS.register_module()
class CPUAmpOptimWrapper(OptimWrapper):
    """Automatic mixed precision in bfloat16 on a CPU.

    MMEngine's ``AmpOptimWrapper`` refuses to run without an accelerator. bfloat16 has float32's
    range, so no loss scaling is needed.

    Args:
        **kwargs: The arguments of :class:`mmengine.optim.OptimWrapper`.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Runs the forward pass under autocast."""
        with super().optim_context(model), torch.autocast('cpu', torch.bfloat16):
            yield
