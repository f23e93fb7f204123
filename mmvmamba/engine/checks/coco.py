"""Checks of COCO annotation files."""

import functools
import gc
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from mmengine.logging import print_log

from mmvmamba.engine.errors import UserError

from .coco_annotations import (
    AnnotationCheck,
    ClassCounts,
    Image,
    Problem,
    Problems,
    check_categories,
    check_images,
)
from .coco_rules import RULES
from .configs import annotation_file, dataset_class, leaf_datasets
from .report import Report

STAGES = ('train', 'val', 'test')
_LISTS = ('images', 'annotations', 'categories')
_LARGE = 50 * 2**20  # bytes of a file that takes long enough to say so
_SHOWN = 5  # images that a note names
#: Fields that the datasets of mmdet with a reader of their own, such as LVIS, do not need.
_OF_COCO_ALONE = ('image.file_name', 'iscrowd.missing')
_BOXES_ONLY = 'configs/retinanet/retinanet_vmamba-t_fpn_1x_coco.py'


class CocoFile(NamedTuple):
    """Summary of an annotation file, which may be too large to keep in memory.

    Attributes:
        categories (tuple[str, ...]): The names in the order of the file.
        images (tuple[Image, ...]): File names and sizes.
        classes (tuple[ClassCounts, ...]): Numbers of annotations of each category.
        problems (Mapping[str, Problem]): The problems by their key in ``coco_rules.RULES``.
        empty (Problem): The images without annotations.
        annotations (int): The number of annotations.
        is_panoptic (bool): True if the file has the segments of a panoptic file.
        has_masks (bool): True if any annotation has a ``segmentation``.
    """

    categories: tuple[str, ...]
    images: tuple[Image, ...]
    classes: tuple[ClassCounts, ...]
    problems: Mapping[str, Problem]
    empty: Problem
    annotations: int
    is_panoptic: bool
    has_masks: bool


