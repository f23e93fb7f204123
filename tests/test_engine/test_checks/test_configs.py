"""Settings of a config, and the paths of its data loaders and evaluators."""

import pytest
import torch
from mmengine.config import Config
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from mmvmamba.engine.checks.configs import (
    annotation_file,
    check_data,
    check_settings,
    check_stages,
    leaf_datasets,
)
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


@pytest.mark.parametrize('prefix', [5, ['images'], ('images',)])
def test_prefixes_of_another_type(root, prefix):
    with pytest.raises(UserError, match='data_prefix must be a str or a dict, but got '):
        check_data(config(root, data_prefix=prefix), 'train')


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


# ---- kinds of settings ----


def settings(**changes):
    cfg = Config(
        dict(
            model=dict(type='A', backbone=dict(type='B')),
            train_dataloader=dict(batch_size=2, num_workers=0, dataset=dict(type='C')),
            train_cfg=dict(type='D', max_epochs=2, val_interval=1),
            optim_wrapper=dict(optimizer=dict(type='E', lr=0.1), clip_grad=None),
            val_dataloader=None,
            default_hooks=dict(timer=None, logger=dict(type='F', interval=10)),
            custom_hooks=[dict(type='G', interval=-1), dict(type='H')],
        )
    )
    cfg.merge_from_dict(changes)
    return cfg


@pytest.mark.parametrize(
    'changes',
    [
        {},
        {'default_hooks': None},
        {'randomness': dict(seed=None)},
        {'optim_wrapper.accumulative_counts': 4},
        {'custom_hooks': None},
    ],
)
def test_settings_of_the_right_kind(changes):
    check_settings(settings(**changes))


@pytest.mark.parametrize(
    ('name', 'value', 'words'),
    [
        ('model', 'vmamba', "must be a dict, but got 'vmamba'"),
        ('model', None, 'must be a dict, but got None'),
        (
            'model',
            (dict(type='A'),),
            r"must be a dict, but got \({'type': 'A'},\), a tuple; remove",
        ),
        ('default_hooks', 'x', 'must be a dict'),
        ('train_dataloader', 'mine', 'must be a dict'),
        ('train_dataloader.dataset', 'mine', 'must be a dict'),
        ('train_dataloader.batch_size', 0, 'must be at least 1, but got 0'),
        ('train_dataloader.batch_size', 'two', "must be a number, but got 'two'"),
        ('train_dataloader.sampler', 'mine', 'must be a dict'),
        ('default_scope', 5, 'must be a str, but got 5'),
        ('custom_hooks', 5, 'must be a list, but got 5'),
        ('train_dataloader.num_workers', 1.5, r'must be an integer, but got 1\.5'),
        ('train_dataloader.num_workers', -1, 'must be at least 0, but got -1'),
        ('train_cfg.max_epochs', 'many', "must be a number, but got 'many'"),
        ('train_cfg.max_epochs', (12,), r'must be a number, but got \(12,\), a tuple; remove the'),
        ('train_dataloader.batch_size', True, 'must be a number, but got True'),
        ('optim_wrapper.optimizer.lr', {}, 'must be a number, but got {}'),
        ('train_cfg.val_interval', 0, 'must be at least 1, but got 0'),
        ('optim_wrapper.optimizer.lr', 'fast', "must be a number, but got 'fast'"),
        ('default_hooks.logger.interval', 'often', "must be a number, but got 'often'"),
        ('randomness', dict(seed=-3), r'\.seed must be at least 0, but got -3'),
    ],
)
def test_settings_of_another_kind(name, value, words):
    cfg = settings()
    *parents, last = name.split('.')
    part = cfg
    for key in parents:
        part = part[key]
    part[last] = value
    with pytest.raises(UserError, match=rf'^{name} ?{words}'):
        check_settings(cfg)


@pytest.mark.parametrize(
    'changes',
    [
        dict(custom_hooks=[dict(type='MyHook', interval='epoch')]),
        dict(default_hooks=dict(mine=dict(type='MyHook', interval='epoch'))),
        dict(model=dict(type='Mine', backbone='vmamba_tiny')),
        dict(train_cfg=dict(max_epochs=2, val_interval=1e3)),
        dict(train_dataloader=dict(batch_size=[8, 32])),  # of a sampler for several datasets
    ],
)
def test_settings_that_others_define(changes):
    check_settings(settings(**changes))


@pytest.mark.parametrize('names', [(), ('val_dataloader', 'val_cfg', 'val_evaluator')])
def test_complete_stages(names):
    check_stages(Config({name: {} for name in names}))


@pytest.mark.parametrize('missing', ['val_dataloader', 'val_cfg', 'val_evaluator'])
def test_incomplete_stages(missing):
    names = {'val_dataloader', 'val_cfg', 'val_evaluator'} - {missing}
    words = rf"must all be set or all be None, but \['{missing}'\] are None; use --no-validate"
    with pytest.raises(UserError, match=words):
        check_stages(Config({name: {} for name in names}))
    for stage, last in (('train', 'optim_wrapper'), ('test', 'test_evaluator')):
        with pytest.raises(UserError, match=rf"\['{stage}_cfg', '{last}'\] are None$"):
            check_stages(Config({f'{stage}_dataloader': {}}))
