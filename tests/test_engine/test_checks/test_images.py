"""Checks of files by the kind of dataset."""

import json

import pytest
from mmengine.config import ConfigDict

from mmvmamba.engine.checks.images import check_images, check_listed_images
from mmvmamba.engine.checks.settings import image_loader

from .images import Report, groups, label_map, only, picture, truncate


def check(leaf, *args):
    return groups(check_images, ConfigDict(leaf), Report, *args)


@pytest.fixture
def coco(tmp_path):
    names = ['a.jpg', 'sub/b.jpg', 'c.jpg']
    entries = []
    for i, name in enumerate(names):
        picture(tmp_path / 'images' / name)
        entries.append(dict(id=i, file_name=name, width=8, height=6))
    content = dict(images=entries, annotations=[], categories=[dict(id=1, name='cat')])
    (tmp_path / 'coco.json').write_text(json.dumps(content))
    return dict(
        type='mmdet.CocoDataset',
        data_root=str(tmp_path),
        ann_file='coco.json',
        data_prefix=dict(img='images'),
    )


def listed(tmp_path, *entries, sample=64, **loader):
    step = dict(type='LoadImageFromFile', **loader)
    folder = str(tmp_path / 'images')
    load = image_loader(dict(pipeline=[step]))
    return groups(check_listed_images, entries, folder, Report, sample, load)


def test_coco_without_problems(coco):
    assert check(coco) == check(coco, None) == check(coco, 1) == []


def test_coco_faults(coco, tmp_path):
    (tmp_path / 'images' / 'sub' / 'b.jpg').unlink()
    truncate(picture(tmp_path / 'images' / 'a.jpg', (80, 60)))
    missing, truncated = check(coco)
    assert missing.items == ["'sub/b.jpg'"] and missing.kind == 'image does not exist'
    assert truncated.items == ["'a.jpg'"] and truncated.kind == 'image is truncated'


def test_label_maps_of_coco(coco, tmp_path):
    prefix = dict(img='images', seg='maps')
    for name in ('a', 'sub/b', 'c'):
        label_map(tmp_path / 'maps' / f'{name}.png', 0)
    for kind in ('mmdet.CocoDataset', 'mmdet.CocoPanopticDataset'):
        leaf = dict(coco, type=kind, data_prefix=prefix)
        assert check(leaf) == []
    (tmp_path / 'maps' / 'c.png').unlink()
    only(check(dict(coco, data_prefix=prefix)), 'error', "label map does not exist: 'c.png'")


def test_listed_images(coco, tmp_path):
    assert listed(tmp_path, ('a.jpg', 8, 6), ('sub/b.jpg', 8, 6), ('c.jpg', None, 6)) == []
    only(listed(tmp_path, ('a.jpg', 6, 8)), 'error', "'a.jpg' (8 x 6 and 6 x 8)")
    only(listed(tmp_path, ('a.jpg', 9, 6), ('c.jpg', 8, 6)), 'error', '8 x 6 and 9 x 6')
    entries = [('a.jpg', 8, 6), ('c.jpg', 9, 6)]
    assert listed(tmp_path, *entries, sample=1) == []


def test_orientation(tmp_path):
    picture(tmp_path / 'images' / 'a.jpg', orientation=6)
    group = only(listed(tmp_path, ('a.jpg', 8, 6)), 'error', "'a.jpg' (EXIF orientation 6)")
    assert 'ignore_orientation' in group.hint
    assert listed(tmp_path, ('a.jpg', 6, 8)) == []
    assert listed(tmp_path, ('a.jpg', 8, 6), color_type='color_ignore_orientation') == []


@pytest.mark.parametrize('name', [None, 3, [], {}, True, '', '\0', '\ud800', '/', '..', 'sub'])
@pytest.mark.parametrize('size', [None, 8, 'x', [], -1, 1.5, True])
def test_weird_entries_never_raise(coco, tmp_path, name, size):
    listed(tmp_path, (name, size, size), ('a.jpg', size, size))


def test_a_file_that_is_not_coco(coco, tmp_path):
    (tmp_path / 'coco.json').write_text('[')
    assert check(coco) == []
    assert check(dict(coco, ann_file='no.json')) == []


def test_no_folder(coco):
    for prefix in ({}, dict(img_path='images'), None, 3):
        only(check(dict(coco, data_prefix=prefix)), 'error', 'Set `data_prefix.img`')


@pytest.mark.parametrize(
    'settings',
    [
        dict(backend_args=dict(backend='petrel')),
        dict(data_root='s3://bucket/data'),
        dict(pipeline=[dict(type='LoadImageFromFile', backend_args=dict(backend='lmdb'))]),
    ],
)
@pytest.mark.parametrize(
    'kind', ['mmdet.CocoDataset', 'mmseg.BaseSegDataset', 'mmpretrain.CustomDataset']
)
def test_other_storage(kind, settings):
    found = check(dict(type=kind, data_root='/nowhere', ann_file='x.json') | settings)
    only(found, 'note', f'{kind}: files in another storage backend are not checked')


@pytest.mark.parametrize(
    'kind',
    ['mmdet.LVISV1Dataset', 'mmdet.VOCDataset', 'mmseg.NYUDataset', 'mmpretrain.CIFAR10']
    + ['mmpretrain.MultiLabelDataset', 'Unknown', None],
)
def test_other_data_sets(kind):
    assert check(dict(type=kind, data_root='/nowhere', ann_file='x.json')) == []


def test_segmentation_and_classification(tmp_path):
    leaf = dict(type='mmseg.BaseSegDataset', data_root=str(tmp_path))
    only(check(leaf), 'error', 'the dataset is empty')
    leaf = dict(type='mmpretrain.CustomDataset', data_root=str(tmp_path))
    only(check(leaf), 'error', 'no images in class folders')


def test_classes_in_place_of_names(coco, tmp_path):
    from mmdet.datasets import CocoDataset

    (tmp_path / 'images' / 'a.jpg').unlink()
    only(check(dict(coco, type=CocoDataset)), 'error', "'a.jpg'")
