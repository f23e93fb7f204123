"""One order of samples for any number of processes, against a plain definition."""

from itertools import islice

import numpy as np
import pytest
from mmdet.datasets.samplers import AspectRatioBatchSampler, MultiSourceSampler
from mmengine.dataset import DefaultSampler, InfiniteSampler
from torch.utils.data import BatchSampler, ConcatDataset, Dataset

from mmvmamba.engine.data import sampling
from mmvmamba.engine.data.global_batches import (
    Progress,
    global_batches,
    global_order,
    has_global_order,
    share_of_rank,
)
from mmvmamba.engine.data.sampling import PositionedBatchSampler

SAMPLES = 23


class Images(Dataset):
    """Every third image is upright."""

    def __init__(self, count=SAMPLES):
        self.count = count

    def __len__(self):
        return self.count

    def get_data_info(self, index):
        return dict(width=3, height=4 if index % 3 == 0 else 2)


def make(batches=BatchSampler, sampler=DefaultSampler, size=2, drop_last=False, count=SAMPLES):
    return batches(sampler(Images(count), seed=3), size, drop_last)


BATCHES = pytest.mark.parametrize('batches', [BatchSampler, AspectRatioBatchSampler])
SAMPLERS = pytest.mark.parametrize('sampler', [DefaultSampler, InfiniteSampler])


