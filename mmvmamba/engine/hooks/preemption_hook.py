"""Handling of SIGTERM: save and exit when a cluster takes the machine away."""

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
    """Save ``interrupted.pth`` on SIGTERM and exit; ``--resume`` continues with the next batch.

    Requires :class:`AtomicCheckpointHook`, which saves the file.

    Args:
        signals (Sequence[str]): Names of the signals to handle; a Slurm job with
            ``--signal=USR1@120`` needs ``('SIGTERM', 'SIGUSR1')``. Defaults to ``('SIGTERM',)``.
        interval (int): With several processes, the number of iterations, or of validation batches,
            after which they exchange their signals. Defaults to 10.
        exit_code (int): The exit status of the process. Defaults to 0.

    Raises:
        ValueError: If a signal is unknown or ``interval`` is not positive.
    """

    priority = 'LOWEST'  # after hooks that change what is saved

    def __init__(
        self, signals: Sequence[str] = ('SIGTERM',), interval: int = 10, exit_code: int = 0
    ) -> None:
        allowed = signal.Signals.__members__.keys() - {'SIGKILL', 'SIGSTOP'}
        if isinstance(signals, str) or not allowed.issuperset(signals):
            raise ValueError(
                "signals must be names of signals that can be caught, such as ('SIGTERM', "
                f"'SIGUSR1'), but got {signals!r}"
            )
        if interval < 1:
            raise ValueError(f'interval must be positive, but got {interval}')
        self.signals = [signal.Signals[name] for name in signals]
        self.interval = interval
        self.exit_code = exit_code
        self._received: str | None = None
        self._stopping = False
        self._handlers_before: dict[signal.Signals, Any] = {}
        self._common_batches = 0

    def before_train(self, runner: Any) -> None:
        """Install the signal handlers and shield the data-loading workers."""
        if not any(isinstance(hook, AtomicCheckpointHook) for hook in runner.hooks):
            raise UserError(
                'PreemptionHook requires default_hooks.checkpoint.type to be AtomicCheckpointHook'
            )
        if threading.current_thread() is not threading.main_thread():
            runner.logger.warning('signals can only be handled in the main thread')
            return
        for number in self.signals:
            self._handlers_before[number] = signal.signal(number, self._on_signal)
        for loop in (runner.train_loop, runner.val_loop):
            loader = getattr(loop, 'dataloader', None)
            if isinstance(loader, DataLoader) and not shield_workers(loader, self.signals):
                runner.logger.warning(
                    'a signal that reaches data-loading workers ends this run: workers can only be '
                    'shielded on Linux, with the start methods fork and spawn'
                )
        restart_workers(runner.train_loop)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._received = signal.Signals(number).name

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Save and exit after a signal; several processes first finish an accumulated step."""
        if self._must_stop(runner.iter + 1) and not _has_rank_gradients(runner):
            self._save_and_exit(runner, dict(epoch=runner.epoch, iter=runner.iter + 1))

    def before_val_epoch(self, runner: Any) -> None:
        """Find the number of batches that all ranks share, to exchange signals equally often."""
        if self._handlers_before and get_world_size() > 1:
            self._common_batches = _reduce(len(runner.val_dataloader), 'min')

    def after_val_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Save and exit after a signal during a validation, within a training run."""
        can_exchange = get_world_size() == 1 or batch_idx < self._common_batches
        if not self._handlers_before or not can_exchange or not self._must_stop(batch_idx + 1):
            return
        if _has_rank_gradients(runner):
            return
        for hook in runner.hooks:
            if isinstance(hook, EMAHook):
                hook.after_val_epoch(runner)  # swap the averaged weights out of the model
        self._save_and_exit(runner, dict(epoch=runner.epoch, iter=runner.iter))

    def after_train(self, runner: Any) -> None:
        for number, handler in self._handlers_before.items():
            signal.signal(number, handler)
        self._handlers_before.clear()

    def _must_stop(self, count: int) -> bool:
        """Return True if any of the ranks has received a signal."""
        if get_world_size() == 1:
            return self._received is not None
        # All ranks keep the same answer, even while they cannot stop yet.
        if not self._stopping and count % self.interval == 0:
            self._stopping = bool(_reduce(int(self._received is not None), 'max'))
        return self._stopping

    def _save_and_exit(self, runner: Any, meta: dict[str, int]) -> None:
        hook = next(h for h in runner.hooks if isinstance(h, AtomicCheckpointHook))
        path = hook.save_interrupted(runner, meta)
        name = self._received or 'signal to another process'
        runner.logger.warning(
            f'{name}: saved {path} after iteration {meta["iter"]} and stopped; continue with '
            '--resume'
        )
        # The handlers stay: a second signal during the exit does not change the exit status.
        raise SystemExit(self.exit_code)


def _has_rank_gradients(runner: Any) -> bool:
    """Return True if each rank holds gradients of its own."""
    should_update = getattr(runner.optim_wrapper, 'should_update', None)
    return get_world_size() > 1 and should_update is not None and not should_update()


def _reduce(number: int, operation: str) -> int:
    """Return the minimum or maximum over all ranks."""
    value = torch.tensor(number)
    all_reduce(value, operation)
    return int(value.item())
