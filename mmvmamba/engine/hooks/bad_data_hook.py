"""Detection of unusable images and annotations in the training data."""

from typing import Any

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import Hook

from mmvmamba.engine.checks.coco import check_coco, coco_files
from mmvmamba.engine.checks.configs import leaf_datasets
from mmvmamba.engine.checks.report import Report
from mmvmamba.engine.data.sample_check import CheckSample
from mmvmamba.engine.data.sampling import reader_of, restart_workers
from mmvmamba.engine.errors import UserError
from mmvmamba.registry import HOOKS

from .utils import batch_metainfo

_ACTIONS = ('skip', 'stop')


@HOOKS.register_module()
class BadDataHook(Hook):
    """Find bad samples in the training data, name their files, and skip them or stop.

    COCO annotations are read once before training. Images, masks and label maps are checked when
    they are loaded: truncated or missing files, sizes that do not agree, boxes outside the image,
    class ids out of range. An exception in a transform counts as well.

    Args:
        action (str): 'skip' replaces a bad sample by another one and counts it; 'stop' ends the run
            at the first one. Defaults to 'skip'.
        max_skipped (int): The number of bad samples that a process skips before it stops.
            Defaults to 1000.

    Raises:
        ValueError: If ``action`` is unknown or ``max_skipped`` is negative.
    """

    priority = 'HIGH'  # after ResumeHook has replaced the data loader

    def __init__(self, action: str = 'skip', max_skipped: int = 1000) -> None:
        if action not in _ACTIONS:
            raise ValueError(f'action must be one of {_ACTIONS}, but got {action!r}')
        if max_skipped < 0:
            raise ValueError(f'max_skipped must not be negative, but got {max_skipped}')
        self.action = action
        self.max_skipped = max_skipped

    def before_train(self, runner: Any) -> None:
        """Check the annotations and prepare the checks of loaded samples."""
        self._check_annotations(runner)
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
            runner.logger.error(f'skipped at iteration {runner.iter + 1}: {text}')
        if count > self.max_skipped:
            raise UserError(
                f'{count} bad samples were skipped, more than max_skipped={self.max_skipped}; the '
                f'last is {messages[-1]}'
            )

    def after_train(self, runner: Any) -> None:
        count = runner.message_hub.runtime_info.get('bad_samples', 0)
        if count:
            runner.logger.error(f'{count} bad samples were skipped in this run')

    def _check_annotations(self, runner: Any) -> None:
        report = Report()
        if is_main_process():
            for leaf, _ in coco_files(runner.cfg.train_dataloader.get('dataset')):
                check_coco(leaf, report, 'train')
        for group in report.groups('note'):
            runner.logger.info(str(group))
        errors = [str(group) for group in report.groups('error', 'warning')]
        for text in errors:
            runner.logger.error(text)
        first = errors[:1] or [None]
        broadcast_object_list(first)
        if self.action == 'stop' and first[0] is not None:
            raise UserError(first[0])


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
