"""Models by name, config and callable, with the weights of a file."""

import re
import sys

import pytest
import torch
from mmengine.model import BaseModule
from torch import nn

from mmvmamba.nn import VMambaNet

from ...analysis_tools import load

analysis_model = load('analysis_model')
load_model = analysis_model.load_model

CLASSIFIER = 'mmvmamba::vmamba/vmamba-t_8xb128_in1k.py'
ARCH = dict(embed_dims=8, depths=[1] * 4, num_heads=[1] * 4)
THIN = '+dims=(8,16,24,32)+depths=(1,1,1,1)'


class Plain(nn.Module):
    """A network of a user's own."""

    def __init__(self, width=4, img_size=None):
        super().__init__()
        self.img_size = img_size
        self.conv = nn.Conv2d(3, width, 4, 4)

    def forward_features(self, x):
        return dict(first=x, last=self.conv(x))

    def forward(self, x):
        return self.conv(x).mean((2, 3))


class Flipped(Plain):
    """As timm's networks of (N, H, W, C) say it."""

    output_fmt = 'NHWC'

    def forward_features(self, x):
        return self.conv(x).permute(0, 2, 3, 1)


class Managed(BaseModule):
    """A network that MMEngine initializes after construction."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(3.0))

    def init_weights(self):
        nn.init.ones_(self.scale)

    def forward(self, x):
        return self.scale * x


def trained():
    """A network with weights of its own."""
    return Managed()


def no_module():
    return 3


@pytest.fixture
def importable(monkeypatch):
    """Make the classes above importable by name."""
    monkeypatch.setitem(sys.modules, 'user_models', sys.modules[__name__])
    return 'user_models'


@pytest.fixture
def config(tmp_path):
    """A thin classifier's config in a file."""
    path = tmp_path / 'thin.py'
    path.write_text(
        f"_base_ = '{CLASSIFIER}'\n"
        'model = dict(backbone=dict(dims=(8, 16, 24, 32), depths=(1, 1, 1, 1)), '
        'head=dict(in_channels=32))\n'
    )
    return path


def test_scores_and_last_map_of_ours(config):
    images = torch.rand(1, 3, 64, 96)
    for spec in (f'tiny{THIN}', f'{config}+scan=bidirectional'):
        with torch.no_grad():
            assert load_model(spec)(images).shape == (1, 1000)
            assert load_model(spec, to_map=True)(images).shape == (1, 32, 2, 3)
    assert load_model(f'{config}+scan=bidirectional').name == 'thin+scan=bidirectional'


@pytest.mark.parametrize(
    'spec, shape',
    [
        ('resnet18_8xb32_in1k', (1, 512, 2, 2)),
        ('convnext-v2-atto_fcmae-pre_3rdparty_in1k', (1, 320, 2, 2)),
        ('deit-tiny_4xb256_in1k', (1, 192, 4, 4)),
    ],
)
def test_last_map_of_mmpretrains(spec, shape):
    with torch.no_grad():
        assert load_model(spec, to_map=True, size=(64, 64))(torch.rand(1, 3, 64, 64)).shape == shape


def test_external_configs_and_detectors():
    model = load_model(f'mmvmamba::mask_rcnn/mask-rcnn_vmamba-t_fpn_1x_coco.py{THIN}', to_map=True)
    assert model.name == f'mask-rcnn_vmamba-t_fpn_1x_coco{THIN}' and not model.training
    assert hasattr(model.net, 'roi_head') and model.weights == 'random weights'
    with torch.no_grad():
        assert model(torch.rand(1, 3, 64, 64)).shape == (1, 32, 2, 2)


def test_a_callable_with_arguments(importable):
    model = load_model(f'{importable}:Plain+width=6', size=(32, 64))
    images = torch.rand(2, 3, 32, 64)
    assert model(images).shape == (2, 6) and model.net.img_size == (32, 64)
    assert load_model(f'{importable}:Plain', to_map=True)(images).shape == (2, 4, 8, 16)


