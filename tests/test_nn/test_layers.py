"""The layers around SS2D, each by what it should compute."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmvmamba.nn import VSSBlock
from mmvmamba.nn.cpu_inference import Conv2d, LayerNorm
from mmvmamba.nn.layers import (
    DropPath,
    Mlp,
    PatchMerging,
    conv2x2_downsample,
    conv_downsample,
    conv_stem,
    patch_stem,
)


def test_drop_path_statistics():
    torch.manual_seed(0)
    layer = DropPath(0.3)
    x = torch.ones(20000, 2, 3)
    y = layer(x)
    kept = y[:, 0, 0] != 0
    assert kept.float().mean().item() == pytest.approx(0.7, abs=0.015)
    assert y.mean().item() == pytest.approx(1.0, abs=0.03)
    # Whole samples, scaled.
    assert torch.equal(y, kept.view(-1, 1, 1) * torch.full_like(x, 1 / 0.7))


@pytest.mark.parametrize(('p', 'training'), [(0.0, True), (0.5, False)])
def test_drop_path_that_does_nothing(p, training):
    x = torch.randn(4, 3)
    assert DropPath(p).train(training)(x) is x


@pytest.mark.parametrize('p', [-0.1, 1.0, 2.0, float('nan')])
def test_drop_path_needs_a_probability(p):
    with pytest.raises(ValueError, match=r'^p must be in \[0, 1\)'):
        DropPath(p)


def test_drop_path_of_a_block_leaves_the_residual():
    torch.manual_seed(0)
    block = VSSBlock(8, drop_path=0.5)
    x = torch.randn(64, 2, 2, 8)
    changed = (block(x) != x).flatten(1).any(1)
    # Both branches are dropped for a quarter of the samples.
    assert 0.5 < changed.float().mean() < 0.95


def test_block_is_two_residual_branches():
    torch.manual_seed(0)
    block = VSSBlock(8)
    x = torch.randn(2, 3, 4, 8)
    y = x + block.op(block.norm(x))
    torch.testing.assert_close(block(x), y + block.mlp(block.norm2(y)))
    vanilla = VSSBlock(8, mlp_ratio=0)
    torch.testing.assert_close(vanilla(x), x + vanilla.op(vanilla.norm(x)))
    assert not [k for k in vanilla.state_dict() if 'mlp' in k or 'norm2' in k]


@pytest.mark.parametrize('size', [(4, 4), (5, 4), (4, 7), (1, 1)], ids=str)
def test_patch_merging_stacks_the_neighbors(size):
    torch.manual_seed(0)
    layer = PatchMerging(3, 5)
    x = torch.randn(2, *size, 3)
    H, W = -(-size[0] // 2), -(-size[1] // 2)
    stacked = torch.zeros(2, H, W, 12)
    for h in range(H):
        for w in range(W):
            for i, (row, col) in enumerate(((0, 0), (1, 0), (0, 1), (1, 1))):
                if 2 * h + row < size[0] and 2 * w + col < size[1]:
                    stacked[:, h, w, 3 * i : 3 * i + 3] = x[:, 2 * h + row, 2 * w + col]
    torch.testing.assert_close(layer(x), layer.reduction(layer.norm(stacked)))


@pytest.mark.parametrize('size', [(16, 16), (17, 30), (4, 7), (1, 1)], ids=str)
def test_conv_stem_gives_ceil_sizes(size):
    stem = conv_stem(3, 8, 4)
    y = stem(torch.randn(2, 3, *size))
    assert y.shape == (2, -(-size[0] // 4), -(-size[1] // 4), 8)
    torch.testing.assert_close(y.mean(-1), torch.zeros(y.shape[:3]), atol=1e-5, rtol=0)
    kinds = [type(m) for m in stem if isinstance(m, (Conv2d, LayerNorm, nn.GELU))]
    assert kinds == [Conv2d, LayerNorm, nn.GELU, Conv2d, LayerNorm]


@pytest.mark.parametrize('size', [(16, 16), (19, 30), (4, 7)], ids=str)
def test_patch_stem_gives_floor_sizes(size):
    y = patch_stem(3, 8, 4)(torch.randn(2, 3, *size))
    assert y.shape == (2, size[0] // 4, size[1] // 4, 8)


@pytest.mark.parametrize('size', [(4, 4), (5, 3), (1, 1)], ids=str)
def test_conv_downsample_gives_ceil_sizes(size):
    y = conv_downsample(6, 10)(torch.randn(2, *size, 6))
    assert y.shape == (2, -(-size[0] // 2), -(-size[1] // 2), 10)


@pytest.mark.parametrize('size', [(4, 4), (5, 3), (2, 7)], ids=str)
def test_conv2x2_downsample_gives_floor_sizes(size):
    layer = conv2x2_downsample(6, 10)
    assert layer[1].weight.shape == (10, 6, 2, 2)
    assert layer(torch.randn(2, *size, 6)).shape == (2, size[0] // 2, size[1] // 2, 10)


def test_mlp():
    torch.manual_seed(0)
    layer = Mlp(3, 7, 'relu')
    x = torch.randn(2, 4, 3)
    weights = [p.detach().numpy() for p in layer.parameters()]
    hidden = np.maximum(x.numpy() @ weights[0].T + weights[1], 0)
    want = hidden @ weights[2].T + weights[3]
    np.testing.assert_allclose(layer(x).detach().numpy(), want, rtol=1e-5, atol=1e-6)


def test_gated_mlp():
    """The second half of the first layer's channels is the gate."""
    torch.manual_seed(0)
    layer = Mlp(3, 7, 'relu', gate=True)
    x = torch.randn(2, 4, 3)
    weights = [p.detach().numpy() for p in layer.parameters()]
    assert weights[0].shape == (14, 3)
    value = x.numpy() @ weights[0][:7].T + weights[1][:7]
    gate = np.maximum(x.numpy() @ weights[0][7:].T + weights[1][7:], 0)
    want = (value * gate) @ weights[2].T + weights[3]
    np.testing.assert_allclose(layer(x).detach().numpy(), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('gate', [False, True])
def test_dropout_of_the_mlp(gate):
    torch.manual_seed(0)
    layer = Mlp(3, 7, gate=gate, drop_rate=0.4)
    x = torch.randn(50, 40, 3)
    torch.manual_seed(1)
    got = layer(x)
    assert (got == 0).float().mean().item() == pytest.approx(0.4, abs=0.03)
    torch.manual_seed(1)
    hidden = layer.fc1(x)
    if gate:
        hidden = hidden[..., :7] * F.gelu(hidden[..., 7:])
    else:
        hidden = F.dropout(F.gelu(hidden), 0.4)
    torch.testing.assert_close(got, F.dropout(layer.fc2(hidden), 0.4))
    assert not (layer.eval()(x) == 0).any()
