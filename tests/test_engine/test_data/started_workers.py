"""Print the batches of a worker that outlives signals, and its exit status after SIGTERM.

The argument is the method by which the worker is started. Not a test itself: what a fork does first
stays so for a process, and a spawned worker imports its main module again.
"""

import os
import signal
import subprocess
import sys

import torch
from torch.utils.data import DataLoader

from mmvmamba.engine.data.workers import shield_workers


def signal_from_elsewhere(pid=None):
    subprocess.run(['/bin/sh', '-c', f'kill -s TERM {pid or os.getpid()}'], check=True)


class Data:
    """Dataset that signals its process on arrival in a spawned worker and at its first sample."""

    def __init__(self):
        self.first = True

    def __setstate__(self, state):
        self.__dict__ = state
        signal_from_elsewhere()

    def __len__(self):
        return 4

    def __getitem__(self, index):
        if self.first:
            signal_from_elsewhere()
        self.first = False
        return index


def main(method):
    options = dict(batch_size=2, num_workers=1, persistent_workers=True)
    loader = DataLoader(Data(), multiprocessing_context=method, **options)
    assert shield_workers(loader, [signal.SIGTERM])
    if method == 'fork':
        os.register_at_fork(after_in_child=signal_from_elsewhere)
    batches = iter(loader)
    print([batch.tolist() for batch in batches])
    (worker,) = batches._workers
    # What the loader, and at last the interpreter, do with workers that do not end.
    torch.utils.data._utils.signal_handling._remove_worker_pids(id(batches))
    batches._worker_pids_set = False
    batches._shutdown = True
    signal_from_elsewhere(worker.pid)  # still pending when the parent asks
    worker.terminate()
    worker.join()
    print(worker.exitcode)


if __name__ == '__main__':
    main(sys.argv[1])
