"""Batches from a known position on, whose samples draw their randomness from it."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from mmengine.dataset import InfiniteSampler
from mmengine.dist import get_rank
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset

from mmvmamba.engine.errors import UserError

from .sample_check import is_truncated

#: So many replacements of one sample fail before something else than the data must be wrong.
_MAX_REPLACEMENTS = 20
_LOADER_OPTIONS = (
    'num_workers',
    'collate_fn',
    'pin_memory',
    'timeout',
    'worker_init_fn',
    'multiprocessing_context',
    'generator',
    'prefetch_factor',
    'persistent_workers',
)


class BadSampleError(UserError):
    """A sample that cannot be used, with the names of its files."""


class SampleIndex(int):
    """The index of a sample that carries the numbers its randomness is drawn from.

    Attributes:
        entropy (tuple[int, ...]): Seed, epoch, rank, number in the pass, and index.
    """

    entropy: tuple[int, ...]

    def __new__(cls, index: int, entropy: tuple[int, ...]) -> SampleIndex:
        self = super().__new__(cls, index)
        self.entropy = entropy
        return self

    def __reduce__(self) -> tuple:
        return SampleIndex, (int(self), self.entropy)


def seed_all(entropy: Sequence[int]) -> None:
    """Seeds the generators of Python, NumPy and PyTorch.

    Args:
        entropy (Sequence[int]): Numbers that are not negative.
    """
    words = np.random.SeedSequence(entropy).generate_state(4)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    torch.manual_seed(int(words[2]) << 32 | int(words[3]))


@contextmanager
def seeded(entropy: Sequence[int]) -> Iterator[None]:
    """Runs with seeded generators on the CPU, and puts their states back."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    words = np.random.SeedSequence(entropy).generate_state(4)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    torch.default_generator.manual_seed(int(words[2]) << 32 | int(words[3]))
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


