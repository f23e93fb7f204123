"""A block in few passes, small convolutions as products, and the convolution for compilers."""

import functools
import platform
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.functional import conv2d
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from mmvmamba.nn import VMambaNet, VSSBlock, cpu_inference, layers, network
from mmvmamba.nn.cpu_inference import Conv2d, is_plain_linear
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
@pytest.mark.parametrize('slow', [False, True])
@pytest.mark.parametrize('autocast', [False, True])
def test_only_a_compiled_model_uses_it(autocast, slow, monkeypatch):
    monkeypatch.setattr(cpu_inference, 'SLOW_BFLOAT16', slow)
    conv = Conv2d(4, 4, 3, padding=1, groups=4)
    x = torch.randn(2, 5, 6, 4).permute(0, 3, 1, 2)
    targets = []

    def backend(graph, inputs):
        targets.append({str(node.target) for node in graph.graph.nodes})
        return graph.forward

    with torch.autocast('cpu', enabled=autocast):
        for grad in (True, False):
            torch._dynamo.reset()
            with torch.set_grad_enabled(grad):
                want = conv(x)
                got = torch.compile(conv, backend=backend, fullgraph=True)(x)
            assert got.dtype == want.dtype
            torch.testing.assert_close(got, want)
    for names in targets:  # of training and of inference
        assert any('mmvmamba.conv2d' in name for name in names)
    exported = torch.export.export(conv, (x,)).graph_module.graph
    assert not any('mmvmamba' in str(node.target) for node in exported.nodes)


@compiles_the_convolution
@pytest.mark.parametrize('dtype', [torch.uint8, torch.int64, torch.float16, torch.float64])
def test_another_dtype_than_the_weights_is_an_error(dtype):
    conv, x = Conv2d(3, 4, 3, padding=1), torch.ones(1, 3, 5, 6).to(dtype)
    compiled = torch.compile(conv, backend='eager')
    with torch.no_grad():
        for layer in (conv, compiled):
            torch._dynamo.reset()
            with pytest.raises(RuntimeError):
                layer(x)
        if dtype != torch.float16:  # a dtype that autocast casts
            with torch.autocast('cpu'), pytest.raises(RuntimeError):
                conv(x)
        if dtype in (torch.int64, torch.float64):
            with pytest.raises((RuntimeError, TypeError)):
                cpu_inference.project(x, torch.ones(2, 6))


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


class KeepingLinear(nn.Linear):
    """Linear layer storing its output."""

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
    ('size', 'batch', 'product'),
    [((5, 6), 1, True), ((5, 6), 3, False), ((9, 9), 1, False), ((1, 1), 1, True)],
    ids=str,
)
@pytest.mark.parametrize('bias', [True, False])
def test_a_small_map_with_a_large_weight_is_a_product(size, batch, product, bias, monkeypatch):
    conv = Conv2d(48, 40, 3, 2, 1, bias=bias)
    x = torch.randn(batch, *size, 48).permute(0, 3, 1, 2)
    want = F.conv2d(x.double(), conv.weight.double(), conv.bias.double() if bias else None, 2, 1)
    called = []
    monkeypatch.setattr(F, 'conv2d', lambda *a, **k: called.append(a) or conv2d(*a, **k))
    with torch.no_grad():
        got = conv(x)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert (not called) == product


BLOCKS = {
    'default': dict(),
    'wide': dict(ssm_ratio=2.0),
    'states': dict(d_state=3),
    'conv bias': dict(conv_bias=True),
    'one direction': dict(scan='unidirectional'),
    'drop path': dict(drop_path=0.3),
    'dropout': dict(drop_rate=0.2, mlp_drop_rate=0.2),
}
#: Blocks of other layers than the fused ones.
OTHER_BLOCKS = {
    'gate': dict(gate='act'),
    'no convolution': dict(conv_kernel=0),
    'kernel': dict(conv_kernel=5),
    'cascade': dict(scan='cascade'),
    'activation': dict(act='gelu'),
    'output norm': dict(out_norm='softmax'),
    'no output norm': dict(out_norm='none'),
    'output activation': dict(out_act=True),
    'gated MLP': dict(mlp_gate=True),
    'MLP activation': dict(mlp_act='silu'),
    'batch norm': dict(norm='bn'),
    'no SSM': dict(ssm_ratio=0.0),
    'no MLP': dict(mlp_ratio=0.0),
}
MAP = torch.randn(2, 3, 4, 32, generator=torch.Generator().manual_seed(1))

