"""Workers that outlive signals of other processes than their parent."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from mmvmamba.engine.data.workers import shield_workers


class Slow:
    def __len__(self):
        return 16

    def __getitem__(self, index):
        time.sleep(0.05)
        return index


BATCHES = [[i, i + 1] for i in range(0, 16, 2)]


def loader_of(signals):
    loader = DataLoader(Slow(), batch_size=2, num_workers=2, multiprocessing_context='fork')
    assert shield_workers(loader, signals)
    assert shield_workers(loader, signals)  # training may begin twice
    return loader


def first_of_each(batches):
    """Return a batch of each worker, so that both have started."""
    return [next(batches) for _ in batches._workers]


def signal_from_elsewhere(number, *pids):
    command = f'kill -s {number.name.removeprefix("SIG")} {" ".join(map(str, pids))}'
    subprocess.run(['/bin/sh', '-c', command], check=True)


@pytest.fixture
def several_threads():
    """Make workers start threads of PyTorch before they call worker_init_fn."""
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures('several_threads')
def test_workers_outlive_signals_of_others():
    """Any number of the signals that the parent handles."""
    signals = [signal.SIGTERM, signal.SIGUSR1]
    batches = iter(loader_of(signals))
    found = first_of_each(batches)
    pids = [worker.pid for worker in batches._workers]
    for number in signals * 2:
        signal_from_elsewhere(number, *pids)
    for pid in pids:  # of the parent only SIGTERM ends them
        os.kill(pid, signal.SIGUSR1)
    found += list(batches)
    assert [batch.tolist() for batch in found] == BATCHES


def test_workers_outlive_signals_before_their_init_fn(monkeypatch):
    def set_num_threads(count):  # the worker calls it once it has its own handlers
        signal_from_elsewhere(signal.SIGTERM, os.getpid())

    monkeypatch.setattr(torch, 'set_num_threads', set_num_threads)
    found = list(loader_of([signal.SIGTERM]))
    assert [batch.tolist() for batch in found] == BATCHES


@pytest.mark.parametrize('method', ['fork', 'spawn'])
def test_workers_outlive_signals_from_their_birth_and_end_at_their_parents_wish(method):
    script = Path(__file__).with_name('started_workers.py')
    command = [sys.executable, str(script), method]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.stdout == '[[0, 1], [2, 3]]\n0\n', done.stderr


def blocked():
    return signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_the_parent_hears_its_signals_as_before():
    assert signal.SIGTERM not in blocked()
    context = multiprocessing.get_context('fork')
    process = context.Process
    list(loader_of([signal.SIGTERM]))
    assert signal.SIGTERM not in blocked()
    assert context.Process is process


def test_a_handler_that_raises_at_a_start_leaves_nothing_blocked(monkeypatch):
    worker = loader_of([signal.SIGTERM]).multiprocessing_context.Process()
    change = signal.pthread_sigmask

    def interrupted(how, signals):
        before = change(how, signals)
        if how == signal.SIG_BLOCK and signals:
            raise KeyboardInterrupt
        return before

    with monkeypatch.context() as patch:
        patch.setattr(signal, 'pthread_sigmask', interrupted)
        with pytest.raises(KeyboardInterrupt):
            worker.start()
    assert signal.SIGTERM not in blocked()


def test_a_loader_without_workers_needs_nothing():
    loader = DataLoader(Slow(), batch_size=2)
    assert shield_workers(loader, [signal.SIGTERM])
    assert loader.multiprocessing_context is None
