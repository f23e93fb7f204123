"""Batches of all processes together, in an order that does not depend on their number."""

import copy
import inspect
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, count, islice
from typing import Any, NamedTuple

from mmengine.dataset import DefaultSampler, InfiniteSampler
from torch.utils.data import BatchSampler, Sampler


class Progress(NamedTuple):
    """A number of global batches of one size."""

    batch_size: int  # of all processes together
    batches: int


class NumberedIndex(int):
    """Index of a sample, with its number in the order of an epoch."""

    number: int

    @classmethod
    def of(cls, value: int, number: int) -> 'NumberedIndex':
        """Give an index its number."""
        index = cls(value)
        index.number = number
        return index


class _Queue(Sampler):
    """Sampler that remembers the samples which were taken but are not in a batch yet."""

    def __init__(self, dataset: Any, samples: Iterator[NumberedIndex]) -> None:
        self.dataset = dataset  # asked for the shapes of images
        self.samples = samples
        self.waiting: dict[int, NumberedIndex] = {}

    def __iter__(self) -> Iterator[NumberedIndex]:
        for sample in self.samples:
            self.waiting[sample.number] = sample
            yield sample

    def released(self, batches: Iterable[list[NumberedIndex]]) -> Iterator[list[NumberedIndex]]:
        """Yield batches and forget their samples."""
        for batch in batches:
            for sample in batch:
                del self.waiting[sample.number]
            yield batch


def has_global_order(batch_sampler: BatchSampler) -> bool:
    """Return True if batches of all processes can be made with a batch sampler.

    Its sampler must be one of MMEngine's own, which deal one order out to the processes, and its
    constructor must take a sampler, a batch size and ``drop_last`` alone, as those of PyTorch's
    ``BatchSampler`` and mmdet's ``AspectRatioBatchSampler`` do.
    """
    arguments = list(inspect.signature(type(batch_sampler)).parameters)
    own = type(batch_sampler.sampler) in (DefaultSampler, InfiniteSampler)
    return own and arguments == ['sampler', 'batch_size', 'drop_last']


def global_order(sampler: DefaultSampler | InfiniteSampler) -> Iterator[NumberedIndex]:
    """Yield the samples of an epoch, or of an endless run, for all processes together."""
    alone = copy.copy(sampler)
    alone.rank, alone.world_size = 0, 1
    if isinstance(alone, InfiniteSampler):
        alone.indices = alone._indices_of_rank()
    else:
        alone.num_samples = alone.total_size = len(alone.dataset)
    return map(NumberedIndex.of, alone, count())


def global_batches(
    batch_sampler: BatchSampler, batch_size: int, done: Sequence[Progress] = ()
) -> Iterator[list[NumberedIndex]]:
    """Yield the batches of all processes together, after those that are done.

    Every sample of an epoch is in one batch, even if earlier batches had other sizes: what a batch
    sampler had taken for a batch that was not complete comes first.

    Args:
        batch_sampler (BatchSampler): Batch sampler of one process with :func:`has_global_order`.
        batch_size (int): Number of samples in a batch of all processes.
        done (Sequence[Progress]): The batches of this epoch that were trained on. Defaults to ().
    """
    sampler, make = batch_sampler.sampler, type(batch_sampler)
    samples = global_order(sampler)
    for size, batches in done:
        # A batch may depend on those before it, so these are made again.
        queue = _Queue(sampler.dataset, samples)
        for _ in islice(queue.released(make(queue, size, batch_sampler.drop_last)), batches):
            pass
        samples = chain(tuple(queue.waiting.values()), samples)
    queue = _Queue(sampler.dataset, samples)
    yield from queue.released(make(queue, batch_size, batch_sampler.drop_last))


def share_of_rank(
    batch: list[NumberedIndex], sampler: DefaultSampler, rank: int, world_size: int
) -> list[NumberedIndex]:
    """Return the samples of a global batch for one process.

    All processes get equally many, as the gradients of all count alike: the last batch of an epoch
    is filled with the first samples of the epoch.
    """
    lacking = -len(batch) % world_size
    if lacking:
        first = list(islice(global_order(sampler), lacking))
        again = [first[i % len(first)] for i in range(lacking)]
        # Numbers of their own, which no sample of the epoch has, give them another augmentation.
        batch = batch + list(map(NumberedIndex.of, again, count(len(sampler.dataset))))
    return batch[rank::world_size]


def count_batches(batch_sampler: BatchSampler, batch_size: int) -> int:
    """Return the number of global batches in an epoch."""
    samples = len(batch_sampler.sampler.dataset)
    return samples // batch_size if batch_sampler.drop_last else -(-samples // batch_size)
