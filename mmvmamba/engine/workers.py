"""Data-loading processes that a signal to all processes of a job leaves alone."""

from __future__ import annotations

import copy
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Collection
from functools import partial
from multiprocessing.context import BaseContext, ForkProcess, ForkServerProcess, SpawnProcess
from typing import Any

from torch.utils.data import DataLoader


def shield_workers(loader: DataLoader, signals: Collection[signal.Signals]) -> None:
    """Lets the workers that a loader will start work on when signals reach them too.

    Of PyTorch's workers SIGTERM ends those that it reaches, unless their parent sent it, and the
    parent then fails in the middle of a step. torchrun signals the process group of a rank, and
    Slurm all processes. Its parent's SIGTERM, or its end, still ends a worker.

    A worker is safe from its first instruction on. One of a fork server is from where PyTorch's
    code begins, and only if its imports have started no threads.

    Args:
        loader (DataLoader): The loader; its ``worker_init_fn`` is called as before.
        signals (Collection[signal.Signals]): What the parent heeds.
    """
    if not hasattr(signal, 'sigwaitinfo'):  # macOS
        return
    init_fn = loader.worker_init_fn
    if loader.num_workers == 0 or getattr(init_fn, 'func', None) is _init_worker:
        return
    signals = list(signals)
    loader.worker_init_fn = partial(_init_worker, signals=signals, init_fn=init_fn)
    context = loader.multiprocessing_context or multiprocessing.get_context()
    loader.multiprocessing_context = _blocking_context(context, signals)


def _blocking_context(context: BaseContext, signals: list[signal.Signals]) -> BaseContext:
    context = copy.copy(context)  # multiprocessing has one for all
    context.Process = partial(_PROCESSES[context.get_start_method()], signals)
    return context


class _BlockingProcess:
    """Keeps the signals waiting until somebody can ask who sent them.

    All threads of the process inherit this, also those that PyTorch starts before it calls
    ``worker_init_fn``.
    """

    def __init__(self, signals: list[signal.Signals], *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._signals = signals

    def run(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, self._signals)
        super().run()


class _BlockedProcess(_BlockingProcess):
    """Is born with the signals blocked."""

    def start(self) -> None:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, self._signals)
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _ForkProcess(_BlockedProcess, ForkProcess):
    pass


class _SpawnProcess(_BlockedProcess, SpawnProcess):
    pass


class _ForkServerProcess(_BlockingProcess, ForkServerProcess):
    # A start with the signals blocked could start the server, and so block them in all its forks.
    pass


_PROCESSES = dict(fork=_ForkProcess, spawn=_SpawnProcess, forkserver=_ForkServerProcess)


def _init_worker(
    worker_id: int, signals: list[signal.Signals], init_fn: Callable[[int], None] | None
) -> None:
    parent = multiprocessing.parent_process()  # of a fork server getppid would be another
    threading.Thread(target=_heed_parent, args=(signals, parent.pid), daemon=True).start()
    if init_fn is not None:
        init_fn(worker_id)


def _heed_parent(signals: list[signal.Signals], parent: int) -> None:
    """A handler would not learn who sent the signal; PyTorch's own knows, and asks the same."""
    while True:
        received = signal.sigwaitinfo(signals)
        if received.si_signo == signal.SIGTERM and received.si_pid == parent:
            os._exit(0)
