"""Helpers that several hooks share."""

from __future__ import annotations

from typing import Any

from mmengine.optim import OptimWrapper, OptimWrapperDict


def optim_wrappers(wrapper: OptimWrapper) -> list[OptimWrapper]:
    """Return the optimizer wrappers in an ``OptimWrapperDict``, or the only one."""
    return list(wrapper.values()) if isinstance(wrapper, OptimWrapperDict) else [wrapper]


def batch_metainfo(data_batch: Any) -> list[dict]:
    """Return the meta information of each data sample in a batch."""
    samples = data_batch.get('data_samples') if isinstance(data_batch, dict) else None
    return [getattr(sample, 'metainfo', {}) for sample in samples or ()]
