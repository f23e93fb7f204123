"""Positions among batches, randomness of samples, and replacement of bad samples."""

import random
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmdet.datasets.samplers import AspectRatioBatchSampler, MultiSourceSampler
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.structures import BaseDataElement
from mmpretrain.datasets.samplers import RepeatAugSampler
from torch.utils.data import BatchSampler, ConcatDataset, DataLoader, Dataset

from mmvmamba.engine.data import sample_check, sampling
from mmvmamba.engine.data.global_batches import Progress
from mmvmamba.engine.data.sampling import (
    PositionedBatchSampler,
    SampleIndex,
    is_endless,
    positioned_loader,
    reader_of,
    restart_sampler,
    restart_workers,
    seed_all,
    seeded,
)
from mmvmamba.engine.errors import UserError, explain

from .bad_samples import Samples


class Images(Dataset):
    """Every third image is upright, so that batches by shape depend on earlier ones."""

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
    batches = [batch for batch, _ in zip(batches, range(count), strict=False)]
    return [[i.value if isinstance(i, SampleIndex) else int(i) for i in b] for b in batches]


@pytest.mark.parametrize('kind', ['default', 'aspect', 'infinite'])
@pytest.mark.parametrize('first', [0, 1, 4])
def test_from_a_position_on(kind, first):
    """The stock sampler's batches without the first ones; the next pass has all."""
    stock = batch_sampler(kind)
    if kind != 'infinite':
        stock.sampler.set_epoch(2)
    expected = take(stock, 9)
    batches = PositionedBatchSampler(batch_sampler(kind), 3, 2, [Progress(2, first)])
    assert take(batches, 9)[: len(expected) - first] == expected[first:]
    if kind != 'infinite':
        assert take(batches, 9) == expected
        assert len(batches) == len(stock)


@pytest.mark.parametrize('kind', ['default', 'aspect', 'infinite'])
def test_the_numbers_that_a_sample_draws_from(kind):
    """Seed, epoch, number and index, which do not depend on the first position."""
    order = batch_sampler(kind).sampler
    if kind != 'infinite':
        order.set_epoch(2)
    expected = [(3, 2, n, i) for n, i in zip(range(18), order, strict=False)]
    found = {}
    for first in (0, 2):
        batches = PositionedBatchSampler(batch_sampler(kind), 3, 2, [Progress(2, first)])
        samples = [i for batch, _ in zip(batches, range(9 - first), strict=False) for i in batch]
        found[first] = [i.entropy for i in samples]
    assert sorted(found[0]) == sorted(expected)
    assert found[0][4:] == found[2]


def entropies(sampler, count, first=0, world=1):
    done = [Progress(3 * world, first)]
    batches = PositionedBatchSampler(BatchSampler(sampler, 3, False), 3, 1, done)
    return [
        i.entropy for batch, _ in zip(batches, range(count - first), strict=False) for i in batch
    ]


@pytest.mark.parametrize('world', [1, 3])
def test_repeated_images_are_augmented_anew(monkeypatch, world):
    """With repeated augmentation, an image repeats in a row or on several ranks."""
    found = []
    for rank in range(world):
        monkeypatch.setattr(
            'mmpretrain.datasets.samplers.repeat_aug.get_dist_info', lambda rank=rank: (rank, world)
        )
        monkeypatch.setattr(sampling, 'get_rank', lambda rank=rank: rank)
        monkeypatch.setattr(sampling, 'get_world_size', lambda: world)
        make = partial(RepeatAugSampler, Images(), seed=3)
        found += entropies(make(), 4)
        assert entropies(make(), 4, 1, world) == entropies(make(), 4)[3:]
    images = [entropy[-1] for entropy in found]
    assert max(map(images.count, images)) == 3
    assert len(set(found)) == len(found)


def multi_source():
    return MultiSourceSampler(ConcatDataset([Images(), Images()]), 3, [1, 2], seed=3)


def test_an_endless_sampler_of_several_sources():
    """Each repetition of an image differs, and a used sampler restarts."""
    found = entropies(multi_source(), 30)
    images = [entropy[-1] for entropy in found]
    assert max(map(images.count, images)) > 3
    assert len(set(found)) == len(found) == 90
    used = BatchSampler(multi_source(), 3, False)
    used.sampler.seed = 8
    next(iter(used))
    restart_sampler(used, seed=3)
    assert entropies(used.sampler, 30, first=7) == found[21:]


@pytest.mark.parametrize(
    ('sampler', 'endless'),
    [
        (DefaultSampler(Images()), False),
        (RepeatAugSampler(Images()), False),
        (InfiniteSampler(Images()), True),
        (multi_source(), True),
    ],
)
def test_passes_that_do_not_end(sampler, endless):
    assert is_endless(sampler) is endless


