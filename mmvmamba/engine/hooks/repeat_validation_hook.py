"""Repetition of an interrupted validation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import IterBasedTrainLoop

from mmvmamba.engine.atomic_io import AtomicBackend
from mmvmamba.registry import HOOKS

_DONE = 'last_validation'


@HOOKS.register_module()
class RepeatValidationHook(Hook):
    """Validate first if a resumed run was interrupted during or just before a validation.

    The file ``last_validation`` in the work folder holds the iteration of the last complete one.
    """

    priority = 'LOWEST'  # after all other hooks are ready

    def __init__(self) -> None:
        self._at_boundary = False
        self._file: Path | None = None

    def after_load_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Read from the position of :class:`ResumeHook` if the run continues with a new epoch."""
        position = checkpoint.get('meta', {}).get('position', {})
        self._at_boundary = position.get('batches') == 0

    def before_train(self, runner: Any) -> None:
        """Validate if a validation is due."""
        self._file = Path(runner.work_dir, _DONE)
        found = [_read(self._file) if is_main_process() else None]
        broadcast_object_list(found)
        done = found[0]
        if not runner._resume or done > runner.iter:
            done = 0  # by another run, or by one that was resumed from here before
            if is_main_process():
                self._file.unlink(missing_ok=True)
        if not runner._resume or runner.val_loop is None:
            return
        if self._due(runner.train_loop) > done:
            runner.logger.info(f'running the missing validation after iteration {runner.iter}')
            runner.val_loop.run()

    def after_val_epoch(self, runner: Any, metrics: dict | None = None) -> None:
        """Write the iteration of the complete validation to the file."""
        if self._file is not None and is_main_process():
            AtomicBackend().put_text(str(runner.iter), self._file)

    def after_train(self, runner: Any) -> None:
        """Ignore later validations, which do not belong to this run."""
        self._file = None

    def _due(self, loop: Any) -> int:
        """Return the iteration if the loop validates after it, else 0."""
        if isinstance(loop, IterBasedTrainLoop):
            now, end = loop.iter, loop.max_iters
        elif self._at_boundary:
            now, end = loop.epoch, loop.max_epochs
        else:
            return 0
        loop._decide_current_val_interval()
        due = now >= loop.val_begin and (now % loop.val_interval == 0 or now == end)
        return loop.iter if due else 0


def _read(path: Path) -> int:
    return int(path.read_text()) if path.is_file() else 0
