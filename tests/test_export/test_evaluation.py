"""Metrics of two models on the same images, and the interval of their difference."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.evaluator import BaseMetric
from torch import nn

from mmvmamba.export.evaluation import compare_metrics, replace_part


class Mean(BaseMetric):
    """Mean of the results."""

    def __init__(self, results):
        super().__init__()
        self.results = list(results)

    def process(self, data_batch, data_samples):
        raise NotImplementedError

    def compute_metrics(self, results):
        return {'mean': sum(results) / len(results)}


class CocoMean(Mean):
    """Mean over the images that it is told of, as COCO's metrics are."""

    img_ids = None

    def compute_metrics(self, results):
        scores = {prediction['img_id']: prediction['score'] for _, prediction in results}
        return {'mean': sum(scores[i] for i in self.img_ids) / len(self.img_ids)}


def test_the_margin_of_a_mean_is_that_of_student():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 400))
    second += first
    (result,) = compare_metrics([Mean(first)], [Mean(second)]).values()
    assert result.reference == pytest.approx(first.mean())
    assert result.other == pytest.approx(second.mean())
    groups = (second - first).reshape(20, 20).mean(0)  # every twentieth image
    assert result.margin == pytest.approx(2.093 * groups.std(ddof=1) / math.sqrt(20))


def test_a_common_error_cancels():
    values = np.random.default_rng(0).normal(size=40)
    (result,) = compare_metrics([Mean(values)], [Mean(values + 1)]).values()
    assert result.other - result.reference == pytest.approx(1)
    assert result.margin == pytest.approx(0, abs=1e-9)


def test_few_images_have_no_margin():
    (result,) = compare_metrics([Mean([1.0])], [Mean([2.0])]).values()
    assert (result.reference, result.other) == (1, 2) and math.isnan(result.margin)


def test_metrics_of_coco_are_told_the_images():
    results = [({}, dict(img_id=i, score=float(i))) for i in range(40)]
    (result,) = compare_metrics([CocoMean(results)], [CocoMean(results)]).values()
    assert result.reference == result.other == 19.5 and result.margin == 0


def test_replaced_parts():
    outputs = (torch.ones(1), torch.zeros(1))
    model = nn.Module()
    model.backbone, model.head = nn.Identity(), nn.Identity()
    assert replace_part(model, 'backbone', lambda _: outputs).backbone(None) == outputs
    assert replace_part(model, 'neck', lambda _: outputs).extract_feat(None) == outputs
    classifier = replace_part(model, 'whole', lambda _: outputs)
    assert classifier.head(classifier.extract_feat(None)) is outputs[0]
    model.decode_head = nn.Identity()
    segmentor = replace_part(model, 'whole', lambda _: outputs)
    assert segmentor.encode_decode(None, [SimpleNamespace()]) is outputs[0]
    assert not hasattr(model, 'extract_feat')
