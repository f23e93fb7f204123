"""Repetition of an interrupted validation."""

import contextlib
from pathlib import Path
from typing import Any

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import IterBasedTrainLoop

from mmvmamba.engine.atomic_io import AtomicBackend
from mmvmamba.engine.data.sampling import PositionedBatchSampler
from mmvmamba.engine.utils import resumes
from mmvmamba.registry import HOOKS


@HOOKS.register_module()
class RepeatValidationHook(Hook):
    """Validate first if a resumed run was interrupted during or just before a validation.

    The file ``last_validation`` in the work directory contains the iteration of the last complete
    validation.
    """

    priority = 'LOWEST'  # after all other hooks are ready

    def __init__(self) -> None:
        self._file: Path | None = None

    def before_train(self, runner: Any) -> None:
        """Validate if a validation is due."""
        self._file = Path(runner.work_dir, 'last_validation')
        done = [0]
        if is_main_process() and self._file.is_file():
            with contextlib.suppress(ValueError):  # a damaged file: the validation is repeated
                done[0] = int(self._file.read_text())
            if not resumes(runner) or done[0] > runner.iter:
                # Written by another run, or beyond the checkpoint that this run resumes from.
                done[0] = 0
                self._file.unlink()
        broadcast_object_list(done)
        if not resumes(runner) or runner.val_loop is None:
            return
        if done[0] < runner.iter and _is_due(runner.train_loop):
            runner.logger.info(f'running the missing validation after iteration {runner.iter}')
            runner.val_loop.run()

    def after_val_epoch(self, runner: Any, metrics: dict | None = None) -> None:
        """Write the iteration of the complete validation to the file."""
        if self._file is not None and is_main_process():
            AtomicBackend().put_text(str(runner.iter), self._file)


def _is_due(loop: Any) -> bool:
    """Return True if a loop validates at its current position."""
    if isinstance(loop, IterBasedTrainLoop):
        now, end = loop.iter, loop.max_iters
    else:
        now, end = loop.epoch, loop.max_epochs
        batches = loop.dataloader.batch_sampler
        if not isinstance(batches, PositionedBatchSampler) or batches.done:
            return False  # ResumeHook continues within an epoch
    loop._decide_current_val_interval()
    return now >= loop.val_begin and (now % loop.val_interval == 0 or now == end)
