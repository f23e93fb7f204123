"""Data-loading workers that outlive signals to the whole job.

The main processes handle SIGTERM and the like in ``mmvmamba/engine/hooks/preemption_hook.py``;
this module keeps the same signals from ending their workers.
"""

import copy
import multiprocessing
import os
import signal
import threading
import weakref
from collections.abc import Collection
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.context import BaseContext
from typing import Any

from torch.utils.data import DataLoader


def shield_workers(loader: DataLoader, signals: Collection[signal.Signals]) -> bool:
    """Let the workers that a loader will start keep working when signals reach them.

    torchrun signals the process group of a rank, and Slurm all processes. SIGTERM ends a worker of
    PyTorch unless its parent sent it, and the parent then fails in the middle of a step. A shielded
    worker ends only with its parent, or when its parent terminates it.

    Workers are forked or spawned with the signals blocked, and so are the programs that a dataset
    starts in them: only SIGKILL ends those.

    Returns:
        bool: True if the workers outlive the signals. Workers of a fork server or of other
        multiprocessing contexts do not, nor do any on a system without real-time signals.
    """
    if loader.num_workers == 0:
        return True
    context = loader.multiprocessing_context or multiprocessing.get_context()
    if isinstance(context.Process, partial):
        return True
    process = _PROCESSES.get(type(context))
    if process is None:
        return False
    context = copy.copy(context)  # multiprocessing shares one
    context.Process = partial(process, signals)
    loader.multiprocessing_context = context
    return True


class _ShieldedProcess:
    """Process that starts with signals blocked, and that its parent ends with SIGRTMIN.

    SIGTERM cannot serve both purposes: a pending one from another sender would hide the parent's.
    Signals blocked at the start are blocked in all threads of the process, including those that
    PyTorch starts before it calls ``worker_init_fn``.
    """

    def __init__(self, signals: Collection[signal.Signals], *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._blocked = [*signals, signal.SIGRTMIN]

    def start(self) -> None:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
        try:  # a handler may raise inside the call that blocks
            signal.pthread_sigmask(signal.SIG_BLOCK, self._blocked)
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        # Process.terminate and the exit of the interpreter call this one. A strong reference would
        # be a cycle, which keeps the pipes of finished workers open.
        self._popen.terminate = partial(_request_exit, weakref.proxy(self._popen))

    def run(self) -> None:
        threading.Thread(target=_exit_on_request, daemon=True).start()
        super().run()


def _request_exit(popen: Any) -> None:
    if popen.poll() is None:
        os.kill(popen.pid, signal.SIGRTMIN)


def _exit_on_request() -> None:
    signal.sigwait([signal.SIGRTMIN])
    os._exit(0)


_PROCESSES: dict[type[BaseContext], type[_ShieldedProcess]] = {}
if hasattr(signal, 'SIGRTMIN'):  # neither macOS nor Windows
    from multiprocessing.context import ForkContext, ForkProcess, SpawnContext, SpawnProcess

    class _ForkedWorker(_ShieldedProcess, ForkProcess):
        pass

    class _SpawnedWorker(_ShieldedProcess, SpawnProcess):
        def start(self) -> None:
            resource_tracker.ensure_running()  # starting it later would unblock SIGTERM
            super().start()

    _PROCESSES = {ForkContext: _ForkedWorker, SpawnContext: _SpawnedWorker}
