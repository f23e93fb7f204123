"""MMEngine's CheckpointHook, of which nothing that happens leaves less than before."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process, master_only
from mmengine.hooks import CheckpointHook

from mmvmamba.engine.atomic_io import ATOMIC, AtomicBackend, remove_parts
from mmvmamba.registry import HOOKS

_INTERRUPTED = 'interrupted.pth'


class _LateRemoval:
    """A storage backend that keeps what it is told to remove until :meth:`flush`."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._outdated: dict[str, None] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def remove(self, path: str) -> None:
        self._outdated[path] = None

    rmtree = remove

    def flush(self, keep: set[str]) -> None:
        """Removes all of it except what has been written anew."""
        for path in self._outdated.keys() - keep:
            if self._backend.isfile(path):
                self._backend.remove(path)
            elif self._backend.isdir(path):
                self._backend.rmtree(path)
        self._outdated.clear()


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """Saves checkpoints that are whole, and removes old ones only when the new one is.

    Args:
        **kwargs: The arguments of :class:`mmengine.hooks.CheckpointHook`. ``backend_args`` or a
            remote ``out_dir`` leave it to that storage to write a file as a whole.
    """

    _done: dict[str, int] | None = None  # while a checkpoint is saved: the epochs and iterations

    def before_train(self, runner: Any) -> None:
        """Prepares the folder and removes what a killed process left there."""
        folder = os.fspath(self.out_dir or runner.work_dir)
        local = not self.backend_args and not self.file_client_args and '://' not in folder
        if local:
            self.backend_args = dict(backend=ATOMIC)
        super().before_train(runner)
        if local and is_main_process():
            remove_parts(self.out_dir)
        self.file_backend = _LateRemoval(self.file_backend)
        if runner._resume:
            # Without it MMEngine would not save the best score of a validation that is repeated.
            last = runner.message_hub.runtime_info.get('last_ckpt')
            self.last_ckpt = last or runner._load_from

    def before_save_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Puts back what is done: FlexibleRunner replaces it by its own count."""
        checkpoint['meta'].update(self._done or {})

    def save_interrupted(self, runner: Any, meta: dict[str, int]) -> str:
        """Saves the state between two checkpoints; the next one replaces it.

        Args:
            runner (Runner): The runner.
            meta (dict): ``epoch`` and ``iter`` that are done.

        Returns:
            str: The file.
        """
        path = self._save(runner, _INTERRUPTED, meta)
        self._name_last(runner, path)
        return path

    def _save_checkpoint_with_step(self, runner: Any, step: int, meta: dict) -> None:
        # MMEngine's own writes last_checkpoint in place.
        if self.max_keep_ckpts > 0 and step not in list(self.keep_ckpt_ids)[-1:]:
            if len(self.keep_ckpt_ids) == self.max_keep_ckpts:
                self._remove(self.filename_tmpl.format(self.keep_ckpt_ids.popleft()))
            self.keep_ckpt_ids.append(step)
            runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        name = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        self._save(runner, name, meta)
        self._name_last(runner, self.last_ckpt)
        self._remove(_INTERRUPTED)
        self._remove_outdated()

    def _save_best_checkpoint(self, runner: Any, metrics: dict) -> None:
        with self._counting(dict(epoch=runner.epoch, iter=runner.iter)):
            super()._save_best_checkpoint(runner, metrics)
        self._remove_outdated()

    def _save(self, runner: Any, name: str, meta: dict[str, int]) -> str:
        with self._counting(meta):
            runner.save_checkpoint(
                self.out_dir,
                name,
                self.file_client_args,
                save_optimizer=self.save_optimizer,
                save_param_scheduler=self.save_param_scheduler,
                meta=dict(meta),
                by_epoch=self.by_epoch,
                backend_args=self.backend_args,
                **self.args,
            )
        return self.file_backend.join_path(self.out_dir, name)

    @contextmanager
    def _counting(self, meta: dict[str, int]) -> Iterator[None]:
        """Keeps to what is done; the outermost one holds."""
        before = self._done
        self._done = before or {key: meta[key] for key in ('epoch', 'iter')}
        try:
            yield
        finally:
            self._done = before

    @master_only
    def _remove(self, name: str) -> None:
        self.file_backend.remove(self.file_backend.join_path(self.out_dir, name))

    def _remove_outdated(self) -> None:
        best = [getattr(self, 'best_ckpt_path', None)]
        best += getattr(self, 'best_ckpt_path_dict', {}).values()
        self.file_backend.flush(keep={self.last_ckpt, *best})

    @master_only
    def _name_last(self, runner: Any, path: str) -> None:
        AtomicBackend().put_text(path, Path(runner.work_dir, 'last_checkpoint'))
