"""Names images and annotations that cannot be used, and skips them or stops."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import Hook

from mmvmamba.engine.checks.coco import HARMLESS, read_coco
from mmvmamba.engine.checks.configs import annotation_file, leaf_datasets
from mmvmamba.engine.data.sample_check import CheckSample
from mmvmamba.engine.data.sampling import reader_of, restart_workers
from mmvmamba.engine.errors import UserError
from mmvmamba.registry import HOOKS

_ACTIONS = ('skip', 'stop')
_SHOWN = 5  # names of harmless images, of which there can be many thousands


@HOOKS.register_module()
class BadDataHook(Hook):
    """Finds bad samples of the training data, names their files and skips them or stops.

    COCO's annotations are read once before training. Images, masks and label maps are checked
    when they are loaded: cut-off or missing files, sizes that do not agree, boxes outside the
    image, class ids out of range; whatever a transform raises counts too.

    Args:
        action (str): 'skip' puts another sample in the place of a bad one and counts; 'stop' ends
            the run at the first. Defaults to 'skip'.
        max_skipped (int): So many bad samples are skipped by a process before it stops after all.
            Defaults to 1000.

    Raises:
        ValueError: If ``action`` is neither or ``max_skipped`` is negative.
    """

    priority = 'HIGH'  # after ResumeHook has made the data loader

    def __init__(self, action: str = 'skip', max_skipped: int = 1000) -> None:
        if action not in _ACTIONS:
            raise ValueError(f'action must be one of {_ACTIONS}, but got {action!r}')
        if max_skipped < 0:
            raise ValueError(f'max_skipped must not be negative, but got {max_skipped}')
        self.action = action
        self.max_skipped = max_skipped

    def before_train(self, runner: Any) -> None:
        """Reads the annotations and prepares the checks.

        Raises:
            UserError: If there is a bad annotation and the action is 'stop'.
        """
        self._audit(runner)
        dataset = runner.train_dataloader.dataset
        reader_of(dataset).skip = self.action == 'skip'
        for leaf in _leaves(dataset):
            check_loaded_samples(leaf)
        restart_workers(runner.train_loop)

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Logs and counts what was skipped for this batch.

        Raises:
            UserError: If there were too many.
        """
        samples = data_batch.get('data_samples') if isinstance(data_batch, dict) else None
        metas = [getattr(sample, 'metainfo', {}) for sample in samples or ()]
        messages = [text for meta in metas for text in meta.get('bad_samples', ())]
        if not messages:
            return
        info = runner.message_hub.runtime_info
        count = info.get('bad_samples', 0) + len(messages)
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
        """Says how many were skipped."""
        count = runner.message_hub.runtime_info.get('bad_samples', 0)
        if count:
            runner.logger.error(f'{count} bad samples were skipped in this run')

    def _audit(self, runner: Any) -> None:
        fatal: list[Any] = [None]
        if is_main_process():
            found = list(_audit_annotations(runner.cfg.train_dataloader.get('dataset')))
            for path, kind, names in found:
                if kind == HARMLESS:
                    runner.logger.info(_sentence(path, kind, names, shown=_SHOWN))
                    continue
                text = _sentence(path, kind, names)
                runner.logger.error(text)
                fatal[0] = fatal[0] or text
        broadcast_object_list(fatal)
        if self.action == 'stop' and fatal[0] is not None:
            raise UserError(fatal[0])


def _sentence(path: str, kind: str, names: list[str], shown: int | None = None) -> str:
    """What is wrong with how many images of a file, and with which."""
    more = '' if shown is None or len(names) <= shown else ', ...'
    return f'{path}: {kind} in {len(names)} image(s): {", ".join(names[:shown])}{more}'


def check_loaded_samples(dataset: Any) -> None:
    """Puts :class:`CheckSample` behind the transforms that load, unless it is there."""
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


def _leaves(dataset: Any) -> Iterator[Any]:
    """The data sets inside wrappers such as RepeatDataset and ConcatDataset."""
    inner = getattr(dataset, 'datasets', None) or [getattr(dataset, 'dataset', None)]
    inner = [child for child in inner if child is not None]
    if not inner:
        yield dataset
    for child in inner:
        yield from _leaves(child)


def _audit_annotations(cfg: Any) -> Iterator[tuple[str, str, list[str]]]:
    """Annotation file, what is wrong, and the images, for each file and kind."""
    if cfg is None:
        return
    for leaf in leaf_datasets(cfg):
        path = annotation_file(leaf)
        if path is None or not path.endswith('.json') or '://' in path:
            continue
        for kind, names in read_coco(path).mistakes.items():
            yield path, kind, names
