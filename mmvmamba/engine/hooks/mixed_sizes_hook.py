"""Warning about predictions that depend on the batch."""

from typing import Any

from mmengine.hooks import Hook
from torch import Tensor

from mmvmamba.registry import HOOKS


@HOOKS.register_module()
class MixedSizesHook(Hook):
    """Warn once if a validation or test batch contains images of different sizes.

    They are padded to the largest, and VMamba's scan reads the whole map including the padding. The
    prediction for an image then depends on the other images in its batch.
    """

    def __init__(self) -> None:
        self.warned = False

    def _before_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, mode: str = 'train'
    ) -> None:
        inputs = data_batch.get('inputs') if isinstance(data_batch, dict) else None
        if mode == 'train' or self.warned or not isinstance(inputs, list | tuple):
            return  # a stacked batch has one size
        # Test-time augmentation gives a batch for each augmentation.
        batches = [inputs, *(batch for batch in inputs if isinstance(batch, list | tuple))]
        found = [{tuple(x.shape[-2:]) for x in b if isinstance(x, Tensor)} for b in batches]
        sizes = max(found, key=len)
        if len(sizes) < 2:
            return
        self.warned = True
        runner.logger.warning(
            f'a {mode} batch contains images of different sizes '
            f'({", ".join(f"{h}x{w}" for h, w in sorted(sizes))}). They are padded to one size, '
            'and the scan reads the padding, so results depend on the batch. Set '
            f'{mode}_dataloader.batch_size=1'
        )
