"""Learning rates and weight decays of whole models, against a table of the layers."""

from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mmvmamba.models import VMamba

CONFIGS = Path(__file__).parents[3] / 'configs'
OURS = 'mmvmamba.LayerDecayOptimWrapperConstructor'
MMPRETRAIN = 'mmpretrain.LearningRateDecayOptimWrapperConstructor'
BACKBONE = dict(type='mmvmamba.VMamba', dims=(8, 16, 24, 32), depths=(2, 1, 3, 1))
#: The parameters of each layer of this backbone; everything else is in the last one.
LAYERS = (
    ('patch_embed.', 'pos_embed'),
    ('layers.0.blocks.0.',),
    ('layers.0.blocks.1.', 'layers.0.downsample.'),
    ('layers.1.blocks.0.', 'layers.1.downsample.'),
    ('layers.2.blocks.0.',),
    ('layers.2.blocks.1.',),
    ('layers.2.blocks.2.', 'layers.2.downsample.'),
    ('layers.3.blocks.0.',),
)
RATE, DECAY, LR, WEIGHT_DECAY = 0.5, 0.25, 2.0, 0.05


def backbone(**settings):
    return MODELS.build(dict(BACKBONE, **settings))


def classifier(**settings):
    pytest.importorskip('mmpretrain')
    init_default_scope('mmpretrain')
    head = dict(type='LinearClsHead', num_classes=3, in_channels=32)
    settings = dict(BACKBONE, out_indices=(3,), **settings)
    neck = dict(type='GlobalAveragePooling')
    return MODELS.build(dict(type='ImageClassifier', backbone=settings, neck=neck, head=head))


def detector(**settings):
    pytest.importorskip('mmdet')
    cfg = Config.fromfile(CONFIGS / 'retinanet/retinanet_vmamba-t_fpn_1x_coco.py')
    init_default_scope('mmdet')
    neck = dict(cfg.model.neck, in_channels=[8, 16, 24, 32])
    return MODELS.build(dict(cfg.model, backbone=dict(BACKBONE, **settings), neck=neck))


def segmentor(**settings):
    pytest.importorskip('mmseg')
    init_default_scope('mmseg')
    norm = dict(type='BN')
    head = dict(type='FCNHead', in_channels=32, channels=8, num_classes=3, norm_cfg=norm)
    return MODELS.build(
        dict(
            type='EncoderDecoder',
            backbone=dict(BACKBONE, **settings),
            decode_head=dict(head, in_index=3),
            train_cfg=dict(),
            test_cfg=dict(mode='whole'),
        )
    )


def parameter_groups(model, constructor=OURS, **paramwise):
    """The group of each parameter of an optimizer, by name."""
    wrapper = build_optim_wrapper(
        model,
        dict(
            optimizer=dict(type='AdamW', lr=LR, weight_decay=WEIGHT_DECAY),
            constructor=constructor,
            paramwise_cfg=paramwise,
        ),
    )
    names = {id(p): name for name, p in model.named_parameters()}
    groups = {
        names[id(p)]: group for group in wrapper.optimizer.param_groups for p in group['params']
    }
    assert groups.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    return groups


def scale(model, name):
    """The factor of the learning rate of a parameter."""
    prefix = '' if isinstance(model, VMamba) else 'backbone.'
    layer = len(LAYERS)
    if name.startswith(prefix):
        inside = name.removeprefix(prefix)
        layer = next((i for i, starts in enumerate(LAYERS) if inside.startswith(starts)), layer)
    return RATE ** (len(LAYERS) - layer)


def is_norm(model, name):
    norms = nn.LayerNorm | nn.GroupNorm | nn.modules.batchnorm._BatchNorm
    return isinstance(model.get_submodule(name.rpartition('.')[0]), norms)


MODEL_BUILDERS = pytest.mark.parametrize(
    ('build', 'constructor'),
    [
        (backbone, OURS),
        (classifier, OURS),
        (detector, OURS),
        (segmentor, OURS),
        (backbone, MMPRETRAIN),
        (classifier, MMPRETRAIN),
    ],
    ids=lambda value: value.split('.')[0] if isinstance(value, str) else value.__name__,
)


