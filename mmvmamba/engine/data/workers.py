"""Data-loading processes that a signal to all processes of a job leaves alone."""

from __future__ import annotations

import copy
import multiprocessing
import os
import signal
import threading
from collections.abc import Collection
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.context import BaseContext
from typing import Any

from torch.utils.data import DataLoader


def shield_workers(loader: DataLoader, signals: Collection[signal.Signals]) -> bool:
    """Lets the workers that a loader will start work on when signals reach them too.

    Of PyTorch's workers SIGTERM ends those that it reaches, unless their parent sent it, and the
    parent then fails in the middle of a step. torchrun signals the process group of a rank, and
    Slurm all processes. Its parent's SIGTERM, or its end, still ends a worker.

    Workers are forked or spawned with the signals blocked, and so are the programs that a data set
    starts in them: those need SIGKILL, not SIGTERM, to end.

    Args:
        loader (DataLoader): The loader.
        signals (Collection[signal.Signals]): What the parent heeds.

    Returns:
        bool: Whether workers outlive the signals; not those of a fork server, which the signals
        end, nor those of a system without ``sigwaitinfo`` or of other multiprocessing contexts.
    """
    if loader.num_workers == 0:
        return True
    context = loader.multiprocessing_context or multiprocessing.get_context()
    if isinstance(context.Process, partial):
        return True
    process = _PROCESSES.get(type(context))
    if process is None:
        return False
    context = copy.copy(context)  # multiprocessing has one for all
    context.Process = partial(process, list(signals))
    loader.multiprocessing_context = context
    return True


class _ShieldedProcess:
    """Is born with signals blocked, which wait until a thread can ask who sent them.

    What is blocked at birth is so in all threads of the process, also in those that PyTorch starts
    before it calls ``worker_init_fn``.
    """

    def __init__(self, signals: list[signal.Signals], *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._signals = signals

    def start(self) -> None:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
        try:  # a handler may raise in the call that blocks
            signal.pthread_sigmask(signal.SIG_BLOCK, self._signals)
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def run(self) -> None:
        parent = multiprocessing.parent_process().pid
        threading.Thread(target=_heed_parent, args=(self._signals, parent), daemon=True).start()
        super().run()


def _heed_parent(signals: list[signal.Signals], parent: int) -> None:
    """A handler would not learn who sent the signal; PyTorch's own knows, and asks the same."""
    while True:
        received = signal.sigwaitinfo(signals)
        if received.si_signo == signal.SIGTERM and received.si_pid == parent:
            os._exit(0)


_PROCESSES: dict[type[BaseContext], type[_ShieldedProcess]] = {}
if hasattr(signal, 'sigwaitinfo'):  # neither macOS nor Windows
    from multiprocessing.context import ForkContext, ForkProcess, SpawnContext, SpawnProcess

    class _ForkedWorker(_ShieldedProcess, ForkProcess):
        pass

    class _SpawnedWorker(_ShieldedProcess, SpawnProcess):
        def start(self) -> None:
            resource_tracker.ensure_running()  # to start it in between would unblock SIGTERM
            super().start()

    _PROCESSES = {ForkContext: _ForkedWorker, SpawnContext: _SpawnedWorker}
