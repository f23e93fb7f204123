"""Heads with other classes than the data set."""

import pytest

from mmvmamba.engine.errors import UserError
from mmvmamba.engine.head_classes import check_head_classes

DETECTOR = dict(
    rpn_head=dict(num_classes=1),
    roi_head=dict(
        bbox_head=[dict(num_classes=3), dict(num_classes=3)],
        mask_head=dict(num_classes=3),
    ),
)
SEGMENTOR = dict(
    decode_head=dict(num_classes=3), auxiliary_head=[dict(num_classes=3), dict(num_classes=3)]
)


@pytest.mark.parametrize(
    'model', [DETECTOR, SEGMENTOR, dict(head=dict(num_classes=3)), dict(bbox_head=dict(type='A'))]
)
def test_what_fits(model):
    assert check_head_classes(model, 3) == []


@pytest.mark.parametrize(
    ('model', 'count', 'name'),
    [
        (DETECTOR, 4, r'model\.roi_head\.bbox_head\[0\]'),
        (
            dict(DETECTOR, roi_head=dict(mask_head=dict(num_classes=3))),
            4,
            'model.roi_head.mask_head',
        ),
        (dict(bbox_head=dict(num_classes=1)), 2, 'model.bbox_head'),
        (SEGMENTOR, 150, 'model.decode_head'),
        (
            dict(decode_head=dict(num_classes=4), auxiliary_head=SEGMENTOR['auxiliary_head']),
            4,
            r'model\.auxiliary_head\[0\]',
        ),
        (dict(head=dict(num_classes=10)), 1000, 'model.head'),
    ],
)
def test_fewer_classes_than_the_data_set_is_an_error(model, count, name):
    with pytest.raises(UserError, match=rf'has {count} classes, but {name}\.num_classes is'):
        check_head_classes(model, count)


def test_more_classes_are_told():
    (message,) = check_head_classes(dict(bbox_head=dict(num_classes=80)), 2)
    assert message == 'the training data set has 2 classes, but model.bbox_head.num_classes is 80'


def test_one_class_beside_the_rest():
    assert len(check_head_classes(dict(decode_head=dict(num_classes=1)), 2)) == 1


def test_a_mask_for_all_classes():
    agnostic = dict(roi_head=dict(mask_head=dict(num_classes=1, class_agnostic=True)))
    assert check_head_classes(agnostic, 80) == []
