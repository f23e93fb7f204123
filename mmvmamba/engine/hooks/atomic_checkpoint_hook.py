"""Crash-safe checkpoint saving."""

import contextlib
import os
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process, master_only
from mmengine.hooks import CheckpointHook

from mmvmamba.engine.atomic_io import ATOMIC, AtomicBackend, remove_parts
from mmvmamba.engine.utils import load_from, resumes
from mmvmamba.engine.work_dir import saved_progress
from mmvmamba.registry import HOOKS

from .resume_hook import ResumeHook

_INTERRUPTED = 'interrupted.pth'
_OUTDATED = 'outdated_ckpt'  # key in the message hub of a checkpoint


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """Save complete checkpoints, and remove old ones only after the new one is complete.

    Args:
        **kwargs: The arguments of :class:`mmengine.hooks.CheckpointHook`. With ``backend_args`` or
            a remote ``out_dir``, that storage is responsible for writing complete files.
    """

    _validating = False

    def before_train(self, runner: Any) -> None:
        """Prepare the folder and remove the unfinished files of a killed process."""
        folder = os.fspath(self.out_dir or runner.work_dir)
        local = not self.backend_args and not self.file_client_args and '://' not in folder
        if local:
            self.backend_args = dict(backend=ATOMIC)
        super().before_train(runner)
        self._validating = False
        if local and is_main_process():
            remove_parts(self.out_dir)
        self.file_backend = DeferredRemoval(self.file_backend)
        if resumes(runner):
            # Otherwise MMEngine would not save the best score of a repeated validation.
            last = runner.message_hub.runtime_info.get('last_ckpt')
            self.last_ckpt = last or load_from(runner)
            if local and self.max_keep_ckpts > 0 and is_main_process():
                self._remove_left_over(runner)

    def before_val_epoch(self, runner: Any) -> None:
        self._validating = True

    def after_val_epoch(self, runner: Any, metrics: dict) -> None:
        """Save the best checkpoint, and then remove the previous one."""
        super().after_val_epoch(runner, metrics)
        self._validating = False
        if self.save_best:
            self._remove_outdated()

    def before_save_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Correct the progress during a validation, where FlexibleRunner counts one too many."""
        if self._validating:
            checkpoint['meta'].update(epoch=runner.epoch, iter=runner.iter)

    def save_interrupted(self, runner: Any, meta: dict[str, int]) -> str:
        """Save ``interrupted.pth``, which the next regular checkpoint replaces; return its path."""
        path = self._save(runner, _INTERRUPTED, meta, by_epoch=False)
        _write_last_checkpoint(runner, path)
        return path

    def _save_checkpoint_with_step(self, runner: Any, step: int, meta: dict) -> None:
        # MMEngine's own method overwrites last_checkpoint in place.
        if self.max_keep_ckpts > 0 and step not in list(self.keep_ckpt_ids)[-1:]:
            if len(self.keep_ckpt_ids) == self.max_keep_ckpts:
                self._remove(self.filename_tmpl.format(self.keep_ckpt_ids.popleft()))
            self.keep_ckpt_ids.append(step)
        # A later run with max_keep_ckpts does not count what was kept without it.
        counted = list(self.keep_ckpt_ids) if self.max_keep_ckpts > 0 else []
        runner.message_hub.update_info('keep_ckpt_ids', counted)
        # For _remove_left_over, as keep_ckpt_ids no longer has them.
        runner.message_hub.update_info(_OUTDATED, self.file_backend.outdated_names())
        name = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        self._save(runner, name, meta, self.by_epoch)
        _write_last_checkpoint(runner, self.last_ckpt)
        self._remove(_INTERRUPTED)
        self._remove_outdated()

    def _remove_left_over(self, runner: Any) -> None:
        """Schedule the removal of outdated checkpoints that a killed process left."""
        runs = [hook.run for hook in runner.hooks if isinstance(hook, ResumeHook)]
        names = runner.message_hub.runtime_info.get(_OUTDATED)
        for name in names if isinstance(names, list) else []:
            if not isinstance(name, str) or os.path.basename(name) != name:
                continue
            # Another run may have saved a file of that name.
            with contextlib.suppress(OSError, ValueError):
                progress = saved_progress(os.path.join(self.out_dir, name))
                if progress is not None and progress.run in runs:
                    self._remove(name)

    def _save(self, runner: Any, name: str, meta: dict[str, int], by_epoch: bool) -> str:
        runner.save_checkpoint(
            self.out_dir,
            name,
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=dict(meta),
            by_epoch=by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        return self.file_backend.join_path(self.out_dir, name)

    @master_only
    def _remove(self, name: str) -> None:
        self.file_backend.remove(self.file_backend.join_path(self.out_dir, name))

    def _remove_outdated(self) -> None:
        best = [getattr(self, 'best_ckpt_path', None)]
        best += getattr(self, 'best_ckpt_path_dict', {}).values()
        self.file_backend.flush(keep={self.last_ckpt, *best})


@master_only
def _write_last_checkpoint(runner: Any, path: str) -> None:
    AtomicBackend().put_text(path, Path(runner.work_dir, 'last_checkpoint'))


class DeferredRemoval:
    """Storage backend that postpones the removal of files until :meth:`flush`."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._outdated: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def remove(self, path: str) -> None:
        self._outdated.add(path)

    rmtree = remove

    def outdated_names(self) -> list[str]:
        """Return the names of the files to remove."""
        return sorted(os.path.basename(path) for path in self._outdated)

    def flush(self, keep: set[str]) -> None:
        """Remove the outdated files except those that were written again."""
        for path in self._outdated - keep:
            if self._backend.isfile(path):
                self._backend.remove(path)
            elif self._backend.isdir(path):
                self._backend.rmtree(path)
        self._outdated.clear()
