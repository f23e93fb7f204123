"""What mmdet's visualization hook leaves out; needs mmdet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmdet.engine.hooks import DetVisualizationHook

from mmvmamba.registry import HOOKS


@HOOKS.register_module()
class IntervalDetVisualizationHook(DetVisualizationHook):
    """Draws every n-th image of a test; mmdet's looks at ``interval`` in validations alone."""

    #: Images of the test so far.
    images = 0

    def after_test_iter(
        self, runner: Any, batch_idx: int, data_batch: Any, outputs: Sequence[Any]
    ) -> None:
        """Draws those of the batch whose turn it is."""
        numbers = range(self.images + 1, self.images + 1 + len(outputs))
        self.images += len(outputs)
        chosen = [o for n, o in zip(numbers, outputs, strict=True) if n % self.interval == 0]
        super().after_test_iter(runner, batch_idx, data_batch, chosen)
