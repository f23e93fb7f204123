"""Weights of a file in any model that is analysed."""

import re

import pytest
import torch
from torch import nn

from mmvmamba.analysis.models import load_model
from mmvmamba.analysis.weights import resize_positions
from mmvmamba.nn import VMambaNet

CLASSIFIER = 'mmvmamba::vmamba/vmamba-t_8xb128_in1k.py'
ARCH = dict(embed_dims=8, depths=[1] * 4, num_heads=[1] * 4)
THIN = '+dims=(8,16,24,32)+depths=(1,1,1,1)'


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
    loaded = load_model('resnet18_8xb32_in1k', file, output='map')
    torch.testing.assert_close(loaded.net.backbone.conv1.weight, model.net.backbone.conv1.weight)
    with pytest.raises(ValueError, match='head'):
        load_model('resnet18_8xb32_in1k', file)
    # Nor that a file was trained for as many classes.
    backbone['head.fc.weight'] = torch.zeros(6, 512)
    torch.save(dict(state_dict=backbone), tmp_path / 'backbone.pth')
    loaded = load_model('resnet18_8xb32_in1k', file, output='map')
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
    backbone = load_model(spec, output='map', size=sizes[0]).net.backbone
    state = {f'backbone.{key}': value for key, value in backbone.state_dict().items()}
    for key, value in state.items():
        if 'pos' in key and value.is_floating_point():
            value.copy_(torch.full_like(value, 0.25))
    torch.save(dict(state_dict=state), file)
    for size in sizes:
        model = load_model(spec, str(file), output='map', size=size)
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
    (resized,) = resize_positions({'relative_position_bias_table': table}, net).values()
    rows, columns = resized.T.view(2, 9, 9)
    assert (rows.diff(dim=0) > 0).all() and rows.diff(dim=1).abs().max() < 1e-5
    torch.testing.assert_close(columns, rows.T)
