"""Saves and stops when a cluster takes the machine away."""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from types import FrameType
from typing import Any

import torch
from mmengine.dist import all_reduce, get_world_size
from mmengine.hooks import EMAHook, Hook
from torch.utils.data import DataLoader

from mmvmamba.engine.data.sampling import restart_workers
from mmvmamba.engine.data.workers import shield_workers
from mmvmamba.engine.errors import UserError
from mmvmamba.registry import HOOKS

from .atomic_checkpoint_hook import AtomicCheckpointHook


@HOOKS.register_module()
class PreemptionHook(Hook):
    """On SIGTERM saves ``interrupted.pth`` and exits; ``--resume`` goes on at the next batch.

    Args:
        signals (Sequence[str]): Names of the signals to heed; a Slurm job with
            ``--signal=USR1@120`` needs ``('SIGTERM', 'SIGUSR1')``. Defaults to ``('SIGTERM',)``.
        interval (int): With several processes, the iterations, or batches of a validation, between
            two questions whether one of them was signalled. Defaults to 10.
        exit_code (int): The exit status of the process. Defaults to 0.

    Raises:
        ValueError: If a signal is not known or ``interval`` is not positive.
    """

    priority = 'LOWEST'  # after the hooks that change what is saved

    def __init__(
        self, signals: Sequence[str] = ('SIGTERM',), interval: int = 10, exit_code: int = 0
    ) -> None:
        unknown = [name for name in signals if name not in signal.Signals.__members__]
        if unknown:
            raise ValueError(f'signals has {unknown}, which are no names of signals')
        if interval < 1:
            raise ValueError(f'interval must be positive, but got {interval}')
        self.signals = [signal.Signals[name] for name in signals]
        self.interval = interval
        self.exit_code = exit_code
        self._received: str | None = None
        self._stopping = False
        self._before: dict[signal.Signals, Any] = {}
        self._common_batches = 0

    def before_train(self, runner: Any) -> None:
        """Installs the handlers and keeps the signals from the data-loading processes.

        Raises:
            UserError: If there is no :class:`AtomicCheckpointHook` to save with.
        """
        if not any(isinstance(hook, AtomicCheckpointHook) for hook in runner.hooks):
            raise UserError(
                'PreemptionHook saves with AtomicCheckpointHook, but default_hooks.checkpoint.type '
                'is another'
            )
        if threading.current_thread() is not threading.main_thread():
            runner.logger.warning('signals are not heeded outside the main thread')
            return
        for number in self.signals:
            self._before[number] = signal.signal(number, self._note)
        for loop in (runner.train_loop, runner.val_loop):
            loader = getattr(loop, 'dataloader', None)
            if isinstance(loader, DataLoader) and not shield_workers(loader, self.signals):
                runner.logger.warning(
                    'a signal that reaches data-loading processes ends this run: they are neither '
                    'forked nor spawned ones of multiprocessing on Linux'
                )
        restart_workers(runner.train_loop)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._received = signal.Signals(number).name

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Saves and exits after a signal, once no gradient waits for others."""
        if not self._asked(runner.iter + 1) or self._accumulating(runner):
            return
        self._save_and_exit(runner, dict(epoch=runner.epoch, iter=runner.iter + 1))

    def before_val_epoch(self, runner: Any) -> None:
        """Finds how many batches all ranks have: only so often can they ask each other."""
        if self._before and get_world_size() > 1:
            self._common_batches = _reduce(len(runner.val_dataloader), 'min')

    def after_val_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Does so during a validation between epochs or iterations."""
        if not self._before:
            return
        if get_world_size() > 1 and batch_idx >= self._common_batches:
            return
        if not self._asked(batch_idx + 1) or self._accumulating(runner):
            return
        for hook in runner.hooks:
            if isinstance(hook, EMAHook):
                hook.after_val_epoch(runner)  # the averaged weights are in the model's place
        self._save_and_exit(runner, dict(epoch=runner.epoch, iter=runner.iter))

    def after_train(self, runner: Any) -> None:
        """Puts the handlers back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _asked(self, count: int) -> bool:
        """Whether a signal came, to any of the ranks."""
        if get_world_size() == 1:
            return self._received is not None
        # All ranks have the same answer, also where they cannot stop yet.
        if not self._stopping and count % self.interval == 0:
            self._stopping = bool(_reduce(int(self._received is not None), 'max'))
        return self._stopping

    def _accumulating(self, runner: Any) -> bool:
        if not hasattr(runner.optim_wrapper, 'should_update'):
            return False
        return get_world_size() > 1 and not runner.optim_wrapper.should_update()

    def _save_and_exit(self, runner: Any, meta: dict[str, int]) -> None:
        hook = next(h for h in runner.hooks if isinstance(h, AtomicCheckpointHook))
        path = hook.save_interrupted(runner, meta)
        name = self._received or 'a signal to another process'
        runner.logger.warning(
            f'{name}: saved {path} after iteration {meta["iter"]} and stopped; go on with --resume'
        )
        # The handlers stay: a second signal, on the way out, does not change the status.
        raise SystemExit(self.exit_code)


def _reduce(number: int, operation: str) -> int:
    """The least or the greatest of the ranks' numbers."""
    device = 'cuda' if torch.distributed.get_backend() == 'nccl' else 'cpu'
    value = torch.tensor(number, device=device)
    all_reduce(value, operation)
    return int(value.item())
