"""Configs of networks, written and read, in the format of timm."""

import json

import pytest

from mmvmamba.hub.config import config_of, parse_config, read_config
from mmvmamba.nn import ARCHS, VMambaNet

THIN = dict(dims=(8, 16, 24, 32), depths=(1, 1, 1, 1))


def round_trip(net):
    return parse_config(json.loads(json.dumps(config_of(net))))


def test_content():
    net = VMambaNet('small', 4, 3, **THIN, drop_path_rate=0.1, global_pool='max')
    net.class_names = ('cat', 'dog', 'bird')
    config = json.loads(json.dumps(config_of(net)))
    mean, std = (round(sum(v) / 3, 3) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    assert config['pretrained_cfg'].pop('mean') == pytest.approx([mean], abs=1e-3)
    assert config['pretrained_cfg'].pop('std') == pytest.approx([std], abs=1e-3)
    assert config == {
        'architecture': 'vmamba_small',
        'num_classes': 3,
        'num_features': 32,
        'label_names': ['cat', 'dog', 'bird'],
        'model_args': {
            'dims': [8, 16, 24, 32],
            'depths': [1, 1, 1, 1],
            'drop_path_rate': 0.1,
            'global_pool': 'max',
            'in_chans': 4,
        },
        'pretrained_cfg': {
            'crop_pct': 0.875,
            'interpolation': 'bicubic',
            'pool_size': [7, 7],
            'first_conv': 'patch_embed.0',
            'classifier': 'classifier.head',
            'input_size': [4, 224, 224],
            'num_classes': 3,
        },
    }


@pytest.mark.parametrize('name', ARCHS)
def test_released_architectures(name):
    config = config_of(VMambaNet(name, out_indices=(0, 2), depths=(1, 1, 1, 1)))
    assert ARCHS[config['architecture'].removeprefix('vmamba_')].dims == ARCHS[name].dims
    assert config['model_args']['out_indices'] == (0, 2)
    read = parse_config(config)
    assert read.arch.depths == (1, 1, 1, 1)
    assert read.arguments == dict(in_channels=3, out_indices=(0, 2))


def test_papers_names_are_preferred():
    """Of two names of one architecture, the paper's is the one that people know."""
    for alias in ('tiny', 'small', 'base'):
        settings = ARCHS[alias]
        net = VMambaNet('tiny', **THIN)
        net.settings = settings
        config = config_of(net)
        assert (config['architecture'], config['model_args']) == (f'vmamba_{alias}', {})


@pytest.mark.parametrize(
    'settings',
    [
        dict(scan='cascade', d_state=4, dt_rank=2, out_norm='softmax'),
        dict(scan=(0, 'snake', 3, 'hilbert')),
        dict(norm='bn', stem='patch', downsample='merging', patch_size=8),
        dict(pos_embed_size=64, mlp_ratio=2.5, conv_kernel=0, stem_norm=False),
        dict(arch='vanilla_base', act='gelu', mlp_drop_rate=0.25, out_act=True),
    ],
    ids=str,
)
def test_settings_survive(settings):
    net = VMambaNet(**{'arch': 'tiny', **settings}, **THIN, num_classes=7)
    read = round_trip(net)
    assert read.arch == net.settings
    assert read.arguments == dict(in_channels=3, num_classes=7, global_pool='avg')


def test_reset_classifier_is_seen():
    net = VMambaNet('tiny', **THIN)
    net.class_names = tuple(map(str, range(1000)))
    assert round_trip(net).class_names == net.class_names
    net.reset_classifier(2, 'max')
    read = round_trip(net)
    assert (read.arguments['num_classes'], read.arguments['global_pool']) == (2, 'max')
    assert read.class_names is None


def test_timms_settings_are_kept():
    net = VMambaNet('tiny', **THIN)
    net.pretrained_cfg = dict(url='x', num_classes=5, input_size=(3, 384, 384), mean=(0.5,) * 3)
    cfg = round_trip(net).pretrained_cfg
    assert (cfg['input_size'], cfg['mean'], cfg['num_classes']) == ((3, 384, 384), (0.5,) * 3, 1000)
    assert 'url' not in cfg


def test_arguments_of_a_run_are_the_readers_choice():
    args = dict(backend='native', with_cp=True, frozen_stages=2, drop_rate=0.5)
    arguments = parse_config(dict(architecture='vmamba_tiny', model_args=args)).arguments
    assert arguments == dict(in_channels=3, num_classes=1000, global_pool='avg')


@pytest.mark.parametrize('names', [['a', 'b'], {'0': 'a', '1': 'b'}, {1: 'b', 0: 'a'}], ids=str)
def test_class_names(names):
    config = dict(architecture='vmamba_tiny', num_classes=2, label_names=names)
    assert parse_config(config).class_names == ('a', 'b')


def test_names_of_another_model(caplog):
    """transformers leaves them in the config when it gives a model other classes."""
    config = dict(architecture='vmamba_tiny', num_classes=3, label_names=['a', 'b'])
    assert parse_config(config).class_names is None
    assert 'ignoring 2 class names for 3 classes' in caplog.text


def test_wrong_class_names():
    net = VMambaNet('tiny', num_classes=3, **THIN)
    for names, error in ((('a', 'b'), ValueError), ('abc', TypeError), ((1, 2, 3), TypeError)):
        net.class_names = names
        with pytest.raises(error, match='class names'):
            config_of(net)


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        ('', 'Expecting value'),
        ('{"architecture": ', 'Expecting value'),
        ('[' * 100_000, 'recursion'),
        ('\xff', 'utf-8'),
        ('[]', r'the content must be a dict, but got \[\]'),
        ({}, 'architecture must be one of'),
        ({'architecture': 'resnet50', 'pretrained_cfg': {}}, "but got 'resnet50'"),
        ({'architectures': ['BertModel'], 'model_type': 'bert'}, 'but got None'),
        ({'architecture': ['vmamba_tiny']}, 'architecture must be one of'),
        ({'model_args': [1]}, r'model_args must be a dict, but got \[1\]'),
        ({'model_args': {'dims': 3}}, 'dims must be a sequence of int, but got 3'),
        ({'model_args': {'dims': [0, 1, 2, 3]}}, r'dims\[0\] must be at least 1, but got 0'),
        ({'model_args': {'dim': [8, 16]}}, r"unknown settings \['dim'\]; did you mean"),
        ({'model_args': {'d_state': 1.5}}, 'd_state must be of type int, but got 1.5'),
        ({'model_args': {'scan': 'zigzag'}}, 'scan must be'),
        ({'model_args': {'out_indices': [4]}}, 'out_indices must be one or more stages'),
        ({'model_args': {'in_chans': 'three'}}, 'in_channels must be of type int'),
        ({'model_args': {'global_pool': 'mean'}}, 'global_pool must be one of'),
        ({'num_classes': -1}, 'num_classes must be at least 0, but got -1'),
        ({'num_classes': '10'}, "num_classes must be of type int, but got '10'"),
        ({'num_classes': 1, 'label_names': [1]}, 'class names must be a sequence of str'),
        ({'pretrained_cfg': {'input_size': []}}, 'pretrained_cfg.input_size must be a list of num'),
        ({'pretrained_cfg': {'mean': 'x'}}, 'pretrained_cfg.mean must be a list of numbers'),
        ({'pretrained_cfg': 'x'}, 'pretrained_cfg must be a dict'),
    ],
)
def test_malformed(text, words, tmp_path):
    if isinstance(text, dict):
        is_vmamba = text and not text.keys() & {'architecture', 'architectures'}
        text = json.dumps({'architecture': 'vmamba_tiny', **text} if is_vmamba else text)
    path = tmp_path / 'config.json'
    path.write_bytes(text.encode('latin-1'))
    with pytest.raises(ValueError, match=f'config.json. is not a VMamba config: .*{words}'):
        read_config(path)
