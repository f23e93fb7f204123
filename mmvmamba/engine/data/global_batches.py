"""Batches of all processes together, in an order that does not depend on their number."""

from collections.abc import Iterator, Sequence
from itertools import chain, count, cycle, islice
from typing import Any, NamedTuple

from mmengine.dataset import DefaultSampler, InfiniteSampler
from torch.utils.data import BatchSampler, Sampler

#: Package and name of mmdet's batch sampler, which needs no import here.
_ASPECT_RATIO = ('mmdet', 'AspectRatioBatchSampler')


class Progress(NamedTuple):
    """A number of global batches of one size."""

    batch_size: int  # of all processes together
    batches: int

    @property
    def samples(self) -> int:
        """Return the number of samples in them."""
        return self.batch_size * self.batches


class NumberedIndex(int):
    """Index of a sample, with its number in the order of an epoch."""

    number: int

    @classmethod
    def of(cls, value: int, number: int) -> 'NumberedIndex':
        """Give an index its number."""
        index = cls(value)
        index.number = number
        return index


class _TrackedSampler(Sampler):
    """Sampler that remembers the samples which were taken but are not in a batch yet."""

    def __init__(self, dataset: Any, samples: Iterator[NumberedIndex]) -> None:
        self.dataset = dataset  # asked for the shapes of images
        self.samples = samples
        self.waiting: dict[int, NumberedIndex] = {}

    def __iter__(self) -> Iterator[NumberedIndex]:
        for sample in self.samples:
            self.waiting[sample.number] = sample
            yield sample

    def batches(self, kind: type[BatchSampler], batch_size: int) -> Iterator[list[NumberedIndex]]:
        """Yield the batches that a class of batch samplers makes, and forget their samples."""
        for batch in kind(self, batch_size, False):
            for sample in batch:
                del self.waiting[sample.number]
            yield batch


def has_global_order(batch_sampler: BatchSampler) -> bool:
    """Return True if batches of all processes can be made with a batch sampler.

    It must be PyTorch's ``BatchSampler`` or mmdet's ``AspectRatioBatchSampler`` with one of
    MMEngine's own samplers, which deal one order out to the processes. Subclasses may do anything.
    """
    kind = type(batch_sampler)
    is_aspect = (kind.__module__.partition('.')[0], kind.__name__) == _ASPECT_RATIO
    samplers = DefaultSampler, InfiniteSampler
    return (kind is BatchSampler or is_aspect) and type(batch_sampler.sampler) in samplers


def global_order(sampler: DefaultSampler | InfiniteSampler) -> Iterator[NumberedIndex]:
    """Yield the samples of an epoch, or of an endless run, for all processes together."""
    alone = type(sampler)(sampler.dataset, sampler.shuffle, sampler.seed)
    alone.rank, alone.world_size = 0, 1
    if isinstance(alone, DefaultSampler):
        alone.num_samples = alone.total_size = len(alone.dataset)
        alone.set_epoch(sampler.epoch)
    return map(NumberedIndex.of, alone, count())


def global_batches(
    batch_sampler: BatchSampler, batch_size: int, done: Sequence[Progress] = ()
) -> Iterator[list[NumberedIndex]]:
    """Yield the batches of all processes together, after those that are done.

    Every sample of an epoch is in one batch, even if earlier batches had other sizes: the samples
    that were waiting for a batch to be complete come first. The last batch may be incomplete.

    Args:
        batch_sampler (BatchSampler): Batch sampler of one process with :func:`has_global_order`.
        batch_size (int): Number of samples in a batch of all processes.
        done (Sequence[Progress]): The batches of this epoch that were trained on. Defaults to ().
    """
    sampler, kind = batch_sampler.sampler, type(batch_sampler)
    samples = global_order(sampler)
    for size, batches in done:
        # A batch may depend on those before it, so these are made again.
        tracked = _TrackedSampler(sampler.dataset, samples)
        for _ in islice(tracked.batches(kind, size), batches):
            pass
        samples = chain(tuple(tracked.waiting.values()), samples)
    yield from _TrackedSampler(sampler.dataset, samples).batches(kind, batch_size)


def share_of_rank(
    batch: list[NumberedIndex], sampler: DefaultSampler, rank: int, world_size: int
) -> list[NumberedIndex]:
    """Return the samples of a global batch for one process.

    All processes get equally many, as the gradients of all count alike: the last batch of an epoch
    is padded with the first samples of the epoch.
    """
    lacking = -len(batch) % world_size
    if lacking:
        first = islice(cycle(global_order(sampler)), lacking)
        # Numbers of their own, which no sample of the epoch has, give them another augmentation.
        batch = batch + list(map(NumberedIndex.of, first, count(len(sampler.dataset))))
    return batch[rank::world_size]
