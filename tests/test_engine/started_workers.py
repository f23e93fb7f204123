"""Prints the batches of a worker that outlives signals: METHOD is how it is started.

Not a test itself: a worker that does not begin as a fork imports its main module again.
"""

import os
import signal
import subprocess
import sys

import torch
from torch.utils.data import DataLoader

from mmvmamba.engine.workers import shield_workers


def signal_from_elsewhere():
    subprocess.run(['/bin/sh', '-c', f'kill -s TERM {os.getpid()}'], check=True)


class Data:
    """A spawned worker is signalled before all else, and at its first sample.

    With a fork server the main thread blocks the signal; whether imports have started others
    depends on the versions of the libraries.
    """

    def __init__(self):
        self.first = True

    def __setstate__(self, state):
        self.__dict__ = state
        if sys.argv[1] == 'spawn':
            signal_from_elsewhere()

    def __len__(self):
        return 4

    def __getitem__(self, index):
        assert signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, [])
        if self.first and sys.argv[1] == 'spawn':
            signal_from_elsewhere()
        self.first = False
        return index


if __name__ == '__main__':
    torch.set_num_threads(1)
    loader = DataLoader(Data(), batch_size=2, num_workers=1, multiprocessing_context=sys.argv[1])
    shield_workers(loader, [signal.SIGTERM])
    print([batch.tolist() for batch in loader])