def coco_files(cfg: Mapping[str, Any] | None) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Yield each dataset that mmdet reads with the API of COCO, and its annotation file."""
    for leaf in leaf_datasets(cfg):
        path = annotation_file(leaf)
        if path and os.path.isfile(path) and hasattr(dataset_class(leaf), 'COCOAPI'):
            # Other datasets, such as those of mmpretrain, have a JSON format of their own, and a
            # subclass may read other files.
            if path.endswith('.json') or _is_numbered_by_coco(leaf):
                yield leaf, path


def check_coco(
    leaf: Mapping[str, Any], report: Report, stage: str, needs_masks: bool = False
) -> None:
    """Check the annotation file of a dataset that mmdet reads with the API of COCO.

    Args:
        leaf (Mapping): The config of the dataset.
        report (Report): The problems are added to it.
        stage (str): One of ``STAGES``.
        needs_masks (bool): True if the model learns masks or the evaluation compares them. Masks
            that the dataset's pipeline loads are checked in any case. Defaults to False.

    Raises:
        UserError: If the file cannot be read or is not COCO.
        ValueError: If ``stage`` is unknown.
    """
    if stage not in STAGES:
        raise ValueError(f'stage must be one of {STAGES}, but got {stage!r}')
    path = annotation_file(leaf)
    if path is None or not os.path.isfile(path):
        return
    found = Report()
    _report_all(read_coco(path), leaf, found, path, stage, needs_masks or _loads_masks(leaf))
    # Validation and test data are often the same file.
    known = {(group.severity, group.kind) for group in report.groups() if group.path == path}
    for group in found.groups():
        if (group.severity, group.kind) not in known:
            problem = Problem(group.count, group.items)
            _add(report, group.severity, path, group.kind, problem, group.hint)


def _report_all(
    file: CocoFile, leaf: Mapping[str, Any], report: Report, path: str, stage: str, masks: bool
) -> None:
    skipped = () if _is_numbered_by_coco(leaf) else _OF_COCO_ALONE
    lacks_masks = masks and file.annotations > 0 and not file.has_masks
    if lacks_masks:
        skipped += ('segmentation.missing',)
    for key, problem in file.problems.items():
        severity = _severity(key, stage, masks)
        if severity and key not in skipped:
            _add(report, severity, path, RULES[key].kind, problem, RULES[key].hint)
    if file.is_panoptic:
        return
    if lacks_masks:
        task = 'the model predicts masks' if stage == 'train' else 'the metric compares masks'
        hint = f'To train on boxes only, inherit from a config without masks, such as {_BOXES_ONLY}'
        report.add('error', path, f'no annotation has a `segmentation`, but {task}', '', hint)
    if not file.annotations:
        _report_no_annotation(report, path, stage)
        return
    _check_classes(file, leaf, report, path, stage, masks and not lacks_masks)
    settings = leaf.get('filter_cfg') if stage == 'train' and not leaf.get('test_mode') else None
    _report_empty(file, report, path, stage, settings or {})
    _report_small(file, report, path, (settings or {}).get('min_size', 0))


def _severity(key: str, stage: str, needs_masks: bool) -> str:
    severity = RULES[key].train if stage == 'train' else RULES[key].evaluation
    if key.startswith('segmentation.') and not needs_masks:
        return '' if key == 'segmentation.missing' else 'note'
    return severity


def _add(
    report: Report, severity: str, path: str, kind: str, problem: Problem, hint: str = ''
) -> None:
    """Add all entries that have a problem, of which only the first have a name."""
    first, *others = problem.items or ['']
    report.add(severity, path, kind, first, hint, problem.count - len(others))
    for item in others:
        report.add(severity, path, kind, item, hint)


def _loads_masks(leaf: Mapping[str, Any]) -> bool:
    steps = leaf.get('pipeline') or ()
    return any(isinstance(step, Mapping) and step.get('with_mask') for step in steps)


def _is_numbered_by_coco(leaf: Mapping[str, Any]) -> bool:
    load = getattr(dataset_class(leaf), 'load_data_list', None)
    return getattr(load, '__qualname__', '') == 'CocoDataset.load_data_list'


def _check_classes(
    file: CocoFile, leaf: Mapping[str, Any], report: Report, path: str, stage: str, masks: bool
) -> None:
    """Name the classes without any object that training or evaluation can use."""
    used = _classes(leaf)
    objects = 'objects to detect'  # evaluation counts boxes that training leaves out
    if stage == 'train':
        objects = 'objects with a valid mask' if masks else 'valid boxes'
    lacking = Problem()
    total = 0
    for name, counts in zip(file.categories, file.classes, strict=True):
        if used is None or name in used:
            total += 1
            if not _usable(counts, stage, masks):
                lacking.count += 1
                lacking.items.append(f'{name!r} ({_cause(counts, masks)})')
    if not total:
        hint = f'The file has {list(file.categories[:12])}, the config has {list(used or ())[:12]}'
        report.add('error', path, '`categories` contains none of the classes', '', hint)
    elif lacking.count == total:
        hint = 'There is nothing to learn' if stage == 'train' else 'All metrics would be -1'
        _add(report, 'error', path, f'no class has any {objects}', lacking, hint)
    elif lacking.count:
        _add(report, 'warning', path, f'class has no {objects}', lacking)


def _usable(counts: ClassCounts, stage: str, masks: bool) -> int:
    if stage != 'train':
        return counts.annotations - counts.crowd
    return counts.masks if masks else counts.boxes


def _report_no_annotation(report: Report, path: str, stage: str) -> None:
    hint = {
        'train': 'There is nothing to learn',
        'val': 'All metrics would be -1, and the first checkpoint would remain the best',
        'test': 'All metrics would be -1. For test images, set `format_only=True` in the evaluator',
    }[stage]
    severity = 'warning' if stage == 'test' else 'error'
    report.add(severity, path, '`annotations` is empty', '', hint)


def _cause(counts: ClassCounts, masks: bool) -> str:
    if not counts.annotations:
        return 'no annotations'
    number = f'{counts.annotations} annotation{"s" * (counts.annotations > 1)}'
    if counts.crowd == counts.annotations:
        return f'{number}, all with `iscrowd: 1`'
    return f'{number}, none with a valid {"mask" if masks and counts.boxes else "box"}'


def _classes(leaf: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Return the classes that the config chooses, or None for all of the file."""
    classes = (leaf.get('metainfo') or {}).get('classes')
    return None if classes is None or isinstance(classes, str) else tuple(classes)


