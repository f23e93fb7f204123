"""Stop a diverged run before it overwrites the last good checkpoint."""

import os
from typing import Any

import torch
from mmengine.hooks import Hook

from mmvmamba.engine.errors import UserError
from mmvmamba.engine.utils import optim_wrappers
from mmvmamba.engine.work_dir import read_last_checkpoint
from mmvmamba.registry import HOOKS

from .utils import batch_metainfo


@HOOKS.register_module()
class NonFiniteLossHook(Hook):
    """Stop at a loss that is not finite, or when the gradient scaler skips too many steps.

    The message reports the iteration and the images. After that, no checkpoint is saved.
    Checkpoints with non-finite weights are never saved.

    Args:
        max_skipped_steps (int): The number of consecutive steps that the gradient scaler may skip.
            A few are normal at the beginning, while it adjusts its scale. Defaults to 20.

    Raises:
        ValueError: If ``max_skipped_steps`` is negative.
    """

    priority = 'VERY_HIGH'  # before anything is saved

    def __init__(self, max_skipped_steps: int = 20) -> None:
        if max_skipped_steps < 0:
            raise ValueError(f'max_skipped_steps must not be negative, but got {max_skipped_steps}')
        self.max_skipped_steps = max_skipped_steps
        self._stepped = False
        self._skipped = 0
        self._scale = 0.0

    def before_train(self, runner: Any) -> None:
        """Register a hook for the steps of each optimizer."""
        for wrapper in optim_wrappers(runner.optim_wrapper):
            if isinstance(wrapper.optimizer, torch.optim.Optimizer):
                wrapper.optimizer.register_step_post_hook(self._note_step)

    def _note_step(self, optimizer: Any, args: tuple, kwargs: dict) -> None:
        self._stepped = True

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Check the losses and count skipped steps."""
        bad = _bad_losses(outputs or {})
        if bad:
            raise UserError(
                f'iteration {runner.iter + 1}: losses {bad} are not finite for images '
                f'{_image_names(data_batch)}; {_advice(runner)}'
            )
        self._count_skipped(runner)
        if self._skipped > self.max_skipped_steps:
            raise UserError(
                f'iteration {runner.iter + 1}: the gradient scaler skipped {self._skipped} steps '
                f'in a row, the last one for images {_image_names(data_batch)}; {_advice(runner)}'
            )

    def before_save_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Refuse to save weights that are not finite."""
        weights = checkpoint['state_dict']
        bad = [name for name, value in weights.items() if not torch.isfinite(value).all()]
        if bad:
            raise UserError(
                f'iteration {checkpoint["meta"]["iter"]}: {len(bad)} tensor(s) are not finite '
                f'(the first is {bad[0]}); {_advice(runner)}'
            )

    def _count_skipped(self, runner: Any) -> None:
        scaled = [w for w in optim_wrappers(runner.optim_wrapper) if hasattr(w, 'loss_scaler')]
        if not scaled or not all(w.should_update() for w in scaled):
            return
        scale = min(float(w.loss_scaler.get_scale()) for w in scaled)
        # A fused optimizer is called and skips internally; only the scale shows it.
        if self._stepped and scale >= self._scale:
            self._skipped = 0
        else:
            self._skipped += 1
        self._scale, self._stepped = scale, False


def _bad_losses(outputs: dict[str, Any]) -> dict[str, float]:
    """Return the losses that are not finite, with a single synchronization if all are."""
    losses = {n: torch.as_tensor(v).detach() for n, v in outputs.items() if 'loss' in n}
    if not losses:
        return {}
    finite = [torch.isfinite(value).all() for value in losses.values()]
    if torch.stack([flag.to(finite[0].device) for flag in finite]).all():
        return {}
    return {n: float(v) for (n, v), flag in zip(losses.items(), finite, strict=True) if not flag}


def _image_names(data_batch: Any) -> list[str]:
    metainfo = batch_metainfo(data_batch)
    return [os.fspath(meta['img_path']) for meta in metainfo if meta.get('img_path')]


def _advice(runner: Any) -> str:
    try:
        last = read_last_checkpoint(runner.work_dir)
        kept = f'the last good checkpoint is {last}' if last else 'no checkpoint has been saved yet'
    except ValueError as error:
        kept = str(error)
    lower = 'optim_wrapper.optimizer.lr=LR default_hooks.resume.override=lr'
    return (
        f'{kept}; inspect the data, clip gradients, or continue with a lower learning rate: '
        f'--resume --cfg-options {lower}'
    )
