"""Checks that metrics can evaluate the predictions of a model."""

from collections.abc import Iterable, Mapping
from typing import Any

from mmengine.evaluator import DumpResults
from torch import nn

from mmvmamba.engine.errors import UserError

from .configs import named_settings, type_name

#: The packages whose models and metrics do not go together.
_PACKAGES = {'mmdet', 'mmpretrain', 'mmseg'}


def check_top_k(cfg: Mapping[str, Any]) -> None:
    """Check that top-k accuracies of a classifier are of classes that it has.

    Raises:
        UserError: If ``topk`` is not a number of classes.
    """
    model = cfg.get('model')
    head = model.get('head') if isinstance(model, Mapping) else None
    classes = head.get('num_classes') if isinstance(head, Mapping) else None
    for stage in ('val', 'test'):
        for name, metric in named_settings(f'{stage}_evaluator', cfg.get(f'{stage}_evaluator')):
            if not (type_name(metric) or '').endswith('Accuracy'):
                continue
            top = metric.get('topk', (1,))
            values = top if isinstance(top, list | tuple) else (top,)
            if not values or not all(isinstance(k, int) and k > 0 for k in values):
                raise UserError(f'{name}.topk must be positive integers, but got {top!r}')
            if isinstance(classes, int) and max(values) > classes:
                raise UserError(
                    f'{name}.topk is {top}, but model.head.num_classes is {classes}; set topk=(1,)'
                )


def check_metrics(metrics: Iterable[Any], model: nn.Module) -> None:
    """Check that metrics match the model; a mismatch otherwise fails after the first epoch.

    Args:
        metrics (Iterable): The metrics of an evaluator.
        model (nn.Module): The model without wrappers.

    Raises:
        UserError: If a metric is for other predictions than those of the model.
    """
    own = _package(model)
    for metric in metrics:
        is_other = own in _PACKAGES and _package(metric) in _PACKAGES - {own}
        if is_other and not isinstance(metric, DumpResults):
            raise UserError(
                f'{type(metric).__name__} of {_package(metric)} cannot evaluate the predictions of '
                f'{type(model).__name__}; use a metric of {own}'
            )


def _package(part: Any) -> str:
    return type(part).__module__.partition('.')[0]
