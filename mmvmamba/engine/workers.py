"""Data-loading processes that a signal to all processes of a job leaves alone."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Collection
from functools import partial

from torch.utils.data import DataLoader


def shield_workers(loader: DataLoader, signals: Collection[signal.Signals]) -> None:
    """Lets the workers that a loader will start work on when signals reach them too.

    Of PyTorch's workers SIGTERM ends those that it reaches, unless their parent sent it, and the
    parent then fails in the middle of a step. torchrun signals the process group of a rank, and
    Slurm all processes. Its parent's SIGTERM, or its end, still ends a worker.

    Args:
        loader (DataLoader): The loader; its ``worker_init_fn`` is called as before.
        signals (Collection[signal.Signals]): What the parent heeds.
    """
    if not hasattr(signal, 'sigwaitinfo'):  # macOS
        return
    init_fn = loader.worker_init_fn
    if getattr(init_fn, 'func', None) is not _init_worker:
        loader.worker_init_fn = partial(_init_worker, signals=list(signals), init_fn=init_fn)


def _init_worker(
    worker_id: int, signals: list[signal.Signals], init_fn: Callable[[int], None] | None
) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    threading.Thread(target=_heed_parent, args=(signals, os.getppid()), daemon=True).start()
    if init_fn is not None:
        init_fn(worker_id)


def _heed_parent(signals: list[signal.Signals], parent: int) -> None:
    """A handler would not learn who sent the signal; PyTorch's own knows, and asks the same."""
    while True:
        received = signal.sigwaitinfo(signals)
        if received.si_signo == signal.SIGTERM and received.si_pid == parent:
            os._exit(0)