def _report_empty(
    file: CocoFile, report: Report, path: str, stage: str, settings: Mapping[str, Any]
) -> None:
    """Report the images without annotations, which mmdet trains or leaves out."""
    if not file.empty.count:
        return
    hint = ''
    if stage == 'train':
        hint = 'Training uses them as background'
    if settings.get('filter_empty_gt'):
        remedy = 'Set `filter_cfg.filter_empty_gt=False` to use them as background'
        hint = f'Training skips them. {remedy}'
    _add(report, 'note', path, 'image has no annotations', file.empty, hint)


def _report_small(file: CocoFile, report: Report, path: str, min_size: int) -> None:
    """Report the images that mmdet leaves out of training for their size."""
    small = [image for image in file.images if image.size and min(image.size) < min_size]
    if small:
        problem = Problem(len(small), [repr(image.file_name) for image in small[:_SHOWN]])
        kind = f'image is smaller than `filter_cfg.min_size={min_size}`'
        _add(report, 'note', path, kind, problem, 'Training skips it')


def read_coco(path: str) -> CocoFile:
    """Read and check an annotation file, and cache the summary until the file changes.

    Raises:
        UserError: If the file cannot be read, or does not hold the ``images``, ``annotations``
            and ``categories`` of COCO.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise UserError(f'annotation file {path!r} cannot be read: {error.strerror}') from error
    return _read(path, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=16)
def _read(path: str, modified: int, size: int) -> CocoFile:
    start = time.monotonic()
    large = log_large_file(path, 'reading')
    with _without_garbage_collection():
        summary = _summarize(_load(path))
    if large:
        seconds = time.monotonic() - start
        print_log(f'read and checked {path!r} in {seconds:.0f} seconds', 'current')
    return summary


def log_large_file(path: str, action: str) -> bool:
    """Log what is about to be done with an annotation file, and return True, if it is large."""
    size = os.path.getsize(path)
    if size > _LARGE:
        print_log(f'{action} annotation file {path!r} ({size / 2**20:.0f} MB) ...', 'current')
    return size > _LARGE


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Save the time to search millions of new objects, which have no cycles, again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _load(path: str) -> dict[str, list[Any]]:
    """Return the three lists of a file."""
    try:
        with open(path, encoding='utf-8') as file:
            content = _parse(file.read())
    except (ValueError, RecursionError) as error:
        raise UserError(f'annotation file {path!r} is not valid JSON: {error}') from error
    except OSError as error:
        raise UserError(f'annotation file {path!r} cannot be read: {error.strerror}') from error
    # The files of test images have no annotations.
    lists = {'annotations': [], **content} if isinstance(content, dict) else {}
    wrong = [name for name in _LISTS if not isinstance(lists.get(name), list)]
    if wrong:
        raise UserError(
            f'annotation file {path!r} is not in COCO format: {wrong} must be lists of objects, '
            f'but the file has the keys {sorted(content)[:12] if lists else []}'
        )
    return {name: lists[name] for name in _LISTS}


def _parse(text: str) -> Any:
    """Parse JSON, with infinity in place of NaN, which comparisons would not find."""
    return json.loads(text, parse_constant=lambda constant: math.inf)


def _summarize(content: Mapping[str, list[Any]]) -> CocoFile:
    problems = Problems()
    images = check_images(content['images'], problems)
    categories = check_categories(content['categories'], problems)
    check = AnnotationCheck(images, categories, problems)
    check.check(content['annotations'])
    empty = [image.file_name for key, image in images.items() if key not in check.objects]
    return CocoFile(
        categories=tuple(categories.values()),
        images=tuple(images.values()),
        classes=tuple(check.classes.values()),
        problems=problems,
        empty=Problem(len(empty), [repr(name) for name in empty[:_SHOWN]]),
        annotations=len(content['annotations']),
        is_panoptic=check.is_panoptic,
        has_masks=check.has_masks,
    )
