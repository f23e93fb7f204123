"""Checks that metrics can evaluate the predictions of a model."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from mmvmamba.engine.errors import UserError

#: The packages whose models and metrics do not go together.
_PACKAGES = {'mmdet', 'mmpretrain', 'mmseg'}


def check_metrics(metrics: Iterable[Any], model: nn.Module, cfg: Any) -> None:
    """Check built metrics, of which others fail after an epoch.

    Args:
        metrics (Iterable): The metrics of an evaluator.
        model (nn.Module): The model without wrappers.
        cfg (Any): The ``model`` of the config.

    Raises:
        UserError: If a metric is for other predictions than those of the model.
    """
    own = _package(model)
    for metric in metrics:
        name = type(metric).__name__
        if own in _PACKAGES and _package(metric) in _PACKAGES - {own}:
            raise UserError(
                f'{name} of {_package(metric)} cannot evaluate the predictions of '
                f'{type(model).__name__}; use a metric of {own}'
            )
        if mistake := top_k_mistake(cfg, getattr(metric, 'topk', None)):
            raise UserError(f'{name}: {mistake}; set `topk=(1,)`')


def top_k_mistake(cfg: Any, top: Any) -> str:
    """Describe a top-k accuracy of more classes than the head of a classifier has."""
    head = cfg.get('head') if isinstance(cfg, Mapping) else None
    classes = head.get('num_classes') if isinstance(head, Mapping) else None
    largest = max(top) if isinstance(top, list | tuple) and top else top
    if isinstance(classes, int) and isinstance(largest, int) and largest > classes:
        return f'`topk` is {top}, but model.head.num_classes is {classes}'
    return ''


def _package(part: Any) -> str:
    return type(part).__module__.partition('.')[0]
