"""Heads with other classes than the data set."""

import pytest

from mmvmamba.engine.checks.classes import check_head_classes
from mmvmamba.engine.errors import UserError

DETECTOR = dict(
    rpn_head=dict(num_classes=1),
    roi_head=dict(
        bbox_head=[dict(num_classes=3), dict(num_classes=3)],
        mask_head=dict(num_classes=3),
    ),
)
SEGMENTOR = dict(
    # An auxiliary head may learn something else, as STDC's does of boundaries.
    decode_head=[dict(num_classes=3), dict(num_classes=3)],
    auxiliary_head=[dict(num_classes=3), dict(num_classes=2)],
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
    ],
)
def test_fewer_classes_than_the_data_set_is_an_error(model, count, name):
    with pytest.raises(UserError, match=rf'has {count} classes, but {name}\.num_classes is'):
        check_head_classes(model, count)


@pytest.mark.parametrize(
    ('model', 'count'),
    [
        (dict(bbox_head=dict(num_classes=80)), 2),
        (dict(decode_head=dict(num_classes=20)), 21),
        (dict(decode_head=dict(num_classes=150)), 3),
        (dict(head=dict(num_classes=1000)), 10),
        (dict(head=dict(num_classes=10)), 1000),
    ],
)
def test_others_are_told(model, count):
    ((name, head),) = model.items()
    (message,) = check_head_classes(model, count)
    assert message == (
        f'the training data set has {count} classes, but model.{name}.num_classes is '
        f'{head["num_classes"]}'
    )


def test_a_cascade_of_a_segmentors_heads():
    assert len(check_head_classes(SEGMENTOR, 150)) == 2


def test_a_mask_for_all_classes():
    agnostic = dict(roi_head=dict(mask_head=dict(num_classes=1, class_agnostic=True)))
    assert check_head_classes(agnostic, 80) == []
