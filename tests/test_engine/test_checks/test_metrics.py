"""Metrics and the models that they evaluate."""

import mmdet.evaluation
import mmpretrain.evaluation
import mmpretrain.models
import mmseg.evaluation
import pytest
from mmengine.evaluator import DumpResults
from torch import nn

from mmvmamba.engine.checks.metrics import check_metrics, check_top_k
from mmvmamba.engine.errors import UserError


@pytest.fixture
def classifier():
    return mmpretrain.models.ImageClassifier(dict(type='mmpretrain.LeNet5', num_classes=3))


def test_metrics_of_the_model(classifier, tmp_path):
    path = str(tmp_path / 'a.pkl')
    dumps = DumpResults(path), mmdet.evaluation.DumpDetResults(path)
    check_metrics([mmpretrain.evaluation.Accuracy(topk=(1,)), *dumps], classifier)
    check_metrics([mmseg.evaluation.IoUMetric()], nn.Linear(2, 2))


def test_metrics_of_another_task(classifier):
    words = 'IoUMetric of mmseg cannot evaluate the predictions of ImageClassifier; use a metric of'
    with pytest.raises(UserError, match=words):
        check_metrics([mmseg.evaluation.IoUMetric()], classifier)
    with pytest.raises(UserError, match='CocoMetric of mmdet cannot evaluate'):
        check_metrics([mmdet.evaluation.CocoMetric()], classifier)


def evaluated(classes, *metrics):
    return dict(model=dict(head=dict(num_classes=classes)), val_evaluator=list(metrics))


@pytest.mark.parametrize(
    'metric',
    [
        dict(type='Accuracy', topk=(1, 3)),
        dict(type='mmpretrain.Accuracy', topk=3),
        dict(type='Accuracy'),
        # The numbers of these count images of a gallery and labels of an image.
        dict(type='RetrievalRecall', topk=(1, 5)),
        dict(type='MultiLabelMetric', topk=5),
        dict(type='SingleLabelMetric'),
    ],
)
def test_top_k_that_can_be_evaluated(metric):
    check_top_k(evaluated(3, metric))


@pytest.mark.parametrize(
    ('top', 'words'),
    [
        ((1, 5), r'is \(1, 5\), but model.head.num_classes is 3; set topk=\(1,\)'),
        (5, 'is 5, but model.head.num_classes is 3'),
        ('x', "must be positive integers, but got 'x'"),
        ((), r'must be positive integers, but got \(\)'),
        ((1, 0), r'must be positive integers, but got \(1, 0\)'),
    ],
)
@pytest.mark.parametrize('kind', ['mmpretrain.Accuracy', mmpretrain.evaluation.Accuracy])
def test_top_k_that_cannot_be_evaluated(kind, top, words):
    cfg = evaluated(3, dict(type='SingleLabelMetric'), dict(type=kind, topk=top))
    with pytest.raises(UserError, match=rf'^val_evaluator\[1\]\.topk {words}'):
        check_top_k(cfg)


@pytest.mark.parametrize('model', [None, {}, dict(head=None), dict(head=dict(num_classes=None))])
def test_models_of_unknown_classes(model):
    check_top_k(dict(model=model, val_evaluator=dict(type='Accuracy', topk=5)))