needs_ops = pytest.mark.skipif(extension_error() is not None, reason='needs the native extension')


def a_block(**settings):
    torch.manual_seed(0)
    block = VSSBlock(32, **settings).eval()
    with torch.no_grad():
        for parameter in block.parameters():  # biases are 0 and norms 1
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return block


@pytest.fixture
def runs(monkeypatch):
    """Record the maps that run_block gets."""
    maps, run = [], cpu_inference.run_block
    monkeypatch.setattr(network, 'run_block', lambda block, x: maps.append(x) or run(block, x))
    return maps


@needs_ops
@pytest.mark.parametrize('slab_rows', [1000, 5])
@pytest.mark.parametrize(
    'x',
    [MAP, MAP.transpose(1, 2), MAP[:1].permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)],
    ids=['contiguous', 'transposed', 'channels first'],
)
@pytest.mark.parametrize('name', BLOCKS)
def test_a_fused_block_is_the_plain_one(name, x, slab_rows, runs, monkeypatch):
    block = a_block(**BLOCKS[name])
    monkeypatch.setattr(cpu_inference, 'SLAB_BYTES', slab_rows * 4 * 32 * 4)
    before, want = x.clone(), block.double()(x.double())
    assert not runs
    block.float()
    with torch.no_grad():
        got = block(x)
    assert len(runs) == 1
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)
    assert torch.equal(x, before)


@needs_ops
def test_a_fused_block_of_no_images(runs):
    with torch.no_grad():
        assert a_block()(MAP[:0]).shape == (0, 3, 4, 32)
    assert len(runs) == 1


@pytest.mark.parametrize('options', [dict(), dict(bias=False), dict(elementwise_affine=False)])
def test_layer_norm(options):
    norm, x = cpu_inference.LayerNorm(32, eps=1e-3, **options), MAP * 3 + 1
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.add_(torch.randn_like(parameter))
    want = F.layer_norm(x.double(), (32,), *(p.double() for p in norm.parameters()), eps=1e-3)
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            torch.testing.assert_close(norm(x).double(), want, rtol=1e-5, atol=1e-5)


@needs_ops
@pytest.mark.skipif(not Path('/proc/cpuinfo').exists(), reason='asks Linux')
@pytest.mark.skipif(platform.machine() != 'x86_64', reason='a guess on other processors')
def test_processors_with_fast_bfloat16():
    lines = Path('/proc/cpuinfo').read_text().splitlines()
    entries = {key.strip(): value for key, _, value in (line.partition(':') for line in lines)}
    flags = set(entries['flags'].split())
    amd = entries['vendor_id'].strip() == 'AuthenticAMD'
    expected = {'amx_tile', 'amx_bf16'} <= flags or (amd and 'avx512_bf16' in flags)
    assert torch.ops.mmvmamba.cpu_has_fast_bfloat16() == expected


@needs_ops
@pytest.mark.parametrize('slow', [False, True])
def test_a_compiled_block_in_bfloat16(slow, monkeypatch):
    monkeypatch.setattr(cpu_inference, 'SLOW_BFLOAT16', slow)
    torch._dynamo.reset()
    block, x = a_block(), MAP.bfloat16()
    with torch.no_grad(), torch.autocast('cpu'):
        want = block(x)
        got = torch.compile(block, backend='aot_eager', fullgraph=True)(x)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got, want, rtol=0.02, atol=0.02)


