"""Helpers that several hooks share."""

from typing import Any

from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.optim import OptimWrapper, OptimWrapperDict
from torch import nn


def optim_wrappers(wrapper: OptimWrapper) -> list[OptimWrapper]:
    """Return the optimizer wrappers in an ``OptimWrapperDict``, or the only one."""
    return list(wrapper.values()) if isinstance(wrapper, OptimWrapperDict) else [wrapper]


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside the wrappers of distributed runs and test-time augmentation."""
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model


def batch_metainfo(data_batch: Any) -> list[dict]:
    """Return the meta information of each data sample in a batch."""
    samples = data_batch.get('data_samples') if isinstance(data_batch, dict) else None
    return [getattr(sample, 'metainfo', {}) for sample in samples or ()]