class PositionedBatchSampler:
    """The batches of another batch sampler from a position on.

    A sampler may repeat an index, in a pass that ends or in one that does not, and on several ranks
    at a time. Each time the sample has another number or rank, and draws anew.

    Args:
        batch_sampler (BatchSampler): PyTorch's or one like mmdet's ``AspectRatioBatchSampler``.
        seed (int): The seed of the samples' randomness.
        epoch (int): The epoch of the next pass. Defaults to 0.
        first (int): The batches of that pass to leave out. Defaults to 0.
    """

    def __init__(
        self, batch_sampler: BatchSampler, seed: int, epoch: int = 0, first: int = 0
    ) -> None:
        self.batch_sampler = batch_sampler
        self.seed = seed
        self.first = first
        self.set_epoch(epoch)

    @property
    def sampler(self) -> Any:
        """The sampler below, whose ``set_epoch`` MMEngine calls."""
        return self.batch_sampler.sampler

    @property
    def batch_size(self) -> int:
        """Samples in a batch."""
        return self.batch_sampler.batch_size

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of the next pass, here and in the sampler."""
        self.epoch = epoch
        if hasattr(self.sampler, 'set_epoch'):
            self.sampler.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[list[SampleIndex]]:
        first, self.first = self.first, 0
        origin = (self.seed, self.epoch, get_rank())
        number = 0
        # A batch may depend on those before it, so none is jumped over without being made.
        for position, batch in enumerate(self.batch_sampler):
            if position >= first:
                numbered = enumerate(batch, start=number)
                yield [SampleIndex(i, (*origin, n, int(i))) for n, i in numbered]
            number += len(batch)


def is_endless(sampler: Any) -> bool:
    """Whether a pass does not end: MMEngine's InfiniteSampler or mmdet's MultiSourceSampler."""
    return isinstance(sampler, InfiniteSampler) or hasattr(sampler, 'source2inds')


def restart_sampler(batch_sampler: BatchSampler, seed: int | None) -> None:
    """Puts a sampler to its begin, with a seed, which is that of the run that is resumed."""
    # MMEngine's releases begin to read in the loop's constructor; mmdet's batch sampler then keeps
    # the images that wait for others of their shape.
    for bucket in getattr(batch_sampler, '_aspect_ratio_buckets', ()):
        bucket.clear()
    sampler = batch_sampler.sampler
    if isinstance(sampler, InfiniteSampler):
        # It goes through its indices once; a data loader may have begun to.
        InfiniteSampler.__init__(sampler, sampler.dataset, sampler.shuffle, seed)
    elif hasattr(sampler, 'seed'):
        sampler.seed = seed
    if hasattr(sampler, 'source2inds'):  # mmdet's MultiSourceSampler does so too
        sampler.source2inds = {
            source: sampler._indices_of_rank(len(dataset))
            for source, dataset in enumerate(sampler.dataset.datasets)
        }


def positioned_loader(loader: DataLoader, seed: int, epoch: int, first: int) -> DataLoader:
    """A data loader like another one that begins at a position.

    Args:
        loader (DataLoader): The other one, over a data set with a length and batches.
        seed (int): The seed of the sampler and of the samples.
        epoch (int): The epoch of the first pass.
        first (int): The batches of the first pass to leave out.
    """
    restart_sampler(loader.batch_sampler, seed)
    return _with_batches(loader, PositionedBatchSampler(loader.batch_sampler, seed, epoch, first))


def _with_batches(loader: DataLoader, batch_sampler: Any) -> DataLoader:
    options = {name: getattr(loader, name) for name in _LOADER_OPTIONS}
    return DataLoader(loader.dataset, batch_sampler=batch_sampler, **options)


def restart_workers(loop: Any) -> None:
    """Makes a loop that reads already read anew, so that its workers know what hooks changed.

    MMEngine's releases start the workers in the constructor of an iteration-based loop.

    Args:
        loop (BaseLoop): A loop for training.
    """
    iterator = getattr(loop, 'dataloader_iterator', None)
    if getattr(iterator, '_iterator', None) is None or not can_be_positioned(loop.dataloader):
        return
    batch_sampler = loop.dataloader.batch_sampler
    restart_sampler(batch_sampler, getattr(batch_sampler.sampler, 'seed', None))
    loop.dataloader = _with_batches(loop.dataloader, batch_sampler)
    loop.dataloader_iterator = type(iterator)(loop.dataloader)


def can_be_positioned(loader: DataLoader) -> bool:
    """Whether the samples of a loader have indices and come in batches."""
    return not isinstance(loader.dataset, IterableDataset) and loader.batch_sampler is not None


class SampleReader:
    """Reads the samples of a batch, each with the randomness of its index.

    It stands as ``__getitems__`` at a data set, which is what PyTorch's data loader calls.

    Args:
        dataset (Dataset): The data set, wrappers included.
        skip (bool): Whether a bad sample is replaced by another one, named in the meta information
            ``bad_samples`` of its data sample, or stops the run. Defaults to False.
    """

    def __init__(self, dataset: Dataset, skip: bool = False) -> None:
        self.dataset = dataset
        self.skip = skip

    def __call__(self, indices: Sequence[int]) -> list[Any]:
        return [self.read(index) for index in indices]

    def read(self, index: int) -> Any:
        """Reads one sample.

        Raises:
            BadSampleError: If it cannot be used.
        """
        if not isinstance(index, SampleIndex):
            return self._read(index)
        with seeded(index.entropy):
            return self._read(index)

    def _read(self, index: int) -> Any:
        bad: list[str] = []
        while True:
            try:
                sample = self.dataset[int(index)]
                break
            except MemoryError:
                raise
            except Exception as error:  # whatever a decoder or a transform raises
                message = _describe(self.dataset, int(index), error)
                if not self.skip or len(bad) == _MAX_REPLACEMENTS:
                    raise BadSampleError(message) from error
                bad.append(message)
                index = np.random.randint(len(self.dataset))
        if bad:
            sample['data_samples'].set_metainfo(dict(bad_samples=bad))
        return sample


def _describe(dataset: Any, index: int, error: Exception) -> str:
    """The image and the label map of a sample, or its number, and what is wrong with it."""
    info = dataset.get_data_info(index) if hasattr(dataset, 'get_data_info') else {}
    paths = [os.fspath(info[k]) for k in ('img_path', 'seg_map_path') if info.get(k)]
    name = ', '.join(map(repr, paths)) or f'number {index}'
    if isinstance(error, UserError):
        return f'bad sample {name}: {error}'
    cut = [repr(path) for path in paths if os.path.isfile(path) and is_truncated(path)]
    reason = f'{" and ".join(cut)} is cut off: ' if cut else ''
    return f'bad sample {name}: {reason}{type(error).__name__}: {error}'


def reader_of(dataset: Any) -> SampleReader:
    """The reader that stands at a data set; a new one if there is none."""
    reader = vars(dataset).get('__getitems__')
    if not isinstance(reader, SampleReader):
        reader = dataset.__getitems__ = SampleReader(dataset)
    return reader
