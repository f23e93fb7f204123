"""Batches that start at a given position, with reproducible randomness for each sample."""

from __future__ import annotations

import copy
import itertools
import os
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.dataset import InfiniteSampler
from mmengine.dist import get_rank, get_world_size
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset

from mmvmamba.engine.errors import UserError

from .global_batches import (
    NumberedIndex,
    Progress,
    global_batches,
    has_global_order,
    share_of_rank,
)
from .sample_check import is_truncated

#: Failed replacements of one sample after which the cause cannot be the data.
_MAX_REPLACEMENTS = 20


class SampleIndex(NamedTuple):
    """Index of a sample, and the numbers from which its randomness is drawn."""

    value: int
    entropy: tuple[int, ...]  # seed, epoch, number in the epoch, and index


def seed_all(entropy: Sequence[int], cpu_only: bool = False) -> None:
    """Seed Python, NumPy and PyTorch; ``cpu_only`` leaves the generators of GPUs alone."""
    words = [int(word) for word in np.random.SeedSequence(entropy).generate_state(4)]
    random.seed(words[0])
    np.random.seed(words[1])
    seed_torch = torch.default_generator.manual_seed if cpu_only else torch.manual_seed
    seed_torch(words[2] << 32 | words[3])


@contextmanager
def seeded(entropy: Sequence[int]) -> Iterator[None]:
    """Run with seeded generators on the CPU, and restore their states afterwards."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=()):
        seed_all(entropy, cpu_only=True)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


class PositionedBatchSampler:
    """Wrap a batch sampler and skip the batches of the epoch that are already done.

    The order of the samples is the same for any number of processes with the same global batch, the
    batches of all processes together: each process takes its share of a global batch. Samplers that
    :func:`has_global_order` refuses keep their own batches for each process.

    A sampler may repeat an index, in a finite or an endless pass. Each repetition has another
    number in the epoch, and so another augmentation.
    """

    def __init__(
        self, batch_sampler: BatchSampler, seed: int, epoch: int, done: Sequence[Progress] = ()
    ) -> None:
        self.batch_sampler = batch_sampler
        self.sampler = batch_sampler.sampler  # whose set_epoch MMEngine calls
        self.batch_size = getattr(batch_sampler, 'batch_size', None)
        self.seed = seed
        self.done = tuple(done)
        self.set_epoch(epoch)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next pass, here and in the sampler."""
        self.epoch = epoch
        if hasattr(self.sampler, 'set_epoch'):
            self.sampler.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[list[SampleIndex]]:
        done, self.done = self.done, ()
        self.set_epoch(self.epoch)  # DistSamplerSeedHook sets 0 in an iteration-based loop
        origin = self.seed, self.epoch
        batches = self._shares if has_global_order(self.batch_sampler) else self._own_batches
        for batch in batches(done):
            yield [SampleIndex(int(i), (*origin, i.number, int(i))) for i in batch]

    def _shares(self, done: Sequence[Progress]) -> Iterator[list[NumberedIndex]]:
        rank, world_size = get_rank(), get_world_size()
        for batch in global_batches(self.batch_sampler, self.batch_size * world_size, done):
            share = share_of_rank(batch, self.sampler, rank, world_size)
            if len(share) == self.batch_size or not self.batch_sampler.drop_last:
                yield share

    def _own_batches(self, done: Sequence[Progress]) -> Iterator[list[NumberedIndex]]:
        rank, world_size = get_rank(), get_world_size()
        first = sum(progress.samples for progress in done) // ((self.batch_size or 1) * world_size)
        # Samples of several processes have different numbers.
        numbers = itertools.count(rank, world_size)
        # A batch may depend on those before it, so the skipped ones are generated too.
        for position, batch in enumerate(self.batch_sampler):
            numbered = [NumberedIndex.of(i, next(numbers)) for i in batch]
            if position >= first:
                yield numbered


def is_endless(sampler: Any) -> bool:
    """Return True for MMEngine's InfiniteSampler and mmdet's MultiSourceSampler."""
    return isinstance(sampler, InfiniteSampler) or hasattr(sampler, 'source2inds')


def restart_sampler(batch_sampler: BatchSampler, seed: int | None) -> None:
    """Reset a sampler to its beginning and set its seed."""
    # MMEngine starts to read in the constructor of the loop; mmdet's batch sampler then keeps the
    # images that wait for others of their shape.
    for bucket in getattr(batch_sampler, '_aspect_ratio_buckets', ()):
        bucket.clear()
    sampler = batch_sampler.sampler
    if isinstance(sampler, InfiniteSampler):
        # It keeps one iterator over its indices, which a data loader may have started.
        InfiniteSampler.__init__(sampler, sampler.dataset, sampler.shuffle, seed)
    elif hasattr(sampler, 'seed'):
        sampler.seed = seed
    if hasattr(sampler, 'source2inds'):  # mmdet's MultiSourceSampler keeps one for each source
        sampler.source2inds = {
            source: sampler._indices_of_rank(len(dataset))
            for source, dataset in enumerate(sampler.dataset.datasets)
        }


