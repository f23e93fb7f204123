"""Access to parts of MMEngine's runners, including those without a public name."""

from typing import Any

from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.optim import OptimWrapper, OptimWrapperDict
from torch import nn


def optim_wrappers(wrapper: OptimWrapper) -> list[OptimWrapper]:
    """Return the optimizer wrappers in an ``OptimWrapperDict``, or the only one."""
    return list(wrapper.values()) if isinstance(wrapper, OptimWrapperDict) else [wrapper]


def accumulated_iterations(wrapper: OptimWrapper) -> int:
    """Return the number of iterations per step of the optimizer."""
    return getattr(wrapper, '_accumulative_counts', 1)


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside the wrappers of distributed runs and test-time augmentation."""
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model


def resumes(runner: Any) -> bool:
    """Return True if a run continues another one."""
    return runner._resume


def load_from(runner: Any) -> str | None:
    """Return the checkpoint that a run loads or resumes from, if any."""
    return runner._load_from


def set_load_from(runner: Any, filename: str | None, resume: bool) -> None:
    """Set the checkpoint that a run will load or resume from."""
    runner._load_from, runner._resume = filename, resume
