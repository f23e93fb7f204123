"""Bit-exact resumption of an interrupted run."""

from __future__ import annotations

import contextlib
import math
import os
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from mmengine.dist import broadcast_object_list, get_rank, get_world_size, is_main_process
from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner import IterBasedTrainLoop
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mmvmamba.checkpoint.redaction import redacted
from mmvmamba.engine.data.global_batches import Progress
from mmvmamba.engine.data.sampling import (
    PositionedBatchSampler,
    can_be_positioned,
    is_endless,
    positioned_loader,
    reader_of,
    seed_all,
)
from mmvmamba.engine.errors import UserError
from mmvmamba.engine.utils import (
    accumulated_iterations,
    load_from,
    optim_wrappers,
    resumes,
    set_load_from,
    unwrapped,
)
from mmvmamba.engine.work_dir import last_complete_checkpoint
from mmvmamba.registry import HOOKS

from .resumed_settings import OVERRIDES, ResumedHyperParameters, check_optimizers

_POSITION = {'seed', 'epoch', 'batch_size', 'world_size', 'samples'}


@HOOKS.register_module()
class ResumeHook(Hook):
    """Make a resumed run equal to an uninterrupted one.

    The randomness of each sample is drawn from (seed, epoch, number in the epoch, index), where an
    endless sampler has one epoch; that of the model from (seed, iteration, rank). A checkpoint
    contains the position in the data and the accumulated gradients. ``resume=True`` without a file
    selects the last complete checkpoint.

    With MMEngine's samplers, the order of the samples is the same for any number of processes with
    the same global batch size. A run that continues with a different number of processes or a
    different batch size uses every sample of the epoch once.

    Args:
        load_from (str, optional): Weights to start from if there is no checkpoint to resume from;
            the training tool passes the config's ``load_from``. Defaults to None.
        override (str | Sequence[str]): Hyper-parameters of the optimizer, 'lr' and 'weight_decay',
            that a resumed run takes from its config instead of the checkpoint. Defaults to ().

    Raises:
        ValueError: If ``override`` contains another name.
    """

    priority = 'VERY_HIGH'

    def __init__(self, load_from: str | None = None, override: str | Sequence[str] = ()) -> None:
        names = (override,) if isinstance(override, str) else tuple(override)
        if not set(names) <= OVERRIDES.keys():
            raise ValueError(
                f'override must be one or more of {list(OVERRIDES)}, but got {override!r}'
            )
        self.load_from = load_from
        self.override = names
        # Identifies the run in its checkpoints. A run from a checkpoint that the user names is
        # another one, as later checkpoints may lie beside it.
        self.run = uuid.uuid4().hex
        self._finds_checkpoint = False
        self._seed = 0
        self._epoch = 0  # of the batches, also in an iteration-based loop
        self._batches = 0  # done in that epoch, of this run's size
        self._earlier: list[Progress] = []  # done in that epoch with another size
        self._saved: dict[str, Any] | None = None
        self._saved_seed: int | None = None  # of MMEngine
        self._gradients: dict[str, Tensor] = {}
        self._hyper_parameters: ResumedHyperParameters | None = None

    def before_run(self, runner: Any) -> None:
        """Choose the checkpoint to resume from, the same one on all ranks."""
        if not resumes(runner) or load_from(runner) is not None or runner._has_loaded:
            return
        self._finds_checkpoint = True
        found: list[Any] = [None, [], None]
        if is_main_process():
            try:
                found[:2] = last_complete_checkpoint(*_folders(runner))
            except UserError as error:
                found[2] = str(error)
        broadcast_object_list(found)
        filename, skipped, failure = found
        if failure is not None:  # on all ranks, which would otherwise wait for the first one
            raise UserError(failure)
        for reason in skipped:
            runner.logger.warning(f'skipped while looking for a checkpoint: {reason}')
        if filename is not None:
            set_load_from(runner, filename, resume=True)
        else:
            set_load_from(runner, self.load_from, resume=False)
            runner.logger.warning(f'no checkpoint to resume from in {runner.work_dir!r}')

    def before_save_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Add the identity of the run, its position and the accumulated gradients."""
        checkpoint['meta'].update(
            run=self.run,
            optimizers=[type(w.optimizer).__name__ for w in optim_wrappers(runner.optim_wrapper)],
            position=dict(
                seed=self._seed,
                epoch=self._epoch,
                done=[tuple(progress) for progress in self._done(runner)],
                batch_size=_batch_size(runner),
                world_size=get_world_size(),
                samples=_length(runner.train_dataloader.dataset),
            ),
        )
        parameters = unwrapped(runner.model).named_parameters()
        gradients = {name: p.grad.cpu() for name, p in parameters if p.grad is not None}
        if gradients:
            checkpoint['gradients'] = gradients

    def after_load_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Read the position of a resumed run, and compare its settings with the config's."""
        meta = checkpoint.get('meta')
        if not resumes(runner) or not isinstance(meta, dict):
            return
        with _named(load_from(runner)):
            self._saved = _position(meta)
            self._gradients = _gradients(checkpoint, unwrapped(runner.model))
            check_optimizers(runner.optim_wrapper, checkpoint)
        if isinstance(meta.get('seed'), int):
            self._saved_seed = meta['seed']
        if self._finds_checkpoint:
            self.run = meta.get('run') or self.run
        self._hyper_parameters = ResumedHyperParameters(
            runner.optim_wrapper, checkpoint, self.override
        )
        for text in self._hyper_parameters.changes():
            runner.logger.warning(text)
        seeds = meta.get('seed'), (runner.cfg.get('randomness') or {}).get('seed')
        if None not in seeds and seeds[0] != seeds[1]:
            runner.logger.warning(
                f'the seed is {seeds[0]} in the checkpoint and {seeds[1]} in the config; the '
                "checkpoint's is used. To use a different seed, start a new run"
            )

    def before_train(self, runner: Any) -> None:
        """Restore the position of the data loader and the accumulated gradients."""
        if self._hyper_parameters is not None:
            self._hyper_parameters.apply(runner.param_schedulers)
        loop = runner.train_loop
        loader = loop.dataloader
        if not can_be_positioned(loader):
            runner.logger.warning(
                f'the data loader of {type(loader.dataset).__name__} does not yield batches of '
                'indices: a resumed run will see different data than an uninterrupted one'
            )
            return
        self._find_position(runner)
        reader_of(loader.dataset)
        loader = positioned_loader(loader, self._seed, self._epoch, self._done(runner))
        loop.dataloader = loader
        if isinstance(loop, IterBasedTrainLoop):
            # Loops without skip_iter call next() once for each iteration done.
            done = 0 if hasattr(loop.dataloader_iterator, 'skip_iter') else loop.iter
            loop.dataloader_iterator = BatchStream(loader, done)
        for name, parameter in unwrapped(runner.model).named_parameters():
            if name in self._gradients:
                parameter.grad = self._gradients[name].to(parameter.device)
        self._gradients = {}

    def _find_position(self, runner: Any) -> None:
        loop, saved = runner.train_loop, self._saved
        sampler = loop.dataloader.batch_sampler.sampler
        self._seed = int(getattr(sampler, 'seed', None) or runner.seed or 0)
        if saved is None:
            if self._saved_seed is not None:
                self._seed = self._saved_seed
            self._epoch, self._batches = _position_from_counts(loop)
            return
        self._seed, self._epoch, self._earlier = saved['seed'], saved['epoch'], saved['done']
        if self._earlier and self._earlier[-1].batch_size == _global_batch_size(runner):
            self._batches = self._earlier.pop().batches
        self._warn_of_other_batches(runner, saved)

    def _warn_of_other_batches(self, runner: Any, saved: dict[str, Any]) -> None:
        before = saved['world_size'], saved['batch_size']
        now = get_world_size(), _batch_size(runner)
        if now != before:
            order = 'with the same sample order'
            if math.prod(now) != math.prod(before):
                order = 'from the same sample'
                _check_accumulation(runner)
            runner.logger.warning(
                f'the checkpoint was saved with {before[0]} process(es) and a batch size of '
                f'{before[1]}, but this run has {now[0]} and {now[1]}: training continues {order}, '
                'but is not bit-exact'
            )
        samples = _length(runner.train_dataloader.dataset)
        if saved.get('samples', samples) != samples:
            done = sum(progress.samples for progress in self._done(runner))
            left = max(-(-(samples - done) // math.prod(now)), 0)
            runner.logger.warning(
                f'the training dataset had {saved["samples"]} samples and now has {samples}: '
                f'{left} batches remain in epoch {self._epoch + 1}, and later epochs use all '
                'samples. To restart the epoch count, start a new run from these weights with '
                '--cfg-options load_from=CHECKPOINT and without --resume'
            )

    def _done(self, runner: Any) -> list[Progress]:
        """Return what is done in this epoch."""
        own = Progress(_global_batch_size(runner), self._batches)
        return [*self._earlier, own] if self._batches else self._earlier

    def before_train_epoch(self, runner: Any) -> None:
        batches = runner.train_dataloader.batch_sampler
        is_iter_based = isinstance(runner.train_loop, IterBasedTrainLoop)
        if isinstance(batches, PositionedBatchSampler) and not is_iter_based:
            batches.set_epoch(runner.epoch)

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Seed the randomness of the model, such as its drop paths."""
        stream = getattr(runner.train_loop, 'dataloader_iterator', None)
        if isinstance(stream, BatchStream) and stream.loader.batch_sampler.epoch != self._epoch:
            self._start_epoch(stream.loader.batch_sampler.epoch)
        # The fifth number keeps these draws apart from those of the samples, which have four.
        seed_all((self._seed, runner.iter, get_rank(), 0, 1))

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        self._batches += 1

    def after_train_epoch(self, runner: Any) -> None:
        if not isinstance(runner.train_loop, IterBasedTrainLoop):
            self._start_epoch(runner.epoch + 1)

    def _start_epoch(self, epoch: int) -> None:
        self._epoch, self._batches, self._earlier = epoch, 0, []


class BatchStream:
    """Endless batches of a positioned loader, for iteration-based loops.

    The first ``done`` batches, which the loop skips, are None, as the loader has skipped them.
    """

    def __init__(self, loader: DataLoader, done: int) -> None:
        self.loader = loader
        self._to_skip = done
        self._iterator: Iterator | None = None

    def __iter__(self) -> BatchStream:
        return self

    def __next__(self) -> Any:
        if self._to_skip > 0:
            self._to_skip -= 1
            return None
        if self._iterator is None:
            self._iterator = iter(self.loader)
        try:
            return next(self._iterator)
        except StopIteration:
            batches = self.loader.batch_sampler
            batches.set_epoch(batches.epoch + 1)
            self._iterator = iter(self.loader)
            return next(self._iterator)

    def skip_iter(self, count: int) -> None:
        """Do nothing, as the loader starts at the right position."""


def _check_accumulation(runner: Any) -> None:
    """Refuse another number of iterations, by which MMEngine scales accumulated gradients."""
    counts = map(accumulated_iterations, optim_wrappers(runner.optim_wrapper))
    if max(counts) > 1 and not isinstance(runner.train_loop, IterBasedTrainLoop):
        raise UserError(
            'an epoch-based run that accumulates gradients can only be resumed with the same total '
            'batch size; set optim_wrapper.accumulative_counts=1, or resume with the batch size '
            'and number of processes of the checkpoint'
        )


def _folders(runner: Any) -> list[str]:
    """Return the work directory and the one that CheckpointHook will make of its ``out_dir``."""
    name = os.path.basename(runner.work_dir.rstrip(os.sep))
    others = [h.out_dir for h in runner.hooks if isinstance(h, CheckpointHook) and h.out_dir]
    others = [os.path.join(folder, name) for folder in others if '://' not in str(folder)]
    return [runner.work_dir, *others]


@contextlib.contextmanager
def _named(path: str) -> Iterator[None]:
    """Name the checkpoint in a ValueError about its content."""
    try:
        yield
    except ValueError as error:
        name = redacted(str(path))
        raise ValueError(f'cannot resume from checkpoint {name!r}: {error}') from error


def _position(meta: dict[str, Any]) -> dict[str, Any] | None:
    """Return the position that a checkpoint holds, or None if it holds none.

    Raises:
        ValueError: If it is not a position.
    """
    position = meta.get('position')
    if position is None:
        return None
    is_dict = isinstance(position, dict)
    values = [position.get(name, 0) for name in _POSITION] if is_dict else [None]
    is_complete = is_dict and _POSITION - {'samples'} <= position.keys()
    if not is_complete or not _are_counts(values):
        raise ValueError(
            f'meta.position must have non-negative integers {sorted(_POSITION)}, but got '
            f'{position!r:.200}'
        )
    done = position.get('done')
    is_list = isinstance(done, list) and all(isinstance(p, tuple | list) for p in done)
    if not is_list or not all(len(p) == 2 and _are_counts(p) and p[0] for p in done):
        raise ValueError(
            'meta.position.done must be pairs of a batch size and a number of batches, but got '
            f'{done!r:.200}'
        )
    return position | dict(done=[Progress(*pair) for pair in done])


def _are_counts(values: Sequence[Any]) -> bool:
    return all(type(value) is int and value >= 0 for value in values)


def _gradients(checkpoint: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Return the accumulated gradients that a checkpoint holds.

    Raises:
        ValueError: If they do not match the parameters.
    """
    gradients = checkpoint.get('gradients')
    if gradients is None:
        return {}
    if not isinstance(gradients, dict):
        raise ValueError(f'gradients must be a dict, but got {type(gradients).__name__}')
    parameters = dict(model.named_parameters())
    for name, value in gradients.items():
        own = parameters.get(name)
        if not isinstance(value, Tensor):
            raise ValueError(f'gradients.{name} must be a tensor, but got {type(value).__name__}')
        if own is not None and (value.shape, value.dtype) != (own.shape, own.dtype):
            raise ValueError(
                f'gradients.{name} must have shape {tuple(own.shape)} and {own.dtype}, but got '
                f'{tuple(value.shape)} and {value.dtype}'
            )
    return gradients


def _position_from_counts(loop: Any) -> tuple[int, int]:
    """Return the epoch and batch of a run whose checkpoint does not hold them."""
    if not isinstance(loop, IterBasedTrainLoop):
        return loop.epoch, max(loop.iter - loop.epoch * len(loop.dataloader), 0)
    if is_endless(loop.dataloader.batch_sampler.sampler):
        return 0, loop.iter
    return divmod(loop.iter, len(loop.dataloader))


def _length(dataset: Any) -> int:
    return len(dataset) if hasattr(dataset, '__len__') else 0


def _global_batch_size(runner: Any) -> int:
    return get_world_size() * _batch_size(runner)


def _batch_size(runner: Any) -> int:
    return getattr(runner.train_dataloader.batch_sampler, 'batch_size', None) or 1
