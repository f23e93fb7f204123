"""Multiply-adds of classifiers and layers against the authors' numbers and by hand."""

import copy

import pytest
import torch
from torch import nn

from mmvmamba.analysis.flops import count_multiply_adds
from mmvmamba.nn import VMambaNet

THIN = dict(dims=(8, 16, 24, 32), depths=(1, 1, 1, 1))


@pytest.mark.parametrize(
    'arch, params, flops',
    [
        ('tiny_s1l8', 30_249_064, 4_905_609_984),
        ('tiny_s2l5', 30_705_832, 4_857_742_080),
        ('small_s2l15', 50_147_752, 8_715_774_720),
        ('small_s1l20', 49_012_840, 8_612_211_456),
        ('base_s2l15', 88_557_800, 15_358_944_256),
        ('base_s1l20', 86_614_504, 15_220_859_904),
    ],
)
def test_classifiers(arch, params, flops):
    assert_classifier(arch, params, flops, 1)


@pytest.mark.parametrize(
    'arch, params, flops',
    [
        ('vanilla_tiny', 22_893_448, 5.6269),
        ('vanilla_small', 44_417_416, 11.2315),
        ('vanilla_base', 76_254_056, 18.0200),
    ],
)
def test_vanilla_classifiers(arch, params, flops):
    # The numbers are given with five digits.
    assert_classifier(arch, params, flops, 10 ** (9 - (3 if flops > 10 else 4)))


def assert_classifier(arch, params, flops, unit):
    with torch.device('meta'):
        model = VMambaNet(arch)
        counter = count_multiply_adds(model, torch.zeros(1, 3, 224, 224))
    assert sum(p.numel() for p in model.parameters()) == params
    if unit == 1:
        assert counter.total == flops
    else:
        assert f'{counter.total / 1e9:.5g}' == f'{flops:.5g}'


def test_published_figures_round_the_products_around_the_scans():
    """Exactly, VMamba-B at 1280x800 has 485.492 G; NumPy's four digits make it 485.496 G."""
    with torch.device('meta'):
        model = VMambaNet('base', out_indices=(0, 1, 2, 3), depths=(1, 1, 1, 1))
        counter = count_multiply_adds(model, torch.zeros(1, 3, 800, 1280))
    expected = 0
    for width, rank, positions in (
        (128, 8, 64000),
        (256, 16, 16000),
        (512, 32, 4000),
        (1024, 64, 1000),
    ):
        for terms in (rank + 2, rank):
            exact = 4 * (2 * width) * positions * terms
            expected += int(float(f'{2 * exact:.3e}')) // 2 - exact
    assert counter.rounding == expected > 0


#: Layers on a map (2, 4, 3, 5), and the multiply-adds of each.
LAYERS = [
    (nn.Conv2d(4, 6, 3, padding=1, groups=2), 2 * 15 * 6 * 2 * 9),
    (nn.ConvTranspose2d(4, 6, 2, 2), 2 * 15 * 4 * 6 * 4),
    (nn.Linear(5, 7), 2 * 12 * 5 * 7),
    (nn.LayerNorm(5), 5 * 120),
    (nn.LayerNorm(5, elementwise_affine=False), 4 * 120),
    (nn.GroupNorm(2, 4), 5 * 120),
    (nn.GroupNorm(2, 4, affine=False), 4 * 120),
    (nn.BatchNorm2d(4), 2 * 120),
    (nn.BatchNorm2d(4, affine=False), 120),
    (nn.AdaptiveAvgPool2d(1), 120),
    (nn.AdaptiveAvgPool2d(2), 120),
    (nn.Upsample(scale_factor=2), 480),
    (nn.Upsample(scale_factor=2, mode='bilinear'), 4 * 480),
    (nn.GELU(), 0),
]
DEVICES = pytest.mark.parametrize('device', ['cpu', 'meta'])


@DEVICES
@pytest.mark.parametrize(('layer', 'cost'), LAYERS, ids=str)
def test_layers(layer, cost, device):
    counter = count_multiply_adds(
        copy.deepcopy(layer).to(device), torch.rand(2, 4, 3, 5).to(device)
    )
    assert counter.total == cost


@DEVICES
@pytest.mark.parametrize('weights', [True, False])
def test_attention(weights, device):
    """5 queries and 7 keys of 8 channels in 2 heads: two products, and four linear layers."""
    layer = nn.MultiheadAttention(8, 2, batch_first=True).to(device)
    query, key = torch.rand(3, 5, 8, device=device), torch.rand(3, 7, 8, device=device)
    counter = count_multiply_adds(layer, query, key, key, need_weights=weights)
    products = 3 * 5 * 7 * 8 * 2
    assert counter.total == products + 3 * (5 + 7 + 7 + 5) * 8 * 8


@pytest.mark.parametrize('scan', ['cross', 'cascade'])
def test_the_count_does_not_depend_on_the_backend(scan):
    counters = []
    for backend in ('auto', 'reference'):
        model = VMambaNet(scan=scan, backend=backend, num_classes=10, **THIN)
        counters.append(count_multiply_adds(model, torch.rand(1, 3, 33, 40)))
    assert counters[0].total == counters[1].total
    assert counters[0].rounding == counters[1].rounding