@pytest.mark.parametrize('size, window', [(None, 7), ((224, 224), 7), ((384, 512), 12)])
def test_scaled_windows(size, window):
    model = load_model(f'swin-tiny_16xb64_in1k+window_size=scaled+arch={ARCH}', size=size)
    table = model.net.backbone.stages[0].blocks[0].attn.w_msa.relative_position_bias_table
    assert table.shape == ((2 * window - 1) ** 2, 1)


def test_normalizes_as_the_config_says(importable):
    images = torch.tensor(analysis_model.MEAN).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    model = load_model(f'{importable}:Plain')
    assert model.normalize(images).abs().max() < 1e-5
    torch.testing.assert_close(
        model.normalize(images + torch.tensor(analysis_model.STD).view(3, 1, 1)),
        torch.ones(1, 3, 2, 2),
    )


def test_only_a_class_of_mmengines_is_initialized(importable):
    """A function may return a trained network."""
    for name, scale in (('Managed', 1), ('trained', 3)):
        model = load_model(f'{importable}:{name}')
        assert model.net.scale == scale and model.weights == 'as the callable built it'


def test_what_the_weights_are_called(tmp_path, config):
    file = tmp_path / 'epoch_1.pth'
    model = load_model(str(config))
    torch.save(dict(state_dict=model.net.state_dict()), file)
    assert model.weights == 'random weights'
    assert load_model(str(config), str(file)).weights == 'epoch_1.pth'
    backbone = {k.removeprefix('backbone.'): v for k, v in model.net.state_dict().items()}
    torch.save(dict(model=backbone), tmp_path / 'backbone.pth')
    init = dict(type='Pretrained', checkpoint=str(tmp_path / 'backbone.pth'))
    model = load_model(f'{config}+init_cfg={init}')
    assert model.weights == 'weights of its init_cfg'
    for key, value in model.net.backbone.named_parameters():
        torch.testing.assert_close(value, backbone[key], msg=key)


def test_channels_come_in_the_order_of_the_mean(tmp_path):
    """Image mean and network input are in B, G, R order if nothing converts them."""
    model = load_model('regnetx-400mf_8xb128_in1k')
    bgr = torch.tensor([103.53, 116.28, 123.675]).view(1, 3, 1, 1)
    assert model.bgr and model.normalize(bgr.flip(1).expand(1, 3, 2, 2)).abs().max() < 1e-5
    for text, flipped in (('bgr_to_rgb=True', False), ('bgr_to_rgb=False', True)):
        path = tmp_path / 'detector.py'
        path.write_text(
            "_base_ = 'mmvmamba::mask_rcnn/mask-rcnn_vmamba-t_fpn_1x_coco.py'\n"
            f'model = dict(data_preprocessor=dict({text}))\n'
        )
        assert load_model(f'{path}{THIN}', to_map=True).bgr == flipped
    assert not load_model('resnet18_8xb32_in1k').bgr


def test_the_models_own_preprocessor_goes_first(config):
    config.write_text(
        config.read_text() + 'model.update(data_preprocessor=dict(mean=[1, 2, 3], std=[4] * 3))\n'
    )
    model = load_model(str(config))
    assert model.bgr and model.mean.flatten().tolist() == [1, 2, 3]


def test_a_config_whose_types_are_classes(tmp_path):
    path = tmp_path / 'lazy.py'
    path.write_text(
        'from mmpretrain.models import GlobalAveragePooling, ImageClassifier\n'
        'from mmpretrain.models import LinearClsHead, ResNet\n'
        "default_scope = 'mmpretrain'\n"
        'model = dict(type=ImageClassifier, backbone=dict(type=ResNet, depth=18),\n'
        '    neck=dict(type=GlobalAveragePooling),\n'
        '    head=dict(type=LinearClsHead, num_classes=3, in_channels=512))\n'
    )
    with torch.no_grad():
        assert load_model(f'{path}+depth=34')(torch.rand(1, 3, 32, 32)).shape == (1, 3)
    with pytest.raises(TypeError, match='color'):
        load_model(f'{path}+color=red')


def test_maps_with_channels_last(importable):
    images = torch.rand(1, 3, 32, 64)
    assert load_model(f'{importable}:Flipped', to_map=True)(images).shape == (1, 4, 8, 16)