@needs_ops
@pytest.mark.parametrize('slow', [False, True])
@pytest.mark.parametrize('autocast', [False, True])
def test_a_fused_block_in_bfloat16(autocast, slow, runs, monkeypatch):
    monkeypatch.setattr(cpu_inference, 'SLOW_BFLOAT16', slow)
    block, x = a_block(), MAP.bfloat16()
    want = block.double()(MAP.bfloat16().double())
    block.float() if autocast else block.bfloat16()
    with torch.no_grad(), torch.autocast('cpu', enabled=autocast):
        got = block(x)
        plain = torch.enable_grad()(block)(x)
    assert len(runs) == 1
    assert got.dtype == torch.bfloat16
    error, plain_error = ((y.double() - want).abs().mean() for y in (got, plain))
    assert error <= (0.8 if slow else 1.2) * plain_error


class Products(TorchFunctionMode):
    """Records the dtypes of the maps that are multiplied and convolved."""

    def __init__(self):
        super().__init__()
        self.dtypes = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (torch.mm, torch.Tensor.addmm_, F.linear, F.conv2d):
            self.dtypes.add(args[0].dtype)
        return func(*args, **(kwargs or {}))


@needs_ops
@pytest.mark.parametrize('slow', [False, True])
def test_products_of_slow_bfloat16_are_float32(slow, monkeypatch):
    monkeypatch.setattr(cpu_inference, 'SLOW_BFLOAT16', slow)
    torch.manual_seed(0)
    model, images = (
        VMambaNet('tiny', depths=(1, 1, 1, 1), dims=(8, 16, 24, 32), out_indices=(3,)),
        torch.randn(2, 3, 45, 70),
    )
    model.eval()
    with torch.no_grad():
        want = model(images)[0]
        for weights in (torch.float32, torch.bfloat16):
            model.to(weights)
            with torch.autocast('cpu', enabled=weights == torch.float32), Products() as products:
                got = model(images.to(weights))[0]
            assert got.dtype == torch.bfloat16
            assert (got - want).norm() < 0.02 * want.norm()
            assert products.dtypes == {torch.float32 if slow else torch.bfloat16}


def a_stem(case):
    torch.manual_seed(0)
    stem = layers.conv_stem(3, 8, 4, norm='bn' if case == 'batch norm' else 'ln').eval()
    if case == 'hook':
        stem[2].register_forward_hook(lambda module, args, out: module.seen.append(out))
        stem[2].seen = []
    elif case == 'no convolution':
        for i in (0, 1, 2, 3, 5, 6, 7):
            stem[i] = nn.Identity()
    elif case == 'tanh':
        stem[4].approximate = 'tanh'
    return stem


@pytest.mark.parametrize('case', ['plain', 'hook', 'batch norm', 'no convolution', 'tanh'])
def test_the_stem_changes_only_maps_of_its_own(case):
    stem = a_stem(case)
    images = torch.randn(2, 3, 9, 14)
    given = images.clone()
    with torch.enable_grad():
        want = stem(images)
    seen = [out.clone() for out in getattr(stem[2], 'seen', ())]
    with torch.no_grad():
        got = stem(images)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert torch.equal(images, given)
    for first, second in zip(seen, getattr(stem[2], 'seen', ())[1:], strict=True):
        torch.testing.assert_close(second, first, rtol=1e-5, atol=1e-5)


@needs_ops
@pytest.mark.parametrize('size', [(1, 1), (1, 61), (35, 75), (97, 23)], ids=str)
def test_fused_networks_of_odd_sizes(size, runs):
    """Channels that are no whole vectors, and maps of one row, one column and one position."""
    torch.manual_seed(0)
    net = network.VMambaNet(dict(dims=(17, 35, 70), depths=(1, 2, 1)), num_classes=5).eval()
    images = torch.randn(2, 3, *size)
    want = net.double()(images.double())
    with torch.no_grad():
        got = net.float()(images)
        half = net.bfloat16()(images.bfloat16())
    assert len(runs) == 2 * 4
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(half.double(), want, rtol=0.05, atol=0.05)


@needs_ops
@pytest.mark.parametrize('name', OTHER_BLOCKS)
def test_other_blocks_run_layer_by_layer(name, runs):
    block = a_block(**OTHER_BLOCKS[name])
    with torch.no_grad():
        got = block(MAP)
    assert not runs
    torch.testing.assert_close(got, block(MAP), rtol=1e-5, atol=1e-5)


