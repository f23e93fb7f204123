"""Helpers that several hooks share."""

from typing import Any


def batch_metainfo(data_batch: Any) -> list[dict]:
    """Return the meta information of each data sample in a batch."""
    samples = data_batch.get('data_samples') if isinstance(data_batch, dict) else None
    return [getattr(sample, 'metainfo', {}) for sample in samples or ()]
