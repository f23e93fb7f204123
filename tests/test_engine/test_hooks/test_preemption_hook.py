"""Points at which a signal stops a run."""

import logging
import multiprocessing
import os
import signal
from types import SimpleNamespace

import pytest
from torch.utils.data import DataLoader

from mmvmamba.engine import AtomicCheckpointHook, PreemptionHook
from mmvmamba.engine.hooks import preemption_hook


@pytest.mark.parametrize(
    'arguments',
    [
        dict(signals=('SIGNONE',)),
        dict(signals='SIGTERM'),
        dict(signals=['SIGKILL']),
        dict(interval=0),
    ],
)
def test_wrong_arguments(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        PreemptionHook(**arguments)


def test_the_smallest_interval():
    assert PreemptionHook(interval=1).interval == 1


class Saved(Exception):
    pass


@pytest.fixture
def stop(monkeypatch):
    """Run iterations of two ranks; return the one after which they save."""

    def stop(interval, accumulative_counts, signalled):
        hook = PreemptionHook(interval=interval)
        asked = []

        def save(runner, meta):
            raise Saved

        def reduce(number, operation):
            asked.append(wrapper.count)
            # The other rank gets the signal.
            return max(number, int(wrapper.count >= signalled))

        monkeypatch.setattr(preemption_hook, 'get_world_size', lambda: 2)
        monkeypatch.setattr(preemption_hook, '_reduce', reduce)
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
    """They keep the answer while gradients accumulate, and do not ask again."""
    done, asked = stop(interval, accumulative_counts, signalled=interval - 1)
    assert (done, asked) == (last, [interval])


@pytest.mark.parametrize(('batches', 'last'), [(5, 4), (4, 4), (3, None)])
def test_ranks_ask_in_a_validation_as_often_as_the_shortest_allows(monkeypatch, batches, last):
    """A rank with more batches stops asking once another rank is done."""
    hook = PreemptionHook(interval=1)
    hook._save_and_exit = lambda runner, meta: saved.append(runner.batch)
    monkeypatch.setattr(preemption_hook, 'get_world_size', lambda: 2)
    answers = dict(min=batches, max=0)
    monkeypatch.setattr(preemption_hook, '_reduce', lambda number, operation: answers[operation])
    runner = SimpleNamespace(
        hooks=[AtomicCheckpointHook()],
        train_loop=None,
        val_loop=None,
        val_dataloader=range(5),
        optim_wrapper=None,
        iter=0,
        epoch=0,
    )
    saved = []
    hook.before_train(runner)
    hook.before_val_epoch(runner)
    for batch in range(5):
        runner.batch = batch + 1
        answers['max'] = int(batch >= 3)  # the other rank is signalled in its fourth batch
        if not saved:
            hook.after_val_iter(runner, batch)
    hook.after_train(runner)
    assert saved == ([] if last is None else [last])


def test_one_process_stops_at_any_batch_of_a_validation():
    """Without an interval, but only within a training run."""
    hook, saved = PreemptionHook(), []
    hook._save_and_exit = lambda runner, meta: saved.append(meta)
    runner = SimpleNamespace(
        hooks=[AtomicCheckpointHook()],
        train_loop=None,
        val_loop=None,
        optim_wrapper=None,
        iter=3,
        epoch=1,
    )
    hook.before_train(runner)
    hook.before_val_epoch(runner)
    hook.after_val_iter(runner, 0)
    assert not saved
    os.kill(os.getpid(), signal.SIGTERM)
    hook.after_val_iter(runner, 1)
    assert saved == [dict(epoch=1, iter=3)]
    hook.after_train(runner)
    hook.after_val_iter(runner, 2)
    assert len(saved) == 1


class OwnContext(multiprocessing.context.ForkContext):
    pass


@pytest.mark.parametrize('context', ['forkserver', OwnContext()], ids=['fork server', 'own'])
def test_other_contexts_are_left_alone_with_a_warning(context, caplog):
    loader = DataLoader(range(4), num_workers=1, multiprocessing_context=context)
    before = loader.multiprocessing_context
    hook = PreemptionHook()
    runner = SimpleNamespace(
        hooks=[AtomicCheckpointHook()],
        train_loop=SimpleNamespace(dataloader=loader),
        val_loop=None,
        logger=logging.getLogger('runner'),
    )
    hook.before_train(runner)
    hook.after_train(runner)
    assert loader.multiprocessing_context is before
    assert 'a signal that reaches data-loading workers ends this run' in caplog.text
