"""Warning about predictions that depend on the batch."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from torch import Tensor

from mmvmamba.registry import HOOKS


@HOOKS.register_module()
class MixedSizesHook(Hook):
    """Warn once if a validation or test batch holds images of different sizes.

    They are padded to the largest, and VMamba's scan reads the whole map including the padding. The
    prediction for an image then depends on the other images in its batch.
    """

    def __init__(self) -> None:
        self.warned = False

    def _before_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, mode: str = 'train'
    ) -> None:
        sizes = _sizes(data_batch.get('inputs') if isinstance(data_batch, dict) else None)
        if mode == 'train' or self.warned or len(sizes) < 2:
            return
        self.warned = True
        runner.logger.warning(
            f'a batch of the {mode} data holds images of the sizes '
            f'{", ".join(f"{h}x{w}" for h, w in sorted(sizes))}: they are padded to one size, the '
            'scan reads the padding, and the result depends on the batch. Use '
            f'{mode}_dataloader.batch_size=1'
        )


def _sizes(inputs: Any) -> set[tuple[int, int]]:
    """Return the sizes (H, W) in a batch; with test-time augmentation, in one mixed batch."""
    if not isinstance(inputs, list | tuple):
        return set()  # stacked: one size
    if not all(isinstance(image, Tensor) for image in inputs):
        return next((found for found in map(_sizes, inputs) if len(found) > 1), set())
    return {tuple(image.shape[-2:]) for image in inputs}