class Mixing(Mlp):
    """A replacement of the MLP: each position receives the mean of all."""

    def forward(self, x):
        return super().forward(x - x.mean((0, 1, 2)))


class Scaled(nn.Linear):
    """A replacement of a linear layer."""

    def forward(self, x):
        return 2 * super().forward(x)


class Marked(torch.Tensor):
    """A subclass of tensors, as quantization has."""


def change(block, case):
    """Change a block by something that replaces or watches one of its layers."""
    if case == 'MLP':
        block.mlp = Mixing(32, 128)
    elif case == 'linear':
        block.op.in_proj = Scaled(32, 32, bias=False)
    elif case in ('no op', 'no mlp'):
        setattr(block, case[3:], nn.Identity())
    elif case == 'bias':
        block.op.out_proj = nn.Linear(32, 32)
    elif case == 'no bias':
        block.mlp.fc1 = nn.Linear(32, 128, bias=False)
    elif case == 'plain norm':
        block.norm2 = nn.LayerNorm(32, elementwise_affine=False)
    elif case == 'circular':
        block.op.conv2d.padding_mode = 'circular'
    elif case == 'identity':
        block.op.out_proj = nn.Identity()
    elif case == 'full convolution':
        block.op.conv2d = Conv2d(32, 32, 3, padding=1, dilation=1, bias=False)  # all channels
    elif case == 'forward':
        forward = block.mlp.fc1.forward
        block.mlp.fc1.forward = lambda x: 2 * forward(x)
    elif case == 'weight':
        weight = block.mlp.fc2.weight.detach().as_subclass(Marked)
        block.mlp.fc2.weight = nn.Parameter(weight)
    elif case == 'parametrization':
        nn.utils.parametrize.register_parametrization(block.op.out_proj, 'weight', nn.Tanh())
    elif case == 'drop path on':
        block.drop_path = DropPath(0.5).train()
    elif case == 'dropout on':
        block.mlp.drop = nn.Dropout(0.5).train()
    else:
        kind, name = case.split(': ')
        layer = block.get_submodule(name)
        (layer.register_forward_hook if kind == 'hook' else layer.register_forward_pre_hook)(hook)
    return block


@needs_ops
@pytest.mark.parametrize('layer', [nn.Linear, nn.GELU, cpu_inference.LayerNorm])
def test_a_forward_replaced_for_a_whole_class(layer, runs, monkeypatch):
    forward = layer.forward
    monkeypatch.setattr(layer, 'forward', lambda self, x: 2 * forward(self, x))
    block = a_block()
    with torch.no_grad():
        got = block(MAP)
    assert not runs
    torch.testing.assert_close(got, block(MAP), rtol=1e-5, atol=1e-5)


@needs_ops
@pytest.mark.parametrize(
    'case',
    [
        'MLP',
        'no op',
        'no mlp',
        'linear',
        'bias',
        'no bias',
        'plain norm',
        'circular',
        'identity',
        'full convolution',
        'forward',
        'weight',
        'parametrization',
        'drop path on',
        'dropout on',
        *(
            f'hook: {name}'
            for name in ('norm', 'op', 'op.in_proj', 'op.conv2d', 'op.act', 'op.out_norm')
        ),
        *(
            f'pre-hook: {name}'
            for name in (
                'op.out_proj',
                'norm2',
                'mlp',
                'mlp.fc1',
                'mlp.act',
                'mlp.fc2',
                'drop_path',
            )
        ),
    ],
)
def test_a_changed_block_runs_layer_by_layer(case, runs):
    block = change(a_block(), case)
    with torch.no_grad():
        torch.manual_seed(3)
        got = block(MAP)
    assert not runs
    torch.manual_seed(3)
    torch.testing.assert_close(got, block(MAP).detach(), rtol=1e-5, atol=1e-5)


def test_hooks_of_all_modules_see_every_layer(runs):
    block, layers = a_block(), []
    handle = nn.modules.module.register_module_forward_hook(lambda m, *_: layers.append(m))
    try:
        with torch.no_grad():
            block(MAP)
    finally:
        handle.remove()
    assert not runs
    assert block.mlp.fc1 in layers