def run(monkeypatch, world, done=(), steps=None, size=12, **options):
    """Return (number, index) of the samples of each step, over all ranks, in their order."""
    ranks = []
    for rank in range(world):
        monkeypatch.setattr(sampling, 'get_rank', lambda rank=rank: rank)
        monkeypatch.setattr(sampling, 'get_world_size', lambda: world)
        info = 'mmengine.dataset.sampler.get_dist_info'
        monkeypatch.setattr(info, lambda rank=rank: (rank, world))
        positioned = PositionedBatchSampler(make(size=size // world, **options), 3, 1, done)
        batches = list(islice(positioned, steps))
        if steps is None:
            assert len(batches) == len(positioned) - sum(n for _, n in done)
        ranks.append(batches)
    found = []
    for batches in zip(*ranks, strict=True):
        assert len(set(map(len, batches))) == 1, 'every rank has equally many samples'
        step = [sample.entropy[2:] for several in zip(*batches, strict=True) for sample in several]
        found.append(step)
    return found


@BATCHES
@SAMPLERS
@pytest.mark.parametrize('world', [2, 3, 4, 6, 12])
def test_the_same_order_for_any_number_of_processes(batches, sampler, world, monkeypatch):
    """Each step has the same samples with the same numbers; only the last one may be filled."""
    options = dict(batches=batches, sampler=sampler)
    steps = 9 if sampler is InfiniteSampler else None
    alone = run(monkeypatch, 1, steps=steps, **options)
    several = run(monkeypatch, world, steps=steps, **options)
    assert several[:-1] == alone[:-1]
    last = alone[-1]
    assert several[-1][: len(last)] == last
    filled = several[-1][len(last) :]
    assert len(filled) == (-len(last) % world if steps is None else 0)
    assert all(number >= SAMPLES for number, _ in filled)
    first = [int(i) for i in global_order(sampler_of_epoch_1())]
    assert [index for _, index in filled] == first[: len(filled)]


def sampler_of_epoch_1():
    sampler = DefaultSampler(Images(), seed=3)
    sampler.set_epoch(1)
    return sampler


def test_the_order_is_that_of_the_sampler_with_one_process():
    """Also for a sampler that was made for one of several processes."""
    sampler = DefaultSampler(Images(), seed=3)
    expected = list(sampler)
    sampler.rank, sampler.world_size, sampler.num_samples, sampler.total_size = 1, 4, 6, 24
    assert list(global_order(sampler)) == expected
    assert [i.number for i in global_order(sampler)] == list(range(SAMPLES))
    assert list(sampler) != expected
    endless = InfiniteSampler(Images(), seed=3)
    expected = list(islice(InfiniteSampler(Images(), seed=3), 50))
    next(iter(endless))
    endless.rank, endless.world_size = 1, 4
    assert list(islice(global_order(endless), 50)) == expected


@BATCHES
@pytest.mark.parametrize(
    'sizes',
    [[4, 2, 8], [2, 4, 6], [6, 3, 2, 1], [1, 8, 1]],
    ids=lambda sizes: '-'.join(map(str, sizes)),
)
def test_every_sample_once_in_an_epoch(batches, sizes):
    """Runs of two batches each, with other sizes, and a last one to the end."""
    done, seen = [], []
    for size in sizes:
        rest = global_batches(make(batches), size, done)
        seen += [i for batch in islice(rest, 2) for i in batch]
        done.append(Progress(size, 2))
    seen += [i for batch in global_batches(make(batches), 5, done) for i in batch]
    assert sorted(map(int, seen)) == list(range(SAMPLES))
    assert sorted(i.number for i in seen) == list(range(SAMPLES))
    if batches is BatchSampler:
        assert [i.number for i in seen] == list(range(SAMPLES))


@BATCHES
@SAMPLERS
def test_the_order_goes_on_with_other_numbers_of_processes(batches, sampler, monkeypatch):
    """A run of 2, 1 and 4 processes with one global batch is the uninterrupted one."""
    options = dict(batches=batches, sampler=sampler, size=4)
    whole = run(monkeypatch, 1, steps=5, **options)
    found = run(monkeypatch, 2, steps=2, **options)
    found += run(monkeypatch, 1, [Progress(4, 2)], steps=1, **options)
    found += run(monkeypatch, 4, [Progress(4, 3)], steps=2, **options)
    assert found == whole


def test_batches_have_one_shape_of_image(monkeypatch):
    """But for what is left at the end of the epoch."""
    steps = run(monkeypatch, 2, batches=AspectRatioBatchSampler, size=4, count=60)
    mixed = [len({index % 3 == 0 for _, index in step}) > 1 for step in steps]
    assert len(steps) == 15 and sum(mixed) <= 1 and not any(mixed[:-1])


@BATCHES
@pytest.mark.parametrize('drop_last', [False, True])
@pytest.mark.parametrize('world', [1, 2, 4])
def test_as_many_batches_as_the_loop_counts(batches, drop_last, world, monkeypatch):
    """MMEngine takes the length of the stock batch sampler of one process."""
    for count in range(1, 40):
        options = dict(batches=batches, size=8, drop_last=drop_last, count=count)
        steps = run(monkeypatch, world, **options)
        expected = len(make(**options | dict(size=8 // world)))
        assert len(steps) == expected, count
        assert all(len(step) == 8 for step in steps[: None if drop_last else -1])


def test_fewer_samples_than_processes(monkeypatch):
    """All repeat, each time with another augmentation."""
    ((*step,),) = run(monkeypatch, 8, size=8, count=3)
    assert [number for number, _ in step] == list(range(8))
    order = [index for _, index in step]
    assert sorted(order[:3]) == [0, 1, 2]
    assert order == (order[:3] * 3)[:8]


def test_shares():
    batch = list(islice(global_order(sampler_of_epoch_1()), 6))
    shares = [share_of_rank(batch, sampler_of_epoch_1(), r, 3) for r in range(3)]
    assert shares == [batch[0::3], batch[1::3], batch[2::3]]


class OwnSampler(DefaultSampler):
    """A subclass may have another order."""


class OwnBatches(BatchSampler):
    """It may repeat samples, or ask for the length of its sampler."""


def test_samplers_of_unknown_order():
    assert has_global_order(make())
    assert has_global_order(make(AspectRatioBatchSampler, InfiniteSampler))
    assert not has_global_order(make(sampler=OwnSampler))
    assert not has_global_order(make(OwnBatches))
    several = MultiSourceSampler(ConcatDataset([Images(), Images()]), 3, [1, 2], seed=3)
    assert not has_global_order(BatchSampler(several, 3, False))


@pytest.mark.parametrize('done', [[], [Progress(8, 1)], [Progress(2, 3), Progress(8, 1)]])
def test_a_sampler_of_its_own_keeps_its_batches(done, monkeypatch):
    """A resumed run continues at the batch of the same number of samples."""
    monkeypatch.setattr(sampling, 'get_world_size', lambda: 2)
    monkeypatch.setattr(sampling, 'get_rank', lambda: 1)
    stock = make(sampler=OwnSampler, size=4)
    stock.sampler.set_epoch(1)
    first = sum(np.prod(progress) for progress in done) // 8
    found = list(PositionedBatchSampler(make(sampler=OwnSampler, size=4), 3, 1, done))
    assert [[i.value for i in batch] for batch in found] == list(stock)[first:]
    numbers = [i.entropy[2] for batch in found for i in batch]
    assert numbers == list(range(1 + 8 * first, 2 * SAMPLES, 2))