def test_last_map_of_timms_swin():
    pytest.importorskip('timm')
    spec = 'timm:create_model+model_name=swin_tiny_patch4_window7_224+img_size=64+window_size=2'
    model = load_model(f'{spec}+depths=(1,1,1,1)+embed_dim=24', to_map=True)
    with torch.no_grad():
        assert model(torch.rand(1, 3, 64, 64)).shape == (1, 192, 2, 2)


def test_names_what_is_near():
    with pytest.raises(ValueError, match=r'did you mean .*swin-tiny_16xb64_in1k'):
        load_model('swin-tiny_16xb64')


def test_published_weights_are_those_of_the_index(monkeypatch):
    asked = []

    def read(filename):
        asked.append(filename)
        raise FileNotFoundError(filename)

    monkeypatch.setattr(analysis_model, 'read_checkpoint', read)
    with pytest.raises(FileNotFoundError):
        load_model('resnet18_8xb32_in1k', 'pretrained')
    assert asked[0].startswith('https://') and 'resnet18' in asked[0]
    with pytest.raises(ValueError, match='no published weights'):
        load_model(f'tiny{THIN}', 'pretrained')


@pytest.mark.parametrize(
    'spec, message',
    [
        ('tinny', r"'tinny' is not an architecture .*did you mean tiny"),
        ('tiny+scan=spiral', 'spiral'),
        ('tiny+color=red', 'color'),
        (
            'swin-tiny_16xb64_in1k+color=red',
            r"SwinTransformer.* unexpected keyword argument 'color'",
        ),
        ('missing.py', 'cannot be read.*No such file'),
        ('mmvmamba::vmamba/missing.py', 'cannot be read'),
        ('no_such_module:Net', 'cannot be imported.*PYTHONPATH'),
        ('torch.nn:NoSuchClass', 'cannot be imported'),
        ('torch:pi', 'not callable'),
        ('torch.nn:Identity+dim=x+in=3', None),
    ],
)
def test_refuses_by_name(spec, message):
    if message is None:  # a class that takes any argument
        assert isinstance(load_model(spec).net, nn.Identity)
        return
    with pytest.raises((ValueError, TypeError), match=message):
        load_model(spec)


def test_refuses_what_is_no_model(importable, tmp_path):
    with pytest.raises(TypeError, match='must return an nn.Module, but got int'):
        load_model(f'{importable}:no_module')
    config = tmp_path / 'empty.py'
    config.write_text('x = 1\n')
    with pytest.raises(ValueError, match='model with a backbone'):
        load_model(str(config))
    with pytest.raises(ValueError, match=r'maps \(N, C, H, W\).*shape \(1, 5\)'):
        load_model('torch.nn:Flatten', to_map=True)(torch.rand(1, 5, 1, 1))


def test_statistics_must_be_in_the_file(tmp_path):
    state = load_model('resnet18_8xb32_in1k').net.state_dict()
    file = tmp_path / 'resnet.pth'
    without = {k: v for k, v in state.items() if not k.endswith('num_batches_tracked')}
    torch.save(dict(state_dict=without), file)
    assert load_model('resnet18_8xb32_in1k', str(file)).weights == 'resnet.pth'
    without = {k: v for k, v in without.items() if not k.endswith('running_var')}
    torch.save(dict(state_dict=without), file)
    with pytest.raises(ValueError, match=r'missing: \S+running_var.* and 12 more') as raised:
        load_model('resnet18_8xb32_in1k', str(file))
    found, total = map(int, re.search(r'(\d+) of (\d+) tensors found', str(raised.value)).groups())
    assert total - found == 20