@MODEL_BUILDERS
def test_learning_rates(build, constructor):
    pytest.importorskip(constructor.split('.')[0])
    model = build(pos_embed_size=32)
    groups = parameter_groups(model, constructor, layer_decay_rate=RATE)
    for name, group in groups.items():
        assert group['lr'] == LR * scale(model, name), name
        assert group['weight_decay'] == WEIGHT_DECAY, name
    used = {group['lr'] for group in groups.values()}
    assert used == {LR * RATE**i for i in range(len(LAYERS) + 1)}


@MODEL_BUILDERS
def test_weight_decays(build, constructor):
    pytest.importorskip(constructor.split('.')[0])
    model = build()
    keys = {'.Ds': dict(decay_mult=0.0), 'layers.2.blocks': dict(decay_mult=0.5)}
    groups = parameter_groups(
        model, constructor, layer_decay_rate=RATE, norm_decay_mult=DECAY, custom_keys=keys
    )
    for name, group in groups.items():
        mult = DECAY if is_norm(model, name) else 1.0
        mult = 0.0 if name.endswith('.Ds') else mult
        mult = 0.5 if 'layers.2.blocks' in name else mult  # the longest key comes first
        assert group['weight_decay'] == WEIGHT_DECAY * mult, name
        assert group['lr'] == LR * scale(model, name), name
    assert {group['weight_decay'] for group in groups.values()} == {
        WEIGHT_DECAY * mult for mult in (0.0, DECAY, 0.5, 1.0)
    }


@pytest.mark.parametrize('build', [backbone, classifier, detector, segmentor])
def test_other_factors_of_the_learning_rate_multiply(build):
    model = build()
    keys = {'.op.': dict(lr_mult=0.1), 'head': dict(lr_mult=10.0)}
    groups = parameter_groups(model, layer_decay_rate=RATE, bias_lr_mult=2.0, custom_keys=keys)
    for name, group in groups.items():
        mult = 2.0 if name.endswith('.bias') and not is_norm(model, name) else 1.0
        mult = 0.1 if '.op.' in name else mult
        mult = 10.0 if 'head' in name else mult
        assert group['lr'] == pytest.approx(LR * scale(model, name) * mult), name


@pytest.mark.parametrize('build', [backbone, classifier, detector, segmentor])
def test_frozen_parameters_are_left_out(build):
    model = build(frozen_stages=1)
    groups = parameter_groups(model, layer_decay_rate=RATE)
    inside = 'layers.0.' if build is backbone else 'backbone.layers.0.'
    assert not any(name.startswith(inside) for name in groups)
    for name, group in groups.items():
        assert group['lr'] == LR * scale(model, name), name


def test_wrapped_model():
    model = segmentor()
    wrapped = nn.Module()
    wrapped.module = model
    cfg = dict(
        optimizer=dict(type='SGD', lr=LR),
        constructor=OURS,
        paramwise_cfg=dict(layer_decay_rate=RATE),
    )
    wrapper = build_optim_wrapper(wrapped, cfg)
    group = wrapper.param_groups[0]
    assert group['params'][0] is next(model.parameters())
    assert group['lr'] == LR * RATE ** len(LAYERS)


@pytest.mark.parametrize('rate', [None, 0.0, 1.5, '0.9'])
def test_wrong_rate(rate):
    with pytest.raises(ValueError, match=r'layer_decay_rate must be in \(0, 1\], but got'):
        parameter_groups(backbone(), layer_decay_rate=rate)


def test_rate_is_required():
    with pytest.raises(ValueError, match='layer_decay_rate must be in .* but got None'):
        parameter_groups(backbone())


def test_a_rate_of_1_changes_nothing():
    groups = parameter_groups(segmentor(), layer_decay_rate=1)
    assert {group['lr'] for group in groups.values()} == {LR}


def test_model_without_layers():
    model = nn.Module()
    model.backbone = nn.Linear(2, 2)
    for without in (model, model.backbone):
        with pytest.raises(TypeError, match='Linear has no method get_layer_depth'):
            parameter_groups(without, layer_decay_rate=0.9)
