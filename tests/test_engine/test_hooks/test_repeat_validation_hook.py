"""Validation before training; test_resume_hook.py and test_faults.py use whole runs."""

from types import SimpleNamespace

import pytest
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from torch.utils.data import BatchSampler, SequentialSampler

from mmvmamba.engine import RepeatValidationHook
from mmvmamba.engine.data.global_batches import Progress
from mmvmamba.engine.data.sampling import PositionedBatchSampler

BATCHES = BatchSampler(SequentialSampler(range(8)), 2, drop_last=False)


def loop_of(kind, **settings):
    """Make a loop without a runner."""
    loop = object.__new__(kind)
    loop.dynamic_milestones = None
    loop._decide_current_val_interval = lambda: None
    for name, value in settings.items():
        setattr(loop, name, value)
    return loop


@pytest.fixture
def validates(tmp_path):
    """Return True if a run validates before it trains, given the iteration in the file."""

    def validates(loop, done=None, batches=(), resume=True, validation=True):
        path = tmp_path / 'last_validation'
        if done is not None:
            path.write_text(str(done))
        runs = []
        runner = SimpleNamespace(
            work_dir=str(tmp_path),
            train_loop=loop,
            iter=loop._iter,
            _resume=resume,
            val_loop=SimpleNamespace(run=lambda: runs.append(1)) if validation else None,
            logger=SimpleNamespace(info=print),
        )
        loop.dataloader = SimpleNamespace(
            batch_sampler=PositionedBatchSampler(BATCHES, 0, 0, batches)
        )
        RepeatValidationHook().before_train(runner)
        return bool(runs)

    return validates


def by_iteration(iteration, begin=1, interval=4, end=20):
    return loop_of(
        IterBasedTrainLoop, _iter=iteration, val_begin=begin, val_interval=interval, _max_iters=end
    )


def by_epoch(epoch, begin=1, interval=2, end=5):
    return loop_of(
        EpochBasedTrainLoop,
        _iter=3 * epoch,
        _epoch=epoch,
        val_begin=begin,
        val_interval=interval,
        _max_epochs=end,
    )


LOOPS = pytest.mark.parametrize('make', [by_iteration, by_epoch])


@LOOPS
def test_the_interval(make, validates):
    found = [validates(make(n, interval=4, end=20)) for n in range(1, 10)]
    assert found == [n in (4, 8) for n in range(1, 10)]


@LOOPS
def test_the_first_one(make, validates):
    found = [validates(make(n, begin=3, interval=1)) for n in range(1, 5)]
    assert found == [False, False, True, True]


@LOOPS
def test_the_end(make, validates):
    found = [validates(make(n, interval=4, end=6)) for n in range(4, 8)]
    assert found == [True, False, True, False]


def test_within_an_epoch(validates):
    assert validates(by_epoch(2, interval=2), batches=())
    assert not validates(by_epoch(2, interval=2), batches=[Progress(2, 1)])
    assert validates(by_iteration(4, interval=4), batches=[Progress(2, 1)])


@pytest.mark.parametrize(('done', 'expected'), [(None, True), (4, True), (7, True), (8, False)])
def test_one_that_was_done(validates, tmp_path, done, expected):
    assert validates(by_iteration(8), done=done) is expected
    assert (tmp_path / 'last_validation').exists() is (done is not None)


@pytest.mark.parametrize('content', [b'', b'x', b'\xff\xfe'])
def test_a_damaged_file(validates, tmp_path, content):
    (tmp_path / 'last_validation').write_bytes(content)
    assert validates(by_iteration(8))


def test_one_of_iterations_that_are_done_again(validates, tmp_path):
    """A file of a run beyond this checkpoint is removed."""
    assert validates(by_iteration(8), done=9)
    assert not (tmp_path / 'last_validation').exists()


def test_a_new_run(validates, tmp_path):
    assert not validates(by_iteration(8), done=4, resume=False)
    assert not (tmp_path / 'last_validation').exists()


def test_a_run_without_validation(validates):
    assert not validates(by_iteration(8), validation=False)


def test_the_file(tmp_path):
    """It names the last validation of a training run."""
    hook = RepeatValidationHook()
    runner = SimpleNamespace(work_dir=str(tmp_path), iter=0, _resume=False, val_loop=None)
    hook.after_val_epoch(runner)
    assert not (tmp_path / 'last_validation').exists()
    hook.before_train(runner)
    for runner.iter in (4, 8):
        hook.after_val_epoch(runner)
        assert (tmp_path / 'last_validation').read_text() == str(runner.iter)