def can_be_positioned(loader: DataLoader) -> bool:
    """Return True if the samples of a loader have indices and come in batches."""
    return not isinstance(loader.dataset, IterableDataset) and loader.batch_sampler is not None


def positioned_loader(
    loader: DataLoader, seed: int, epoch: int, done: Sequence[Progress] = ()
) -> DataLoader:
    """Return a copy of a data loader that goes on after the batches of an epoch that are done."""
    restart_sampler(loader.batch_sampler, seed)
    return _with_batches(loader, PositionedBatchSampler(loader.batch_sampler, seed, epoch, done))


def restart_workers(loop: Any) -> None:
    """Restart the workers of a training loop, so that they see what hooks have changed.

    MMEngine starts them in the constructor of an iteration-based loop.
    """
    iterator = getattr(loop, 'dataloader_iterator', None)
    if getattr(iterator, '_iterator', None) is None or not can_be_positioned(loop.dataloader):
        return
    batch_sampler = loop.dataloader.batch_sampler
    restart_sampler(batch_sampler, getattr(batch_sampler.sampler, 'seed', None))
    loop.dataloader = _with_batches(loop.dataloader, batch_sampler)
    loop.dataloader_iterator = type(iterator)(loop.dataloader)


def _with_batches(loader: DataLoader, batch_sampler: Any) -> DataLoader:
    """Return a copy of a data loader with other batches, and without workers yet."""
    loader = copy.copy(loader)
    # DataLoader forbids assigning batch_sampler after construction.
    vars(loader).update(batch_sampler=batch_sampler, _iterator=None)
    return loader


def reader_of(dataset: Any) -> SampleReader:
    """Return the reader of a dataset, after installing one if there is none."""
    reader = vars(dataset).get('__getitems__')
    if not isinstance(reader, SampleReader):
        reader = dataset.__getitems__ = SampleReader(dataset)
    return reader


class SampleReader:
    """Read the samples of a batch, each with the randomness of its index.

    It replaces ``__getitems__`` of a dataset, which PyTorch's data loader calls. A sample that
    cannot be read raises a ``UserError``, or with ``skip`` is replaced by another one,
    whose meta information ``bad_samples`` describes it.
    """

    def __init__(self, dataset: Dataset, skip: bool = False) -> None:
        self.dataset = dataset
        self.skip = skip

    def __call__(self, indices: Sequence[int | SampleIndex]) -> list[Any]:
        return [self._read_seeded(index) for index in indices]

    def _read_seeded(self, index: int | SampleIndex) -> Any:
        if not isinstance(index, SampleIndex):
            return self._read(int(index))
        with seeded(index.entropy):
            return self._read(index.value)

    def _read(self, index: int) -> Any:
        bad: list[str] = []
        while True:
            try:
                sample = self.dataset[index]
                break
            except MemoryError:
                raise
            except Exception as error:  # a decoder or a transform may raise anything
                message = _describe(self.dataset, index, error)
                if not self.skip or len(bad) == _MAX_REPLACEMENTS:
                    raise UserError(message) from error
                bad.append(message)
                index = np.random.randint(len(self.dataset))
        if bad:
            sample['data_samples'].set_metainfo(dict(bad_samples=bad))
        return sample


def _describe(dataset: Any, index: int, error: Exception) -> str:
    """Name the image and label map of a sample, or its number, and the error."""
    info = dataset.get_data_info(index) if hasattr(dataset, 'get_data_info') else {}
    paths = [os.fspath(info[k]) for k in ('img_path', 'seg_map_path') if info.get(k)]
    name = ', '.join(map(repr, paths)) or f'at index {index}'
    if isinstance(error, UserError):
        return f'bad sample {name}: {error}'
    truncated = [repr(path) for path in paths if _is_known_to_be_truncated(path)]
    reason = f'{" and ".join(truncated)} is truncated: ' if truncated else ''
    return f'bad sample {name}: {reason}{type(error).__name__}: {error}'


def _is_known_to_be_truncated(path: str) -> bool:
    try:
        return os.path.isfile(path) and is_truncated(path)
    except OSError:  # it cannot be opened, which is the error to describe
        return False
