"""Compare the test metrics of a model with those of its exported part in another runtime."""

import copy
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from mmengine.config import Config
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.runner import Runner
from torch import Tensor, nn

#: Groups of images of the jackknife.
GROUPS = 20
#: The 97.5% quantile of Student's t with GROUPS - 1 degrees of freedom.
QUANTILE = 2.093


class Difference(NamedTuple):
    """A metric of two models; ``other - reference`` is within ``margin`` with 95% confidence."""

    reference: float
    other: float
    margin: float


def replace_part(model: nn.Module, part: str, run: Callable[[Tensor], Any]) -> nn.Module:
    """Return a copy of a model that calls ``run`` in place of its exported part.

    Args:
        model (nn.Module): A classifier, a segmentor or a detector of OpenMMLab.
        part (str): As :func:`mmvmamba.export.parts.choose_part` returns it.
        run (Callable): Takes a batch of images and returns what
            :class:`mmvmamba.export.parts.ExportedModel` does.
    """
    model = copy.deepcopy(model)
    if part == 'backbone':
        model.backbone.forward = run
    elif part == 'neck':
        model.extract_feat = run
    elif hasattr(model, 'decode_head'):
        model.encode_decode = lambda images, metas: run(images)[0]
    else:
        model.extract_feat = run
        model.head.forward = lambda outputs: outputs[0]
    return model


def collect_results(cfg: Config, model: nn.Module) -> list[BaseMetric]:
    """Return the metrics of ``cfg.test_evaluator`` with the results of all images."""
    loader = Runner.build_dataloader(cfg.test_dataloader, seed=0)
    evaluator = Evaluator(cfg.test_evaluator)
    evaluator.dataset_meta = loader.dataset.metainfo
    for data in loader:
        evaluator.process(data_samples=model.test_step(data), data_batch=data)
    return evaluator.metrics


def compare_metrics(reference: list[BaseMetric], other: list[BaseMetric]) -> dict[str, Difference]:
    """Compare the metrics of two models on the same images.

    The margin is that of a jackknife that leaves out a twentieth of the images at a time; it is NaN
    for fewer than 20 images.

    Args:
        reference (list[BaseMetric]): Metrics of the reference model, from :func:`collect_results`.
        other (list[BaseMetric]): Metrics of the other model.
    """
    differences = {}
    for pair in zip(reference, other, strict=True):
        first, second = (_compute(metric, range(len(metric.results))) for metric in pair)
        margins = _jackknife(*pair, list(first))
        for name in first:
            differences[name] = Difference(first[name], second[name], margins[name])
    return differences


def _compute(metric: BaseMetric, indices: Any) -> dict[str, float]:
    """Compute a metric on some of its images."""
    results = [metric.results[i] for i in indices]
    if hasattr(metric, 'img_ids'):  # CocoMetric evaluates all of img_ids
        metric.img_ids = [prediction['img_id'] for _, prediction in results]
    return metric.compute_metrics(results)


def _jackknife(first: BaseMetric, second: BaseMetric, names: list[str]) -> dict[str, float]:
    count = len(first.results)
    if count < GROUPS:
        return dict.fromkeys(names, math.nan)
    differences = []
    for group in range(GROUPS):
        kept = [i for i in range(count) if i % GROUPS != group]
        a, b = _compute(first, kept), _compute(second, kept)
        differences.append([b[name] - a[name] for name in names])
    margins = {}
    for name, values in zip(names, zip(*differences, strict=True), strict=True):
        mean = sum(values) / GROUPS
        variance = (GROUPS - 1) / GROUPS * sum((value - mean) ** 2 for value in values)
        margins[name] = QUANTILE * math.sqrt(variance)
    return margins