def test_loads_a_whole_file_and_nothing_less(tmp_path, config):
    torch.manual_seed(1)
    net = VMambaNet('tiny', dims=(8, 16, 24, 32), depths=(1, 1, 1, 1)).eval()
    whole, part = tmp_path / 'whole.pth', tmp_path / 'part.pth'
    torch.save(dict(model=net.state_dict()), whole)
    weights = {k: v for k, v in net.state_dict().items() if not k.startswith('layers.2')}
    torch.save(dict(model=weights), part)
    images = torch.rand(1, 3, 64, 64)
    for spec in (f'tiny{THIN}', str(config)):
        model = load_model(spec, str(whole))
        with torch.no_grad():
            torch.testing.assert_close(model(images), net(images))
        with pytest.raises(ValueError, match='does not match'):
            load_model(spec, str(part))
    with pytest.raises(ValueError, match='does not match'):
        load_model('tiny+dims=(16,16,24,32)+depths=(1,1,1,1)', str(whole))


def test_a_map_needs_no_head(tmp_path):
    model = load_model('resnet18_8xb32_in1k')
    backbone = {k: v for k, v in model.net.state_dict().items() if k.startswith('backbone.')}
    torch.save(dict(state_dict=backbone), tmp_path / 'backbone.pth')
    file = str(tmp_path / 'backbone.pth')
    loaded = load_model('resnet18_8xb32_in1k', file, to_map=True)
    torch.testing.assert_close(loaded.net.backbone.conv1.weight, model.net.backbone.conv1.weight)
    with pytest.raises(ValueError, match='head'):
        load_model('resnet18_8xb32_in1k', file)
    # Nor that a file was trained for as many classes.
    backbone['head.fc.weight'] = torch.zeros(6, 512)
    torch.save(dict(state_dict=backbone), tmp_path / 'backbone.pth')
    loaded = load_model('resnet18_8xb32_in1k', file, to_map=True)
    torch.testing.assert_close(loaded.net.backbone.conv1.weight, model.net.backbone.conv1.weight)
    with pytest.raises(ValueError, match='does not match'):
        load_model('resnet18_8xb32_in1k', file)


VIT = dict(embed_dims=16, num_layers=1, num_heads=2, feedforward_channels=16)
HIVIT = dict(embed_dims=16, depths=[1, 1, 8], num_heads=2)


@pytest.mark.parametrize(
    'spec, sizes',
    [
        (f'hivit-tiny-p16_16xb64_in1k+arch={HIVIT}', [(64, 64), (96, 96)]),
        (f'deit-tiny_4xb256_in1k+arch={VIT}', [(64, 64), (96, 96), (64, 96)]),
        (f'swin-tiny_16xb64_in1k+arch={ARCH}+window_size=scaled', [(96, 96), (160, 160)]),
    ],
)
def test_weights_of_another_image_size(tmp_path, spec, sizes):
    """Position embeddings grow with the image."""
    file = tmp_path / 'small.pth'
    torch.manual_seed(0)
    backbone = load_model(spec, to_map=True, size=sizes[0]).net.backbone
    state = {f'backbone.{key}': value for key, value in backbone.state_dict().items()}
    for key, value in state.items():
        if 'pos' in key and value.is_floating_point():
            value.copy_(torch.full_like(value, 0.25))
    torch.save(dict(state_dict=state), file)
    for size in sizes:
        model = load_model(spec, str(file), to_map=True, size=size)
        grown = {k: v for k, v in model.net.backbone.named_parameters() if 'pos' in k}
        assert grown
        for value in grown.values():  # a constant stays one, however it is resized
            torch.testing.assert_close(value, torch.full_like(value, 0.25))
        with torch.no_grad():
            assert model(torch.rand(1, 3, *size)).isfinite().all()


def test_a_table_keeps_its_axes_and_heads():
    """A ramp along the rows of head 0 and along the columns of head 1."""
    ramp = torch.arange(5.0)
    table = torch.stack([ramp.repeat_interleave(5), ramp.repeat(5)], dim=1)
    net = nn.Module()
    net.relative_position_bias_table = nn.Parameter(torch.empty(81, 2))
    (resized,) = analysis_model.resize_position_tensors(
        {'relative_position_bias_table': table}, net
    ).values()
    rows, columns = resized.T.view(2, 9, 9)
    assert (rows.diff(dim=0) > 0).all() and rows.diff(dim=1).abs().max() < 1e-5
    torch.testing.assert_close(columns, rows.T)
