"""When a signal stops a run, and the data-loading processes that it leaves alone."""

import os
import signal
import subprocess
import time
from types import SimpleNamespace

import pytest
from torch.utils.data import DataLoader

from mmvmamba.engine import PreemptionHook, preemption
from mmvmamba.engine.workers import shield_workers


@pytest.mark.parametrize('arguments', [dict(signals=('SIGNONE',)), dict(interval=0)])
def test_wrong_arguments(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        PreemptionHook(**arguments)


class Saved(Exception):
    pass


@pytest.fixture
def stop(monkeypatch):
    """Runs iterations of two ranks; returns after which one they save."""

    def stop(interval, accumulative_counts, signalled):
        hook = PreemptionHook(interval=interval)
        asked = []

        def save(runner, meta):
            raise Saved

        def reduce(number, operation):
            asked.append(wrapper.count)
            # The other rank gets the signal.
            return max(number, int(wrapper.count >= signalled))

        monkeypatch.setattr(preemption, 'get_world_size', lambda: 2)
        monkeypatch.setattr(preemption, '_reduce', reduce)
        hook._save_and_exit = save
        wrapper = SimpleNamespace(count=0)
        wrapper.should_update = lambda: wrapper.count % accumulative_counts == 0
        runner = SimpleNamespace(iter=0, epoch=0, optim_wrapper=wrapper)
        for runner.iter in range(100):
            wrapper.count = runner.iter + 1
            try:
                hook.after_train_iter(runner, runner.iter)
            except Saved:
                return wrapper.count, asked
        return None, asked

    return stop


@pytest.mark.parametrize(
    ('interval', 'accumulative_counts', 'last'),
    [(10, 1, 10), (10, 16, 16), (4, 6, 6), (7, 3, 9)],
)
def test_ranks_stop_at_the_next_update(stop, interval, accumulative_counts, last):
    """They keep the answer while gradients wait, and ask no more."""
    done, asked = stop(interval, accumulative_counts, signalled=interval - 1)
    assert (done, asked) == (last, [interval])


# ---- workers ----


class Slow:
    def __len__(self):
        return 16

    def __getitem__(self, index):
        time.sleep(0.05)
        return index


def seen(worker_id):
    os.environ['SEEN'] = str(worker_id)


def loader_of(signals, **options):
    loader = DataLoader(Slow(), batch_size=2, num_workers=2, worker_init_fn=seen, **options)
    shield_workers(loader, signals)
    shield_workers(loader, signals)  # training may begin twice
    return loader


def first_of_each(batches):
    """A batch of each worker: both have begun."""
    return [next(batches) for _ in batches._workers]


def test_workers_outlive_signals_of_others():
    """As many as come; the numbers are those that the parent heeds."""
    signals = [signal.SIGTERM, signal.SIGUSR1]
    batches = iter(loader_of(signals))
    found = first_of_each(batches)
    pids = [str(worker.pid) for worker in batches._workers]
    for number in signals * 2:
        subprocess.run(['/bin/sh', '-c', f'kill -s {number.name[3:]} {" ".join(pids)}'], check=True)
    for worker in batches._workers:  # of this one they heed SIGTERM alone
        os.kill(worker.pid, signal.SIGUSR1)
    found += list(batches)
    assert [batch.tolist() for batch in found] == [[i, i + 1] for i in range(0, 16, 2)]


def test_workers_end_at_their_parents_wish():
    batches = iter(loader_of([signal.SIGTERM], persistent_workers=True))
    first_of_each(batches)
    workers = batches._workers
    # What the loader, and at last the interpreter, do with workers that do not end.
    batches._shutdown = True
    from torch.utils.data._utils import signal_handling

    signal_handling._remove_worker_pids(id(batches))
    batches._worker_pids_set = False
    for worker in workers:
        worker.terminate()
        worker.join(10)
    assert [worker.exitcode for worker in workers] == [0, 0]
