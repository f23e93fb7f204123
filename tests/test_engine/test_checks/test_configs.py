"""Paths in the configs of data loaders and evaluators."""

import pytest
import torch
from mmengine.config import Config
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from mmvmamba.engine.checks.configs import annotation_file, check_data, leaf_datasets
from mmvmamba.engine.errors import UserError


@pytest.fixture
def root(tmp_path):
    (tmp_path / 'images').mkdir()
    (tmp_path / 'list.json').write_text('{}')
    return str(tmp_path)


def config(root, wrap=dict, **dataset):
    dataset = dict(type='CocoDataset', data_root=root, ann_file='list.json') | dataset
    metric = dict(type='CocoMetric', ann_file=f'{root}/list.json')
    return Config(
        dict(train_dataloader=dict(dataset=wrap(dataset)), train_evaluator=[metric, dict(type='A')])
    )


def concatenated(dataset):
    return dict(type='ConcatDataset', datasets=[dict(type='RepeatDataset', dataset=dataset)])


WRAPPERS = pytest.mark.parametrize('wrap', [dict, concatenated], ids=['plain', 'wrapped'])


@WRAPPERS
@pytest.mark.parametrize(
    'dataset',
    [
        {},
        dict(data_prefix=dict(img='images', seg='')),
        dict(data_prefix='images'),
        dict(ann_file=''),
        dict(data_root='s3://bucket/none'),
        dict(data_root='/none', backend_args=dict(backend='petrel')),
        dict(data_prefix=dict(img='http://host/images')),
    ],
)
def test_paths_that_exist_or_are_elsewhere(root, wrap, dataset):
    check_data(config(root, wrap, **dataset), 'train', 'val')


@WRAPPERS
@pytest.mark.parametrize(
    ('dataset', 'words'),
    [
        (dict(data_root='/none'), "data_root '/none' does not exist$"),
        (dict(data_root='none'), "data_root 'none' does not exist in the directory "),
        (dict(ann_file='no.json'), "ann_file '.*no.json' does not exist"),
        (dict(data_prefix=dict(img='no')), "folder img '.*no' does not exist"),
        (dict(data_prefix='no'), "folder data_prefix '.*no' does not exist"),
    ],
)
def test_missing_paths(root, wrap, dataset, words):
    cfg = config(root, wrap, **dataset)
    check_data(cfg, 'val')
    with pytest.raises(UserError, match=rf'^train_dataloader.dataset \(CocoDataset\): {words}'):
        check_data(cfg, 'train')


def test_a_missing_file_of_a_metric(root):
    cfg = config(root)
    cfg.train_evaluator[0].ann_file = 'no.json'
    with pytest.raises(UserError, match=r"train_evaluator\[0\]: ann_file 'no.json' does not exist"):
        check_data(cfg, 'train')


def test_leaves_and_their_annotation_files():
    inner = [dict(ann_file='a.json', data_root='x'), dict(ann_file='/b.json'), dict(ann_file='')]
    cfg = dict(datasets=[dict(dataset=dict(datasets=inner))])
    assert list(leaf_datasets(cfg)) == inner
    assert [annotation_file(leaf) for leaf in inner] == ['x/a.json', '/b.json', None]
    assert list(leaf_datasets(None)) == list(leaf_datasets(dict(dataset='by name'))) == []


def test_leaves_of_built_data_sets():
    inner = [TensorDataset(torch.ones(1)) for _ in range(3)]
    dataset = ConcatDataset([Subset(inner[0], [0]), ConcatDataset(inner[1:])])
    assert list(leaf_datasets(dataset)) == inner
