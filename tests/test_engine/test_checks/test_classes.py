"""Classes of datasets, of their files and of heads."""

import json

import mmdet.datasets
import pytest
from mmengine.registry import DATASETS
from torch.utils.data import Dataset

from mmvmamba.engine.checks.classes import check_head_classes, smallest_head
from mmvmamba.engine.errors import UserError

from .datasets import build, coco, multi_label, wrapped

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
        (dict(detector=DETECTOR), 4, r'model\.detector\.roi_head\.bbox_head\[0\]'),
        (dict(roi_head=[{}, DETECTOR['roi_head']]), 4, r'model\.roi_head\[1\]\.bbox_head\[0\]'),
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
        f'the training dataset has {count} classes, but model.{name}.num_classes is '
        f'{head["num_classes"]}'
    )


@pytest.mark.parametrize(
    ('kind', 'name'),
    [('mmseg.FCNHead', 'model.auxiliary_head[0]'), ('mmseg.STDCHead', 'model.decode_head')],
)
def test_auxiliary_heads_that_learn_the_labels(kind, name):
    """The one of STDC learns boundaries."""
    auxiliary = [dict(type=kind, num_classes=2), dict(num_classes=1)]
    decode_head = dict(type='mmseg.FCNHead', num_classes=3)
    model = dict(decode_head=decode_head, auxiliary_head=auxiliary)
    assert smallest_head(model).name == name
    assert bool(check_head_classes(model, 3)) == ('auxiliary' in name)


@pytest.mark.parametrize(
    ('head', 'expected'),
    [
        (dict(num_classes=2, ignore_index=2), (2, 2)),
        (dict(num_classes=1, loss_decode=dict(use_sigmoid=True)), (2, 255)),
        (dict(num_classes=19), (19, 255)),
    ],
)
def test_labels_of_a_segmentation_head(head, expected):
    """One with a single channel learns two labels, and one may leave out a label."""
    teacher = dict(decode_head=dict(type='mmseg.FCNHead', num_classes=2))
    model = dict(decode_head=dict(head, type='mmseg.FCNHead'), teacher=teacher)
    assert smallest_head(model) == ('model.decode_head', *expected)


@pytest.mark.parametrize('model', [None, {}, DETECTOR, dict(head=dict(type='A'))])
def test_models_without_a_head_for_labels(model):
    assert smallest_head(model) is None


def test_a_cascade_of_a_segmentors_heads():
    assert len(check_head_classes(SEGMENTOR, 150)) == 2


def test_a_mask_for_all_classes():
    agnostic = dict(roi_head=dict(mask_head=dict(num_classes=1, class_agnostic=True)))
    assert check_head_classes(agnostic, 80) == []


# ---- datasets without images ----


@DATASETS.register_module()
class EmptyDataset(Dataset):
    """A dataset of a format of its own."""

    def __init__(self, **kwargs):
        pass

    def __len__(self):
        return 0


OURS = dict(metainfo=dict(classes=['a', 'b']), data_list=[dict(img_path='0.png', gt_label=[0])])


@pytest.mark.parametrize('wrap', [dict, wrapped], ids=['plain', 'repeated'])
def test_json_of_another_form_is_not_blamed(tmp_path, wrap):
    assert len(build(wrap(multi_label(tmp_path, OURS))).dataset) > 0
    typo = wrap(dict(multi_label(tmp_path, OURS), pipeline=[dict(type='PackInput')]))
    with pytest.raises(KeyError, match='PackInput is not in'):
        build(typo)


@pytest.mark.parametrize('content', [dict(OURS, data_list=[]), {}])
def test_an_empty_set_of_another_form_is_told_with_its_file(tmp_path, content):
    (tmp_path / 'list.json').write_text(json.dumps(content))
    dataset = dict(type='EmptyDataset', data_root=str(tmp_path), ann_file='list.json')
    with pytest.raises(UserError, match=r'EmptyDataset found no images in .*list\.json'):
        build(dataset)


def test_an_empty_list_of_mmengine_is_told_with_its_file(tmp_path):
    with pytest.raises(UserError, match=r'MultiLabelDataset found no images in .*list\.json'):
        build(multi_label(tmp_path, dict(OURS, data_list=[])))


# ---- classes of datasets ----


def classed(folder, classes, names=('green', 'blue', 'red'), kind='mmdet.CocoDataset'):
    content = dict(
        images=[dict(id=1, file_name='a.png', width=4, height=4)],
        annotations=[
            dict(id=i, image_id=1, category_id=3 * i, bbox=[0, 0, 2, 2], area=4, iscrowd=0)
            for i in range(len(names))
        ],
        categories=[dict(id=3 * i, name=name) for i, name in enumerate(names)],
    )
    return dict(coco(folder, content), type=kind, metainfo=dict(classes=classes))


@pytest.mark.parametrize('wrap', [dict, wrapped], ids=['plain', 'repeated'])
@pytest.mark.parametrize(
    ('classes', 'said'),
    [
        (('green', 'bleu'), r"has \['bleu'\], but .* are \['green', 'blue', 'red'\]"),
        (('blue', 'green'), 'in the order of the file'),
        ('blue', r"must be a tuple, but got 'blue'; .* \('blue',\)"),
    ],
    ids=['typo', 'order', 'string'],
)
def test_classes_that_mmdet_would_number_otherwise(tmp_path, wrap, classes, said):
    with pytest.raises(UserError, match=said):
        build(wrap(classed(tmp_path, classes)))


@pytest.mark.parametrize('classes', [('green', 'blue', 'red'), ['green', 'red'], ('red',)])
def test_classes_of_the_file_in_its_order(tmp_path, classes):
    dataset = build(classed(tmp_path, classes)).dataset
    assert dataset.metainfo['classes'] == classes
    assert [dataset.cat2label[i] for i in dataset.cat_ids] == list(range(len(classes)))


def test_classes_in_a_file_of_names(tmp_path):
    (tmp_path / 'names.txt').write_text('green\nblue\n')
    dataset = build(classed(tmp_path, str(tmp_path / 'names.txt'))).dataset
    assert dataset.metainfo['classes'] == ['green', 'blue']


@DATASETS.register_module()
class OwnNumbersDataset(mmdet.datasets.CocoDataset):
    def load_data_list(self):
        return super().load_data_list()


def test_data_sets_with_numbers_of_their_own_are_left_alone(tmp_path):
    build(classed(tmp_path, ('blue', 'green'), kind='OwnNumbersDataset'))
