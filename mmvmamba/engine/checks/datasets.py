"""Checks of all data that a run will read, before its first step."""

import json
from collections.abc import Mapping
from typing import Any

from mmengine.config import Config

from .channels import check_color_transforms, model_channels
from .classes import smallest_head
from .coco import check_coco, coco_files
from .configs import annotation_file, leaf_datasets, named_settings
from .images import check_images
from .report import Report

STAGES = ('train', 'val', 'test')


def check_datasets(
    cfg: Config,
    stages: tuple[str, ...] = STAGES,
    sample: int | None = 64,
    warn_only: tuple[str, ...] = (),
    skip: bool = False,
) -> Report:
    """Check the annotations, images, label maps and classes of data loaders and evaluators.

    No dataset is built, and one that several stages share is checked once.

    Args:
        cfg (Config): The config of a run.
        stages (tuple[str]): 'train', 'val' and 'test', in any selection.
        sample (int, optional): The number of images of each dataset to decode; None for all.
            Defaults to 64.
        warn_only (tuple[str]): Stages whose errors are reported as warnings. Defaults to ().
        skip (bool): Whether training replaces samples that cannot be used, so that these are
            warnings. Defaults to False.
    """
    whole = Report()
    channels, head = model_channels(cfg), smallest_head(cfg.get('model'))
    done: set[str] = set()
    for stage in stages:
        report = Report()
        metrics = [m for _, m in named_settings('', cfg.get(f'{stage}_evaluator'))]
        # The masks that a pipeline loads for training are checked in any case.
        needs_masks = any('segm' in _words(metric.get('metric')) for metric in metrics)
        leaves = list(leaf_datasets((cfg.get(f'{stage}_dataloader') or {}).get('dataset')))
        for leaf in leaves:
            if _is_new(done, leaf, stage == 'train'):
                for _ in coco_files(leaf):
                    check_coco(leaf, report, stage, needs_masks)
                check_images(leaf, report, sample, channels, head if stage == 'train' else None)
                check_color_transforms(leaf, report, channels)
        files = {annotation_file(leaf) for leaf in leaves}
        for path in {metric.get('ann_file') for metric in metrics} - files - {None}:
            leaf = dict(type='mmdet.CocoDataset', ann_file=path)
            if _is_new(done, leaf, stage == 'train'):
                check_coco(leaf, report, stage, needs_masks)
        errors_as = 'warning' if stage in warn_only else 'error'
        whole.merge(report, errors_as, 'warning' if skip and stage == 'train' else errors_as)
    return whole


def _is_new(done: set[str], leaf: Mapping[str, Any], is_training: bool) -> bool:
    """Return True for a dataset that has not been checked for training or for evaluation."""
    # Its transforms differ between stages and are not checked.
    settings = {key: value for key, value in leaf.items() if key != 'pipeline'}
    key = json.dumps([is_training, settings], sort_keys=True, default=str)
    return key not in done and not done.add(key)


def _words(value: Any) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value or ())
