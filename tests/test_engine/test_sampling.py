"""Positions among batches, and the randomness of samples."""

import pickle
import random

import numpy as np
import pytest
import torch
from mmdet.datasets.samplers import AspectRatioBatchSampler
from mmengine.dataset import DefaultSampler, InfiniteSampler
from torch.utils.data import BatchSampler, DataLoader, Dataset

from mmvmamba.engine.sampling import (
    PositionedBatchSampler,
    SampleIndex,
    positioned_loader,
    reader_of,
    seed_all,
    seeded,
)


class Images(Dataset):
    """Every third one is upright, so that batches by shape depend on those before."""

    def __len__(self):
        return 11

    def get_data_info(self, index):
        return dict(width=3, height=4 if index % 3 == 0 else 2)

    def __getitem__(self, index):
        return index, random.random(), np.random.rand(), torch.rand(()).item()


def batch_sampler(kind, seed=3):
    sampler = (InfiniteSampler if kind == 'infinite' else DefaultSampler)(Images(), seed=seed)
    if kind == 'aspect':
        return AspectRatioBatchSampler(sampler, 2)
    return BatchSampler(sampler, 2, drop_last=False)


def take(batches, count):
    return [[int(i) for i in batch] for batch, _ in zip(batches, range(count), strict=False)]


@pytest.mark.parametrize('kind', ['default', 'aspect', 'infinite'])
@pytest.mark.parametrize('first', [0, 1, 4])
def test_from_a_position_on(kind, first):
    """The same batches as the stock sampler's, without the first; the next pass has all."""
    stock = batch_sampler(kind)
    if kind != 'infinite':
        stock.sampler.set_epoch(2)
    expected = take(stock, 9)
    batches = PositionedBatchSampler(batch_sampler(kind), seed=3, epoch=2, first=first)
    assert take(batches, 9)[: len(expected) - first] == expected[first:]
    if kind != 'infinite':
        assert take(batches, 9) == expected
        assert len(batches) == len(stock)


def test_the_numbers_that_a_sample_draws_from():
    epochs = PositionedBatchSampler(batch_sampler('default'), seed=3, epoch=2)
    assert all(i.entropy == (3, 2, int(i)) for batch in epochs for i in batch)
    endless = PositionedBatchSampler(batch_sampler('infinite'), seed=3, first=4)
    for position, batch in zip(range(4, 9), endless, strict=False):
        assert [i.entropy for i in batch] == [(3, position, int(i)) for i in batch]


@pytest.mark.parametrize('kind', ['default', 'aspect', 'infinite'])
def test_a_loader_that_was_used_and_had_another_seed(kind):
    """As on resumption: its infinite sampler has been read from, with a seed of its own."""
    dataset = Images()
    reader_of(dataset)
    used = DataLoader(dataset, batch_sampler=batch_sampler(kind, seed=8), collate_fn=list)
    next(iter(used))
    fresh = DataLoader(dataset, batch_sampler=batch_sampler(kind, seed=3), collate_fn=list)
    fresh = positioned_loader(fresh, seed=3, epoch=0, first=0)
    expected = [batch for batch, _ in zip(fresh, range(5), strict=False)]
    resumed = positioned_loader(used, seed=3, epoch=0, first=2)
    assert [batch for batch, _ in zip(resumed, range(3), strict=False)] == expected[2:]


def test_an_index_travels_to_workers():
    index = pickle.loads(pickle.dumps(SampleIndex(5, (1, 2, 5))))
    assert (index, index.entropy) == (5, (1, 2, 5))


def draw():
    return random.random(), np.random.rand(), torch.rand(3).tolist()


def test_seeded():
    """The same numbers for the same entropy, others for another, and no trace afterwards."""
    seed_all((1,))
    expected = draw()
    seed_all((1,))
    inside = []
    for entropy in ((1, 2, 3), (1, 2, 3), (1, 3, 2)):
        with seeded(entropy):
            inside.append(draw())
    assert draw() == expected
    assert inside[0] == inside[1]
    assert all(a != b for a, b in zip(inside[0], inside[2], strict=True))