@pytest.mark.parametrize('kind', ['default', 'aspect', 'infinite'])
def test_a_loader_that_was_used_and_had_another_seed(kind):
    """As on resumption: its infinite sampler was used, with another seed."""
    dataset = Images()
    reader_of(dataset)
    used = DataLoader(dataset, batch_sampler=batch_sampler(kind, seed=8), collate_fn=list)
    next(iter(used))
    fresh = DataLoader(dataset, batch_sampler=batch_sampler(kind, seed=3), collate_fn=list)
    fresh = positioned_loader(fresh, seed=3, epoch=0)
    expected = [batch for batch, _ in zip(fresh, range(5), strict=False)]
    resumed = positioned_loader(used, seed=3, epoch=0, done=[Progress(2, 2)])
    assert [batch for batch, _ in zip(resumed, range(3), strict=False)] == expected[2:]


class EagerIterator:
    """Iterator as in MMEngine: its constructor starts to read, with workers."""

    def __init__(self, loader):
        self._iterator = iter(loader)


class LazyIterator:
    _iterator = None


@pytest.mark.parametrize('persistent', [True, False])
@pytest.mark.parametrize('kind', ['default', 'infinite'])
def test_workers_that_were_started_too_early(kind, persistent):
    """New workers see what has changed, and no batch is lost."""
    dataset = Images()
    loader = DataLoader(
        dataset,
        batch_sampler=batch_sampler(kind),
        collate_fn=list,
        num_workers=1,
        persistent_workers=persistent,
    )
    loop = SimpleNamespace(dataloader=loader, dataloader_iterator=EagerIterator(loader))
    dataset.__getitems__ = lambda indices: [('changed', i) for i in indices]
    restart_workers(loop)
    expected = next(iter(batch_sampler(kind)))
    assert next(loop.dataloader_iterator._iterator) == [('changed', i) for i in expected]


def test_workers_that_were_not_started():
    loop = SimpleNamespace(dataloader=object(), dataloader_iterator=LazyIterator())
    before = dict(vars(loop))
    restart_workers(loop)
    restart_workers(SimpleNamespace())
    assert vars(loop) == before


def draw():
    return random.random(), np.random.rand(), torch.rand(3).tolist()


def test_seeded():
    """Equal entropy gives equal numbers, and the global generators do not change."""
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


def read(dataset, skip, workers, indices):
    reader_of(dataset).skip = skip
    batches = [[SampleIndex(i, (5, 0, i)) for i in indices]]
    loader = DataLoader(
        dataset, batch_sampler=batches, num_workers=workers, collate_fn=lambda batch: batch
    )
    return next(iter(loader))


@pytest.mark.parametrize('workers', [0, 1])
def test_skip(workers):
    """The replacement is reproducible and carries the name of the bad sample."""
    good, replaced = read(Samples(), True, workers, [1, 3])
    assert 'bad_samples' not in good['data_samples'].metainfo
    (message,) = {text for text in replaced['data_samples'].metainfo['bad_samples'] if '/3' in text}
    assert message == "bad sample 'images/3.jpg': OSError: cannot be decoded"
    again = read(Samples(), True, 1 - workers, [3])[0]
    assert again['inputs'] == replaced['inputs']
    assert replaced['inputs'][0] not in (3, 4)


@pytest.mark.parametrize('workers', [0, 1])
def test_stop(workers):
    with pytest.raises(UserError, match=r"bad sample 'images/4\.jpg'") as caught:
        read(Samples(), False, workers, [1, 4])
    words = "bad sample 'images/4.jpg': OSError: cannot be decoded"
    assert explain(caught.value) == words


@pytest.mark.parametrize('skip', [True, False])
def test_files_that_cannot_be_opened(tmp_path, monkeypatch, skip):
    """They are not opened again to look for their end."""

    def refuse(file, *args):
        raise PermissionError(13, 'Permission denied', str(file))

    path = tmp_path / '3.jpg'
    path.touch()
    monkeypatch.setattr(Samples, 'get_data_info', lambda self, index: dict(img_path=str(path)))
    monkeypatch.setattr(Samples, '__getitem__', lambda self, index: good(index) or refuse(path))
    monkeypatch.setattr(sample_check, 'open', refuse, raising=False)
    words = f"bad sample '{path}': PermissionError: [Errno 13] Permission denied: '{path}'"
    if skip:
        (sample,) = read(Samples(), True, 0, [3])
        assert words in sample['data_samples'].metainfo['bad_samples']
    else:
        with pytest.raises(UserError) as caught:
            read(Samples(), False, 0, [3])
        assert str(caught.value) == words


def good(index):
    return None if index == 3 else dict(inputs=index, data_samples=BaseDataElement())


@pytest.mark.parametrize('failures', [20, 21])
def test_twenty_replacements(monkeypatch, failures):
    """The twentieth replacement is the last one."""
    replacements = iter([3] * (failures - 1) + [5])
    monkeypatch.setattr(sampling.np.random, 'randint', lambda count: next(replacements))
    if failures > 20:
        with pytest.raises(UserError, match='bad sample'):
            read(Samples(), True, 0, [3])
        return
    (sample,) = read(Samples(), True, 0, [3])
    assert sample['inputs'][0] == 5
    assert len(sample['data_samples'].bad_samples) == 20


def test_all_bad():
    with pytest.raises(UserError, match='bad sample'):
        read(Samples(bad=range(8)), True, 0, [0])
