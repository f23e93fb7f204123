"""Mixed precision where MMEngine has none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.optim import OptimWrapper
from torch import Tensor, nn

from mmvmamba.registry import OPTIM_WRAPPERS

_DTYPES = ('bfloat16', 'float16')


@OPTIM_WRAPPERS.register_module()
class CPUAmpOptimWrapper(OptimWrapper):
    """Automatic mixed precision on a CPU.

    MMEngine's ``AmpOptimWrapper`` refuses to run without an accelerator. bfloat16 has float32's
    range and needs no loss scaling; float16 is there to try a recipe for a GPU.

    Args:
        dtype (str): 'bfloat16', or 'float16' with dynamic loss scaling. Defaults to 'bfloat16'.
        **kwargs: The arguments of :class:`mmengine.optim.OptimWrapper`.

    Raises:
        ValueError: If ``dtype`` is neither.
    """

    def __init__(self, dtype: str = 'bfloat16', **kwargs: Any) -> None:
        if dtype not in _DTYPES:
            raise ValueError(f'dtype must be one of {_DTYPES}, but got {dtype!r}')
        super().__init__(**kwargs)
        self.cast_dtype = getattr(torch, dtype)
        # Disabled, it passes everything through.
        self.loss_scaler = torch.amp.GradScaler('cpu', enabled=dtype == 'float16')

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Runs the forward pass under autocast."""
        with super().optim_context(model), torch.autocast('cpu', self.cast_dtype):
            yield

    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        """Adds the gradients of the scaled loss."""
        super().backward(self.loss_scaler.scale(loss), **kwargs)

    def step(self, **kwargs: Any) -> None:
        """Updates the parameters unless a gradient is not finite."""
        if self.clip_grad_kwargs:
            self.loss_scaler.unscale_(self.optimizer)
            self._clip_grad()
        self.loss_scaler.step(self.optimizer, **kwargs)
        self.loss_scaler.update()

    def state_dict(self) -> dict:
        """The states of optimizer and scaler."""
        return dict(super().state_dict(), loss_scaler=self.loss_scaler.state_dict())

    def load_state_dict(self, state_dict: dict) -> None:
        """Loads what :meth:`state_dict` returned, or the optimizer's alone."""
        state_dict = dict(state_dict)
        scaler = state_dict.pop('loss_scaler', None)
        if scaler:
            self.loss_scaler.load_state_dict(scaler)
        super().load_state_dict(state_dict)
