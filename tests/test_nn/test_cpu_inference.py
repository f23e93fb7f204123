"""In-place activations, the MLP in slabs, and the convolution for compilers."""

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.functional import conv2d

from mmvmamba.nn import SS2D, VSSBlock, cpu_inference
from mmvmamba.nn.cpu_inference import Conv2d, activate, is_plain_linear
from mmvmamba.nn.layers import DropPath, Mlp
from mmvmamba.ops import extension_error

from .old_torch import compiles_the_convolution

CASES = {
    'depthwise': dict(channels=6, out=6, kernel=3, stride=1, padding=1, groups=6, bias=False),
    'halving': dict(channels=3, out=5, kernel=3, stride=2, padding=1, groups=1, bias=True),
    'patches': dict(channels=2, out=4, kernel=4, stride=4, padding=0, groups=1, bias=True),
}


def make(channels, out, kernel, stride, padding, groups, bias):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.double).requires_grad_()

    x = draw(2, 7, 9, channels).permute(0, 3, 1, 2).detach().requires_grad_()
    weight = draw(out, channels // groups, kernel, kernel)
    bias = draw(out) if bias else None
    return x, weight, bias, [stride, stride], [padding, padding], groups


@pytest.mark.parametrize('case', CASES)
def test_it_is_registered_in_full(case):
    torch.library.opcheck(torch.ops.mmvmamba.conv2d.default, make(**CASES[case]))


@pytest.mark.parametrize('case', CASES)
def test_it_is_pytorchs_convolution(case):
    x, weight, bias, stride, padding, groups = make(**CASES[case])
    leaves = [leaf for leaf in (x, weight, bias) if leaf is not None]
    want = conv2d(x, weight, bias, stride, padding, groups=groups)
    got = torch.ops.mmvmamba.conv2d(x, weight, bias, stride, padding, groups)
    torch.testing.assert_close(got, want)
    assert got.is_contiguous(memory_format=torch.channels_last)
    seed = torch.randn_like(want)
    for name, a, b in zip(
        ('x', 'weight', 'bias'),
        torch.autograd.grad(got, leaves, seed),
        torch.autograd.grad(want, leaves, seed),
        strict=False,
    ):
        torch.testing.assert_close(a, b, msg=lambda text, name=name: f'{name}: {text}')


def test_a_frozen_weight_gets_no_gradient():
    x, weight, bias, *rest = make(**CASES['halving'])
    y = torch.ops.mmvmamba.conv2d(x, weight.detach(), bias, *rest)
    y.sum().backward()
    assert weight.grad is None
    torch.testing.assert_close(bias.grad, torch.full_like(bias, y[:, 0].numel()))


@compiles_the_convolution
@pytest.mark.parametrize('autocast', [False, True])
def test_only_a_compiled_model_uses_it(autocast):
    conv = Conv2d(4, 4, 3, padding=1, groups=4)
    x = torch.randn(2, 5, 6, 4).permute(0, 3, 1, 2)
    targets = []

    def backend(graph, inputs):
        targets.append({str(node.target) for node in graph.graph.nodes})
        return graph.forward

    with torch.autocast('cpu', enabled=autocast):
        want = conv(x)
        for grad in (True, False):
            torch._dynamo.reset()
            with torch.set_grad_enabled(grad):
                got = torch.compile(conv, backend=backend, fullgraph=True)(x)
            assert got.dtype == want.dtype
            torch.testing.assert_close(got, want)
    for names in targets:  # of training and of inference
        assert any('mmvmamba.conv2d' in name for name in names)
    exported = torch.export.export(conv, (x,)).graph_module.graph
    assert not any('mmvmamba' in str(node.target) for node in exported.nodes)


def test_autocast_leaves_float64_alone():
    conv = Conv2d(4, 4, 3, padding=1).double()
    x = torch.randn(2, 5, 6, 4, dtype=torch.double).permute(0, 3, 1, 2)
    torch._dynamo.reset()
    with torch.autocast('cpu'):
        want = conv(x)
        got = torch.compile(conv, backend='aot_eager', fullgraph=True)(x)
    assert got.dtype == want.dtype == torch.float64
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize(
    'option', [dict(dilation=2), dict(padding_mode='reflect'), dict(padding='same')], ids=str
)
def test_what_the_op_has_not_is_compiled_as_pytorchs(option):
    conv = Conv2d(4, 4, 3, **dict(padding=1) | option)
    x = torch.randn(2, 5, 6, 4).permute(0, 3, 1, 2)
    torch._dynamo.reset()
    got = torch.compile(conv, backend='aot_eager', fullgraph=True)(x)
    torch.testing.assert_close(got, conv(x))


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
    """A layer that stores its output."""

    def forward(self, x):
        self.result = super().forward(x)
        return self.result


def hook(*_):
    """A hook that has no effect, but could store its input."""


@pytest.mark.parametrize(
    'register',
    [
        'register_forward_hook',
        'register_forward_pre_hook',
        'register_full_backward_hook',
        'register_full_backward_pre_hook',
    ],
)
def test_plain_linear_layers(register):
    layer = nn.Linear(2, 2)
    assert is_plain_linear(layer)
    handle = getattr(layer, register)(hook)
    assert not is_plain_linear(layer)
    handle.remove()
    everywhere = register.replace('register_', 'register_module_')
    handle = getattr(nn.modules.module, everywhere)(hook)
    assert not is_plain_linear(layer)
    handle.remove()
    assert is_plain_linear(layer)
    layer.forward = lambda x: x
    assert not is_plain_linear(layer)
    assert not is_plain_linear(KeepingLinear(2, 2))


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
    """Input of the layer before a module's activation."""
    if isinstance(module, SS2D) and module.conv2d is not None:
        return (module.in_proj(x).permute(0, 3, 1, 2),)
    return (x,)


@pytest.fixture
def small_slabs(monkeypatch):
    """Slabs of 5 positions for the blocks' hidden maps of 32 channels in float64."""
    monkeypatch.setattr(cpu_inference, 'MAX_HIDDEN_BYTES', 10 * 32 * 8)
    monkeypatch.setattr(cpu_inference, 'SLAB_BYTES', 5 * 32 * 8)


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
    """A replacement of the MLP: each position receives the mean of all."""

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


@pytest.mark.skipif(extension_error() is not None, reason='the op is not there')
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
