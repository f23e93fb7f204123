"""Drawing of every n-th test image with mmdet; importing this module needs mmdet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmdet.engine.hooks import DetVisualizationHook

from mmvmamba.registry import HOOKS


@HOOKS.register_module()
class IntervalDetVisualizationHook(DetVisualizationHook):
    """Draw every n-th test image; mmdet's hook applies ``interval`` only to validation."""

    num_images = 0  # tested so far

    def after_test_iter(
        self, runner: Any, batch_idx: int, data_batch: Any, outputs: Sequence[Any]
    ) -> None:
        """Draw those images of the batch whose number is a multiple of ``interval``."""
        chosen = [o for n, o in enumerate(outputs, self.num_images + 1) if n % self.interval == 0]
        self.num_images += len(outputs)
        super().after_test_iter(runner, batch_idx, data_batch, chosen)
