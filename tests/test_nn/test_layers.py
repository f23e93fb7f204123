"""The layers around SS2D, each by what it should compute."""

import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from mmvmamba.nn import SS2D, VSSBlock, cpu_inference
from mmvmamba.nn.cpu_inference import Conv2d, activate
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
def test_patch_merging_stacks_the_neighbours(size):
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
    kinds = [type(m) for m in stem if isinstance(m, (Conv2d, nn.LayerNorm, nn.GELU))]
    assert kinds == [Conv2d, nn.LayerNorm, nn.GELU, Conv2d, nn.LayerNorm]


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


def memory_of(layer, results):
    """Writes down where the results of a layer lie, without a hook."""
    forward = layer.forward
    layer.forward = lambda x: results.append(forward(x)) or results[-1]


@pytest.mark.parametrize('act', [nn.GELU('tanh'), nn.GELU(), nn.SiLU(), nn.ReLU(), nn.Sigmoid()])
def test_activation_takes_the_memory_of_a_result_that_nobody_keeps(act):
    source, x, results = nn.Linear(4, 7), torch.randn(5, 4), []
    want = act(source(x))
    memory_of(source, results)
    with torch.no_grad():
        got = activate(act, source(x), source)
    torch.testing.assert_close(got, want, rtol=0, atol=0)
    assert (got is results[0]) == (not isinstance(act, nn.Sigmoid))
    kept = activate(act, source(x), source)  # for the backward
    assert kept is not results[1]
    assert torch.equal(kept, want)


class KeepingLinear(nn.Linear):
    """A layer that keeps what it returned."""

    def forward(self, x):
        self.result = super().forward(x)
        return self.result


def hook(*_):
    """A hook that changes nothing, but could keep what it sees."""


@pytest.mark.parametrize(
    'case', ['result', 'activation', 'before', 'everywhere', 'type', 'identity']
)
def test_activation_leaves_the_memory_of_what_somebody_may_keep(case):
    source, act, x = nn.Linear(4, 4), nn.SiLU(), torch.randn(5, 4)
    handle = None
    if case == 'result':
        source.register_forward_hook(hook)
    elif case == 'activation':
        act.register_forward_hook(hook)
    elif case == 'before':
        act.register_forward_pre_hook(hook)
    elif case == 'everywhere':
        handle = nn.modules.module.register_module_forward_hook(hook)
    elif case == 'type':
        source = KeepingLinear(4, 4)
    else:
        source = nn.Identity()
    try:
        with torch.no_grad():
            result = source(x)
            before = result.clone()
            got = activate(act, result, source)
    finally:
        if handle is not None:
            handle.remove()
    assert torch.equal(result, before)
    torch.testing.assert_close(got, F.silu(before), rtol=0, atol=0)


@pytest.mark.parametrize('module', [Mlp(8, 7), Mlp(8, 7, 'silu'), SS2D(8), SS2D(8, conv_kernel=0)])
def test_a_module_is_the_same_with_and_without_gradients(module):
    source = module.fc1 if isinstance(module, Mlp) else module.conv2d or module.in_proj
    x, results = torch.randn(2, 3, 5, 8), []
    before, want = x.clone(), module(x)
    memory_of(source, results)
    with torch.no_grad():
        torch.testing.assert_close(module(x), want, rtol=0, atol=0)
    assert torch.equal(x, before)
    # The activation went over it.
    acted = source.__class__.forward(source, *seen_input(module, x))
    assert not torch.equal(results[0], acted)


def seen_input(module, x):
    """What the layer before a module's activation takes."""
    if isinstance(module, SS2D) and module.conv2d is not None:
        return (module.in_proj(x).permute(0, 3, 1, 2),)
    return (x,)


@pytest.fixture
def small_slabs(monkeypatch):
    """Slabs of 5 positions for the blocks' hidden maps of 32 channels in float64."""
    monkeypatch.setattr(cpu_inference, 'WHOLE_HIDDEN', 10 * 32 * 8)
    monkeypatch.setattr(cpu_inference, 'SLAB_HIDDEN', 5 * 32 * 8)


def a_block(**settings):
    torch.manual_seed(0)
    return VSSBlock(8, **settings).double().eval()


