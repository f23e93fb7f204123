"""Datasets as the tools build them, for the tests of the checks."""

import json

import mmdet.datasets  # noqa: F401
import mmpretrain.datasets  # noqa: F401

from mmvmamba.engine.runner.runner import ToolRunnerMixin


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


def coco_file(tmp_path, **annotation):
    """A file with a good image, one with a changed annotation and one without any."""
    images = [dict(id=i, file_name=f'{i}.jpg', width=40, height=30) for i in range(3)]
    good = dict(id=1, image_id=0, category_id=1, bbox=[0, 0, 40, 30], area=1200, iscrowd=0)
    content = dict(
        images=images,
        annotations=[good, dict(good, id=2, image_id=1, **annotation)],
        categories=[dict(id=1, name='cat')],
    )
    path = tmp_path / 'instances.json'
    path.write_text(json.dumps(content))
    return str(path)
