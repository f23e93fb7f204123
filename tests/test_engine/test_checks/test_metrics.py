"""Metrics and the models that they evaluate."""

import mmdet.evaluation
import mmpretrain.evaluation
import mmpretrain.models
import mmseg.evaluation
import pytest
from mmengine.evaluator import DumpResults
from torch import nn

from mmvmamba.engine.checks.metrics import check_metrics, top_k_mistake
from mmvmamba.engine.errors import UserError


@pytest.fixture
def classifier():
    return mmpretrain.models.ImageClassifier(dict(type='mmpretrain.LeNet5', num_classes=3))


def test_metrics_of_the_model(classifier, tmp_path):
    dump = DumpResults(out_file_path=str(tmp_path / 'a.pkl'))
    check_metrics([mmpretrain.evaluation.Accuracy(topk=(1,)), dump], classifier, {})
    check_metrics([mmseg.evaluation.IoUMetric()], nn.Linear(2, 2), {})


def test_metrics_of_another_task(classifier):
    words = 'IoUMetric of mmseg cannot evaluate the predictions of ImageClassifier; use a metric of'
    with pytest.raises(UserError, match=words):
        check_metrics([mmseg.evaluation.IoUMetric()], classifier, {})
    with pytest.raises(UserError, match='CocoMetric of mmdet cannot evaluate'):
        check_metrics([mmdet.evaluation.CocoMetric()], classifier, {})


def test_top_k_of_more_classes_than_there_are(classifier):
    metric = mmpretrain.evaluation.Accuracy(topk=(1, 5))
    check_metrics([metric], classifier, dict(head=dict(num_classes=5)))
    words = r'Accuracy: `topk` is \(1, 5\), but model.head.num_classes is 3; set `topk=\(1,\)`'
    with pytest.raises(UserError, match=words):
        check_metrics([metric], classifier, dict(head=dict(num_classes=3)))


@pytest.mark.parametrize('cfg', [None, {}, dict(head=None), dict(head=dict(num_classes=None))])
def test_models_of_unknown_classes(cfg):
    assert top_k_mistake(cfg, 5) == ''