def rows_of_the_mlp(layer, monkeypatch):
    """The shapes of what goes into a block's MLP from now on."""
    shapes, forward = [], layer.mlp.forward
    monkeypatch.setattr(layer.mlp, 'forward', lambda x: shapes.append(tuple(x.shape)) or forward(x))
    return shapes


MAP = torch.randn(2, 3, 4, 8, dtype=torch.float64)


@pytest.mark.parametrize(
    ('settings', 'slabs'),
    [
        (dict(), [(5, 8)] * 4 + [(4, 8)]),
        (dict(mlp_gate=True), [(2, 8)] * 12),
        (dict(ssm_ratio=0.0), [(5, 8)] * 4 + [(4, 8)]),
        (dict(drop_path=0.3), [(5, 8)] * 4 + [(4, 8)]),
    ],
    ids=str,
)
@pytest.mark.parametrize('x', [MAP, MAP.transpose(1, 2)], ids=['contiguous', 'transposed'])
def test_slabs_of_the_mlp_give_what_the_whole_does(x, settings, slabs, small_slabs, monkeypatch):
    layer = a_block(**settings)
    before, want = x.clone(), layer(x)
    shapes = rows_of_the_mlp(layer, monkeypatch)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), want)
    assert shapes == slabs
    assert torch.equal(x, before)


def test_a_small_map_is_no_slab(small_slabs, monkeypatch):
    layer = a_block()
    shapes = rows_of_the_mlp(layer, monkeypatch)
    with torch.no_grad():
        layer(MAP[:1, :, :3])  # 9 positions
    assert shapes == [(1, 3, 3, 8)]


class Mixing(Mlp):
    """An MLP that is none: each position sees the mean of all."""

    def forward(self, x):
        return super().forward(x - x.mean((0, 1, 2)))


def changed_block(case):
    layer = a_block(**(dict(norm='bn') if case == 'batch norm' else {}))
    if case == 'another MLP':
        layer.mlp = Mixing(8, 32).double()
    elif case == 'another activation':
        layer.mlp.act = nn.Softmax(dim=0)
    elif case == 'no first layer':
        layer.mlp.fc1 = nn.Identity()
        layer.mlp.fc2 = nn.Linear(8, 8).double()
    elif case == 'another drop path':
        layer.drop_path = nn.Softmax(dim=0)
    elif case == 'drop path on':
        layer.drop_path = DropPath(0.5).train()
    elif case.startswith('hook: '):
        layer.get_submodule(case.removeprefix('hook: ')).register_forward_hook(hook)
    return layer


@pytest.mark.parametrize(
    'case',
    [
        'gradients',
        'batch norm',
        'another MLP',
        'another activation',
        'no first layer',
        'another drop path',
        'drop path on',
        *(
            f'hook: {name}'
            for name in ('norm2', 'drop_path', 'mlp', 'mlp.fc1', 'mlp.act', 'mlp.fc2')
        ),
    ],
)
def test_where_the_mlp_takes_the_whole_map(case, small_slabs, monkeypatch):
    layer = changed_block(case)
    shapes = rows_of_the_mlp(layer, monkeypatch)
    with torch.set_grad_enabled(case == 'gradients'):
        layer(MAP)
    assert shapes == [(2, 3, 4, 8)]


def test_an_mlp_may_be_replaced(small_slabs):
    layer = a_block()
    layer.mlp = nn.Identity()
    with torch.no_grad():
        got = layer(MAP)
        y = MAP + layer.op(layer.norm(MAP))
        torch.testing.assert_close(got, y + layer.norm2(y))


@pytest.mark.parametrize('record', ['trace', 'export', 'make_fx'])
def test_a_recorded_program_holds_no_slabs(record, small_slabs):
    layer = a_block()
    other = torch.randn(2, 6, 5, 8, dtype=torch.float64)
    with torch.no_grad():
        want = layer(other)
        if record == 'trace':
            program = torch.jit.trace(layer, MAP)
        elif record == 'export':
            dims = dict(enumerate(torch.export.Dim(name, min=2) for name in 'NHW'))
            program = torch.export.export(layer, (MAP,), dynamic_shapes=(dims,)).module()
        else:
            weights = dict(layer.named_parameters())
            call = functools.partial(torch.func.functional_call, layer, weights)
            program = make_fx(call, tracing_mode='symbolic', _allow_non_fake_inputs=True)(MAP)
        torch.testing.assert_close(program(other), want)
