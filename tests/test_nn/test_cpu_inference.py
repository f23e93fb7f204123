"""The convolution that stands for PyTorch's while a model is compiled."""

import pytest
import torch
from torch.nn.functional import conv2d

from mmvmamba.nn.cpu_inference import Conv2d

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
        used = any('mmvmamba.conv2d' in name for name in names)
        assert used == hasattr(torch.compiler, 'is_exporting')
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