@needs_ops
def test_the_core_may_be_replaced(runs):
    block = a_block()
    block.op.core = lambda x, *_: x
    want = block(MAP)
    with torch.no_grad():
        torch.testing.assert_close(block(MAP), want, rtol=1e-5, atol=1e-5)
    assert len(runs) == 1


@needs_ops
@pytest.mark.parametrize('case', ['gradients', 'float64', 'float16', 'mode', 'wrong map'])
def test_where_a_block_runs_layer_by_layer(case, runs):
    block, x = a_block(), MAP
    if case == 'wrong map':
        with torch.no_grad(), pytest.raises(RuntimeError, match='normalized_shape'):
            block(MAP[..., :7])
    elif case == 'mode':
        with torch.no_grad(), FlopCounterMode(display=False) as flops:
            block(MAP)
        assert flops.get_total_flops() > 0
    elif case == 'gradients':
        block(x)
    else:
        dtype = getattr(torch, case)
        with torch.no_grad():
            block.to(dtype)(x.to(dtype))
    assert not runs


@needs_ops
@pytest.mark.parametrize('record', ['trace', 'export', 'make_fx'])
def test_a_recorded_program_has_layer_by_layer(record, runs):
    block = a_block()
    other = torch.randn(2, 6, 5, 32)
    with torch.no_grad():
        want = torch.enable_grad()(block)(other)
        if record == 'trace':
            program = torch.jit.trace(block, MAP, check_trace=False)  # a check runs it again
        elif record == 'export':
            dims = dict(enumerate(torch.export.Dim(name, min=2) for name in 'NHW'))
            program = torch.export.export(block, (MAP,), dynamic_shapes=(dims,)).module()
        else:
            weights = dict(block.named_parameters())
            call = functools.partial(torch.func.functional_call, block, weights)
            program = make_fx(call, tracing_mode='symbolic', _allow_non_fake_inputs=True)(MAP)
        assert not runs
        torch.testing.assert_close(program(other), want)


@needs_ops
def test_a_compiled_block_holds_its_parts_as_ops():
    block, targets = a_block(), []
    want = block(MAP).detach()

    def backend(graph, inputs):
        targets.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    torch._dynamo.reset()
    with torch.no_grad():
        got = torch.compile(block, backend=backend, fullgraph=True)(MAP)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert {'mmvmamba.block_start', 'mmvmamba.block_end'} <= set(targets)


@needs_ops
def test_the_parts_of_a_block_are_registered_in_full():
    scale, x = torch.ones(8), torch.randn(2, 3, 4, 8)
    start = (x, scale, scale, 1e-5, torch.randn(8, 8), torch.randn(8, 1, 3, 3), None)
    weights = [torch.randn(8, 8), torch.randn(12, 8), torch.randn(8, 12)]
    biases = [torch.randn(12), torch.randn(8)]
    end = (x, x.clone(), [scale, scale], [scale, scale], [1e-5, 1e-5], weights, biases)
    checks = ('test_schema', 'test_faketensor')
    torch.library.opcheck(torch.ops.mmvmamba.block_start.default, start, test_utils=checks)
    torch.library.opcheck(torch.ops.mmvmamba.block_end.default, end, test_utils=checks)


def test_transforms_see_pytorchs_ops(runs):
    norm, x, tangent = cpu_inference.LayerNorm(8), torch.randn(3, 8), torch.randn(3, 8)
    norm.double()
    wanted = torch.func.jvp(norm, (x.double(),), (tangent.double(),))[1]
    norm.float()
    with torch.no_grad():
        got = torch.func.jvp(norm, (x,), (tangent,))[1]
        torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-5)
        torch.func.vmap(norm)(x)
    assert not runs


def test_a_map_of_other_channels_is_refused():
    conv = Conv2d(48, 400, 3, 2, 1)
    with torch.no_grad():
        with pytest.raises(RuntimeError, match='channels'):
            conv(torch.randn(4, 12, 3, 3))
        assert conv(torch.randn(48, 3, 3)).shape == (400, 2, 2)
