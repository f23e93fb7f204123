"""The data of whole configs."""

import json

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

from mmvmamba.engine.checks import datasets
from mmvmamba.engine.checks.datasets import check_datasets


def write(folder, **annotation):
    """Write two images with an annotation each, of which the second is changed."""
    (folder / 'images').mkdir(parents=True)
    images = []
    for i in range(2):
        Image.fromarray(np.full((30, 40, 3), 99, np.uint8)).save(folder / 'images' / f'{i}.jpg')
        images.append(dict(id=i + 1, file_name=f'{i}.jpg', width=40, height=30))
    polygon = [[1, 1, 20, 1, 20, 20]]
    good = dict(category_id=1, bbox=[1, 1, 19, 19], area=180, iscrowd=0, segmentation=polygon)
    content = dict(
        images=images,
        annotations=[dict(good, id=1, image_id=1), dict(good, id=2, image_id=2, **annotation)],
        categories=[dict(id=1, name='cat')],
    )
    (folder / 'coco.json').write_text(json.dumps(content))
    return folder


def loader(folder):
    dataset = dict(
        type='mmdet.CocoDataset',
        data_root=str(folder),
        ann_file='coco.json',
        data_prefix=dict(img='images/'),
        metainfo=dict(classes=('cat',)),
        pipeline=[dict(type='LoadImageFromFile')],
    )
    return dict(dataset=dict(type='RepeatDataset', times=2, dataset=dataset))


@pytest.fixture
def cfg(tmp_path):
    """A config whose validation and test data are the same."""
    val = loader(write(tmp_path / 'val'))
    evaluator = dict(type='CocoMetric', ann_file=str(tmp_path / 'val' / 'coco.json'), metric='bbox')
    return Config(
        dict(
            train_dataloader=loader(write(tmp_path / 'train')),
            val_dataloader=val,
            test_dataloader=val,
            val_evaluator=evaluator,
            test_evaluator=evaluator,
        )
    )


def kinds(report):
    def stage(group):
        return next(part for part in ('train', 'val', 'other') if f'/{part}/' in f'{group.path}/')

    return [(group.severity, stage(group), group.kind) for group in report.groups()]


def rewrite(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_good_data(cfg):
    assert kinds(check_datasets(cfg)) == []


def test_each_data_set_is_read_once(cfg, monkeypatch):
    read = []
    monkeypatch.setattr(datasets, 'check_images', lambda leaf, *_: read.append(leaf['data_root']))
    check_datasets(cfg)
    assert [root.split('/')[-1] for root in read] == ['train', 'val']


def test_images_with_other_channels_than_the_model(cfg):
    cfg.model = dict(backbone=dict(type='mmvmamba.VMamba', in_channels=12))
    found = kinds(check_datasets(cfg, skip=True))
    kind = 'image is loaded with 3 channels, but the model takes 12'
    assert found == [('error', 'train', kind), ('error', 'val', kind)]
    cfg.model.backbone.type = 'mmdet.AnotherBackbone'
    assert kinds(check_datasets(cfg)) == []


@pytest.mark.parametrize('stage', ['train', 'val'])
def test_missing_images(cfg, tmp_path, stage):
    """Training replaces them; evaluation ends after an epoch."""
    (tmp_path / stage / 'images' / '1.jpg').unlink()
    found = kinds(check_datasets(cfg, skip=True))
    severity = 'warning' if stage == 'train' else 'error'
    assert found == [(severity, stage, 'image does not exist')]
    assert kinds(check_datasets(cfg))[0][0] == 'error'
    if stage == 'val':
        assert kinds(check_datasets(cfg, ('test',), warn_only=('test',)))[0][0] == 'warning'


def test_training_does_not_excuse_an_image_of_the_validation(cfg, tmp_path):
    """Training skips it, and evaluation cannot."""
    cfg.val_dataloader = cfg.train_dataloader
    (tmp_path / 'train' / 'images' / '1.jpg').unlink()
    assert kinds(check_datasets(cfg, skip=True)) == [('error', 'train', 'image does not exist')]


def test_validation_data_is_checked_like_training_data(cfg, tmp_path):
    for stage in ('train', 'val'):
        path = tmp_path / stage / 'coco.json'
        rewrite(path, lambda content: content['annotations'][1].pop('bbox'))
    found = {(severity, folder) for severity, folder, _ in kinds(check_datasets(cfg))}
    assert found >= {('error', 'train'), ('error', 'val')}


def test_masks_that_the_evaluation_compares(cfg, tmp_path):
    path = tmp_path / 'val' / 'coco.json'
    rewrite(path, lambda content: content['annotations'][1].update(segmentation=[]))
    assert not list(check_datasets(cfg).groups('error'))
    cfg.val_evaluator.metric = ['bbox', 'segm']
    assert [folder for _, folder, _ in kinds(check_datasets(cfg))] == ['val']


def test_an_annotation_file_of_the_evaluator_alone(cfg, tmp_path):
    write(tmp_path / 'other', bbox=None)
    cfg.val_evaluator.ann_file = str(tmp_path / 'other' / 'coco.json')
    assert {folder for _, folder, _ in kinds(check_datasets(cfg))} == {'other'}


@pytest.mark.parametrize(('num_classes', 'is_wrong'), [(2, True), (3, False)])
def test_a_head_for_fewer_classes_than_its_label_maps_have(num_classes, is_wrong, tmp_path):
    """Labels that are classes of the dataset, so that only the head is wrong."""
    for folder, value, kind in (('images', 99, 'jpg'), ('labels', 2, 'png')):
        (tmp_path / folder).mkdir()
        shape = (30, 40, 3) if folder == 'images' else (30, 40)
        Image.fromarray(np.full(shape, value, np.uint8)).save(tmp_path / folder / f'a.{kind}')
    dataset = dict(
        type='mmseg.BaseSegDataset',
        data_root=str(tmp_path),
        data_prefix=dict(img_path='images', seg_map_path='labels'),
        metainfo=dict(classes=('a', 'b', 'c')),
        pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')],
    )
    head = dict(type='mmseg.FCNHead', num_classes=num_classes)
    cfg = Config(dict(model=dict(decode_head=head), train_dataloader=dict(dataset=dataset)))
    found = [str(group) for group in check_datasets(cfg).groups('error')]
    assert len(found) == is_wrong
    if is_wrong:
        assert 'but model.decode_head.num_classes is 2' in found[0]
