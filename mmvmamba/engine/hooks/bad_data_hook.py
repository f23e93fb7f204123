"""Detection of unusable images and annotations in the training data."""

import logging
from typing import Any

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import Hook

from mmvmamba.engine.checks.configs import leaf_datasets
from mmvmamba.engine.checks.datasets import check_datasets
from mmvmamba.engine.data.sample_check import CheckSample
from mmvmamba.engine.data.sampling import reader_of, restart_workers
from mmvmamba.engine.errors import UserError
from mmvmamba.registry import HOOKS

from .utils import batch_metainfo

_ACTIONS = ('skip', 'stop')
_CHECKS = ('stop', 'warn', None)
_LEVELS = dict(error=logging.ERROR, warning=logging.WARNING, note=logging.INFO)


@HOOKS.register_module()
class BadDataHook(Hook):
    """Find bad data before the first step, and bad samples while they are loaded.

    Before the first step, the hook checks the annotation files, images, label maps and classes of
    training and evaluation, like ``tools/dataset_converters/check_dataset.py``. Loaded training
    samples are checked for truncated or missing files, sizes that do not agree, boxes outside the
    image and class ids out of range. An exception in a transform also counts as a bad sample.

    Args:
        action (str): 'skip' replaces a bad training sample with another one and counts it; 'stop'
            ends the run at the first one. Defaults to 'skip'.
        max_skipped (int): The number of bad samples that a process skips before it stops.
            Defaults to 1000.
        check (str, optional): 'stop' ends the run before its first step if the data has errors,
            'warn' logs them, and None checks no data in advance. Defaults to 'stop'.
        sample (int, optional): The number of images of each dataset that are decoded in advance;
            None for all. Defaults to 64.

    Raises:
        ValueError: If ``action`` or ``check`` is unknown, or ``max_skipped`` or ``sample`` is
            negative.
    """

    priority = 'HIGH'  # after ResumeHook has replaced the data loader

    def __init__(
        self,
        action: str = 'skip',
        max_skipped: int = 1000,
        check: str | None = 'stop',
        sample: int | None = 64,
    ) -> None:
        if action not in _ACTIONS:
            raise ValueError(f'action must be one of {_ACTIONS}, but got {action!r}')
        if check not in _CHECKS:
            raise ValueError(f'check must be one of {_CHECKS}, but got {check!r}')
        for name, value in (('max_skipped', max_skipped), ('sample', sample or 0)):
            if value < 0:
                raise ValueError(f'{name} must not be negative, but got {value}')
        self.action = action
        self.max_skipped = max_skipped
        self.check = check
        self.sample = sample
        self._is_checked = False

    def check_data(self, runner: Any, *stages: str) -> None:
        """Check the data of stages once; the tools call this before they build the datasets.

        Raises:
            UserError: If the data has errors and ``check`` is 'stop'.
        """
        if self.check is None or self._is_checked:
            return
        self._is_checked = True
        errors: list[Any] = [[]]
        if is_main_process():
            runner.logger.info('checking the data')
            # Training goes on without test data.
            warn_only = ('test',) if 'train' in stages else ()
            report = check_datasets(
                runner.cfg, stages, self.sample, warn_only, skip=self.action == 'skip'
            )
            for group in report.groups():
                runner.logger.log(_LEVELS[group.severity], str(group))
            errors = [[str(group) for group in report.groups('error')]]
        broadcast_object_list(errors)
        if self.check == 'stop' and errors[0]:
            others = f'; see the log for all {len(errors[0])} errors' if errors[0][1:] else ''
            raise UserError(
                f'{errors[0][0]}{others} (to train anyway, set default_hooks.bad_data.check=warn)'
            )

    def before_train(self, runner: Any) -> None:
        """Check the data, unless a tool already has, and prepare the checks of loaded samples."""
        self.check_data(runner, 'train', 'val', 'test')
        dataset = runner.train_dataloader.dataset
        reader_of(dataset).skip = self.action == 'skip'
        for leaf in leaf_datasets(dataset):
            check_loaded_samples(leaf)
        restart_workers(runner.train_loop)

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Log and count the samples that were skipped for this batch."""
        metainfo = batch_metainfo(data_batch)
        messages = [text for meta in metainfo for text in meta.get('bad_samples', ())]
        if not messages:
            return
        count = runner.message_hub.runtime_info.get('bad_samples', 0) + len(messages)
        runner.message_hub.update_info('bad_samples', count)
        for text in messages:
            # The loggers of the other ranks show errors only.
            runner.logger.error(f'iteration {runner.iter + 1}: skipped {text}')
        if count > self.max_skipped:
            raise UserError(
                f'skipped {count} bad samples, more than max_skipped={self.max_skipped}; the last '
                f'one is {messages[-1]}'
            )

    def after_train(self, runner: Any) -> None:
        count = runner.message_hub.runtime_info.get('bad_samples', 0)
        if count:
            runner.logger.error(f'skipped {count} bad samples in this run')


def check_loaded_samples(dataset: Any) -> None:
    """Insert :class:`CheckSample` after the loading transforms, unless it is there already."""
    steps = getattr(getattr(dataset, 'pipeline', None), 'transforms', None)
    if steps is None or any(isinstance(step, CheckSample) for step in steps):
        return
    loading = [i for i, step in enumerate(steps) if type(step).__name__.startswith('Load')]
    if not loading:
        return
    classes = (getattr(dataset, 'metainfo', None) or {}).get('classes')
    check = CheckSample(
        num_classes=None if classes is None else len(classes),
        ignore_index=getattr(dataset, 'ignore_index', 255),
    )
    steps.insert(loading[-1] + 1, check)
