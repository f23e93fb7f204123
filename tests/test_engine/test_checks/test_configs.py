"""What is said about data sets that cannot be built or are empty."""

import json

import mmdet.datasets  # noqa: F401
import mmpretrain.datasets  # noqa: F401
import pytest
from mmengine.registry import DATASETS
from torch.utils.data import Dataset

from mmvmamba.engine.errors import UserError
from mmvmamba.engine.runner import ToolRunnerMixin


@DATASETS.register_module()
class EmptyDataset(Dataset):
    """A data set of a format of its own."""

    def __init__(self, **kwargs):
        pass

    def __len__(self):
        return 0


def build(dataset):
    sampler = dict(type='DefaultSampler', shuffle=False)
    return ToolRunnerMixin.build_dataloader(
        dict(batch_size=1, num_workers=0, sampler=sampler, dataset=dataset)
    )


def multi_label(folder, content, **settings):
    (folder / 'list.json').write_text(json.dumps(content))
    dataset = dict(type='mmpretrain.MultiLabelDataset', data_root=str(folder), ann_file='list.json')
    return dict(dataset, pipeline=[], **settings)


def coco(folder, content):
    (folder / 'coco.json').write_text(json.dumps(content))
    return dict(
        type='mmdet.CocoDataset',
        data_root=str(folder),
        ann_file='coco.json',
        pipeline=[],
        data_prefix=dict(img='.'),
        filter_cfg=dict(filter_empty_gt=True),
    )


def wrapped(dataset):
    return dict(type='RepeatDataset', times=2, dataset=dataset)


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
    with pytest.raises(UserError, match=r'EmptyDataset has no image in .*list\.json'):
        build(dataset)


def test_an_empty_list_of_mmengine_is_told_with_its_file(tmp_path):
    with pytest.raises(UserError, match=r'MultiLabelDataset has no image in .*list\.json'):
        build(multi_label(tmp_path, dict(OURS, data_list=[])))


@pytest.mark.parametrize('wrap', [dict, wrapped], ids=['plain', 'repeated'])
def test_coco_is_still_checked(tmp_path, wrap):
    with pytest.raises(UserError, match=r"is not COCO: it lacks \['categories'\]"):
        build(wrap(coco(tmp_path, dict(images=[], annotations=[]))))
    other = dict(images=[dict(id=0, file_name='0.png', width=9, height=9)], annotations=[])
    with pytest.raises(UserError, match=r"the categories \['chair leg'\], .*classes \['person'"):
        build(wrap(coco(tmp_path, dict(other, categories=[dict(id=1, name='chair leg')]))))


# ---- classes ----


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
        ('blue', r"the string 'blue'; .* \('blue',\)"),
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
