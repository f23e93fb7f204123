"""SS2D for every switch against a float64 loop that calls nothing of the package."""

import copy
import math

import numpy as np
import pytest
import torch
from torch.nn.utils import prune
from torch.utils._python_dispatch import TorchDispatchMode

from mmvmamba.nn import SS2D, VMambaNet

from .definition import ss2d as ss2d_by_definition

DEFAULTS = dict(
    d_state=2, ssm_ratio=1.5, gate='none', conv_kernel=3, conv_bias=False, act='silu',
    scan='cross', out_norm='ln', out_act=False,
)  # fmt: skip
VARIANTS = [
    {},
    {'d_state': 1},
    {'d_state': 5, 'ssm_ratio': 1.0},
    {'ssm_ratio': 2.0, 'dt_rank': 3},
    {'gate': 'act'},
    {'gate': 'act', 'act': 'gelu', 'conv_bias': True},
    {'gate': 'linear'},
    {'conv_kernel': 0},
    {'conv_kernel': 5, 'conv_bias': True},
    {'act': 'gelu'},
    {'act': 'relu'},
    {'scan': 'unidirectional'},
    {'scan': 'bidirectional'},
    {'scan': 'cascade'},
    {'scan': 'cascade', 'gate': 'act', 'd_state': 1},
    {'out_norm': 'none'},
    {'out_norm': 'dwconv3'},
    {'out_norm': 'ln_dwconv3'},
    {'out_norm': 'softmax'},
    {'out_norm': 'sigmoid', 'out_act': True},
    {'out_act': True, 'gate': 'act'},
]


def make_layer(dim=6, seed=0, **settings):
    """A layer with weights large enough for every part to count."""
    torch.manual_seed(seed)
    layer = SS2D(dim, **{**DEFAULTS, **settings}).double()
    with torch.no_grad():
        for name, value in layer.named_parameters():
            if 'dt_projs' not in name:
                value.add_(torch.randn_like(value) * 0.3)
    return layer


@pytest.mark.parametrize('backend', ['auto', 'reference'])
@pytest.mark.parametrize('size', [(3, 4), (1, 5), (4, 1)], ids=str)
@pytest.mark.parametrize('settings', VARIANTS, ids=str)
def test_is_its_definition(settings, size, backend):
    layer = make_layer(**settings, backend=backend)
    x = torch.randn(2, *size, 6, dtype=torch.float64)
    want = ss2d_by_definition(
        x.numpy(),
        {k: v.detach().numpy() for k, v in layer.named_parameters()},
        **{**DEFAULTS, **settings},
    )
    np.testing.assert_allclose(layer(x).detach().numpy(), want, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize('settings', VARIANTS, ids=str)
def test_every_parameter_has_a_gradient(settings):
    layer = make_layer(**settings)
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64, requires_grad=True)
    layer(x).square().sum().backward()
    for name, value in (('x', x), *layer.named_parameters()):
        assert value.grad.isfinite().all(), name
        assert value.grad.abs().max() > 0, name


@pytest.mark.parametrize('scan', ['cross', 'cascade'])
def test_backends_have_the_same_gradients(scan):
    grads = []
    for backend in ('auto', 'reference'):
        layer = make_layer(scan=scan, gate='act', backend=backend)
        x = torch.linspace(-1, 1, 2 * 9 * 8 * 6, dtype=torch.float64).view(2, 9, 8, 6)
        layer(x.sin()).square().sum().backward()
        grads.append({k: v.grad for k, v in layer.named_parameters()})
    for name, value in grads[1].items():
        torch.testing.assert_close(grads[0][name], value, rtol=1e-8, atol=1e-10, msg=name)


@pytest.mark.parametrize('scan', ['cross', 'unidirectional', 'bidirectional', 'cascade'])
def test_empty_batch(scan):
    layer = SS2D(8, scan=scan)
    y = layer(torch.randn(0, 3, 4, 8))
    assert y.shape == (0, 3, 4, 8)
    y.sum().backward()
    assert torch.equal(layer.A_logs.grad, torch.zeros_like(layer.A_logs))


def test_samples_do_not_mix():
    layer = make_layer()
    x = torch.randn(3, 4, 5, 6, dtype=torch.float64)
    for i in range(3):
        torch.testing.assert_close(layer(x)[i : i + 1], layer(x[i : i + 1]))


def test_dropout():
    layer = make_layer(drop_rate=0.3)
    x = torch.randn(4, 9, 10, 6, dtype=torch.float64)
    full = layer.eval()(x)
    assert not (full == 0).any()
    torch.manual_seed(1)
    got = layer.train()(x)
    assert (got == 0).double().mean().item() == pytest.approx(0.3, abs=0.03)
    torch.manual_seed(1)
    torch.testing.assert_close(got, torch.nn.functional.dropout(full, 0.3))


class CountsCasts(TorchDispatchMode):
    """Counts the copies of tensors of a shape to another dtype."""

    def __init__(self, shape):
        super().__init__()
        self.shape, self.count = shape, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._to_copy.default and args[0].shape == self.shape:
            self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize('gate', ['none', 'act'])
def test_autocast_casts_the_input_once(gate):
    torch.manual_seed(0)
    layer = SS2D(8, ssm_ratio=2.0, gate=gate, conv_kernel=0, out_norm='none')
    # Not a leaf: autocast keeps the casts of these, as it does for weights.
    x = torch.randn(2, 3, 5, 8, requires_grad=True).clone()
    want = layer(x)
    with torch.autocast('cpu', torch.bfloat16), CountsCasts(x.shape) as casts:
        got = layer(x)
    assert casts.count == 1
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), want, rtol=0.1, atol=0.05 * want.abs().max().item())
    (gradient,) = torch.autograd.grad(got.float().square().sum(), x)
    (expected,) = torch.autograd.grad(want.square().sum(), x)
    assert (gradient - expected).norm() < 0.05 * expected.norm()


def test_autocast_leaves_float64():
    layer = make_layer(gate='act')
    x = torch.randn(1, 3, 4, 6, dtype=torch.float64)
    want = layer(x)
    with torch.autocast('cpu', torch.bfloat16):
        got = layer(x)
    assert torch.equal(got, want)


def test_the_sum_of_four_directions_may_exceed_float16():
    torch.manual_seed(0)
    layer = SS2D(8, conv_kernel=0).eval()
    with torch.no_grad():
        layer.in_proj.weight.copy_(torch.eye(8))
        layer.Ds.fill_(3e4)
    x = torch.rand(1, 3, 4, 8) + 0.5
    largest = np.finfo(np.float16).max
    with torch.no_grad():
        want = layer(x)
        with torch.autocast('cpu', torch.float16):
            y = layer.core(layer.act(x).half(), 'cross')
            got = layer(x)
    # Each direction fits.
    assert y.dtype == torch.float32
    assert y.abs().max() / 4 < largest < y.abs().max()
    assert got.dtype == torch.float16
    torch.testing.assert_close(got.float(), want, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    ('settings', 'name'),
    [
        ({'gate': 'relu'}, 'gate'),
        ({'act': 'tanh'}, 'act'),
        ({'scan': 'spiral'}, 'scan'),
        ({'ssm_init': 'ones'}, 'ssm_init'),
        ({'out_norm': 'bn'}, 'out_norm'),
        ({'backend': 'cuda'}, 'backend'),
        ({'conv_kernel': 2}, 'conv_kernel'),
        ({'conv_kernel': -1}, 'conv_kernel'),
    ],
)
def test_bad_settings(settings, name):
    with pytest.raises(ValueError, match=f'^{name} must be'):
        SS2D(8, **settings)


# ---- initialization ---------------------------------------------------------------------------


def softplus(x):
    return torch.nn.functional.softplus(x.double())


def uniform_std(low, high):
    return (high - low) / math.sqrt(12)


def test_mamba_initialization():
    torch.manual_seed(0)
    layer = SS2D(256, d_state=16, ssm_ratio=2.0, ssm_init='mamba')
    bound = layer.dt_rank**-0.5
    assert layer.dt_projs_weight.abs().max() <= bound
    assert layer.dt_projs_weight.std().item() == pytest.approx(uniform_std(-bound, bound), rel=0.03)
    steps = softplus(layer.dt_projs_bias)
    assert steps.min() >= 1e-3 * (1 - 1e-4)
    assert steps.max() <= 0.1 * (1 + 1e-4)
    logs = steps.log()
    low, high = math.log(1e-3), math.log(0.1)
    assert logs.mean().item() == pytest.approx((low + high) / 2, rel=0.03)
    assert logs.std().item() == pytest.approx(uniform_std(low, high), rel=0.05)
    assert torch.equal(layer.A_logs, torch.arange(1.0, 17).log().expand(4 * 512, 16))
    assert torch.equal(layer.Ds, torch.ones(4 * 512))


def test_random_initialization():
    torch.manual_seed(0)
    layer = SS2D(256, d_state=4, ssm_init='random')
    for value, std in ((layer.dt_projs_weight, 0.1), (layer.dt_projs_bias, 0.1), (layer.A_logs, 1)):
        assert value.mean().item() == pytest.approx(0, abs=0.1 * std)
        assert value.std().item() == pytest.approx(std, rel=0.06)
    assert torch.equal(layer.Ds, torch.ones_like(layer.Ds))


def test_zero_initialization():
    torch.manual_seed(0)
    layer = SS2D(256, d_state=4, ssm_init='zero')
    for value in (layer.dt_projs_weight, layer.dt_projs_bias):
        assert value.min() >= 0
        assert value.max() < 0.1
        assert value.mean().item() == pytest.approx(0.05, rel=0.06)
    assert torch.equal(layer.A_logs, torch.zeros_like(layer.A_logs))
    assert torch.equal(layer.Ds, torch.ones_like(layer.Ds))


@pytest.mark.parametrize('ssm_init', ['mamba', 'random', 'zero'])
def test_projection_keeps_the_default_bound(ssm_init):
    torch.manual_seed(0)
    layer = SS2D(128, ssm_ratio=2.0, ssm_init=ssm_init)
    bound = layer.d_inner**-0.5
    assert layer.x_proj_weight.abs().max() <= bound
    assert layer.x_proj_weight.std().item() == pytest.approx(uniform_std(-bound, bound), rel=0.03)


# ---- other layers in place of its linear layers ----


class Adapter(torch.nn.Module):
    """Low-rank adapter around a linear layer, whose weight it shows as its own."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.down = torch.nn.Linear(layer.in_features, 2, bias=False)
        self.up = torch.nn.Linear(2, layer.out_features, bias=False)

    @property
    def weight(self):
        return self.layer.weight

    def forward(self, x):
        return self.layer(x) + self.up(self.down(x))


@pytest.mark.parametrize('conv_kernel', [0, 3])
@pytest.mark.parametrize('gate', ['none', 'act'])
def test_adapters_count_and_train(gate, conv_kernel):
    """They are equal to a linear layer of the merged weight."""
    layer = make_layer(gate=gate, conv_kernel=conv_kernel)
    merged = copy.deepcopy(layer)
    x = torch.randn(1, 3, 4, 6, dtype=torch.float64)
    for name in ('in_proj', 'out_proj'):
        adapter = Adapter(getattr(layer, name)).double()
        setattr(layer, name, adapter)
        with torch.no_grad():
            getattr(merged, name).weight.add_(adapter.up.weight @ adapter.down.weight)
    for mode in (torch.enable_grad, torch.no_grad):
        with mode():
            torch.testing.assert_close(layer(x), merged(x))
    layer(x).sum().backward()
    assert layer.in_proj.up.weight.grad.abs().max() > 0


@pytest.mark.parametrize('gate', ['none', 'act'])
def test_pruned_in_proj(gate):
    """Pruning sets the weight in a hook before each call."""
    layer = make_layer(gate=gate)
    x = torch.randn(1, 3, 4, 6, dtype=torch.float64)
    prune.l1_unstructured(layer.in_proj, 'weight', amount=0.5)
    layer(x).sum().backward()
    with torch.no_grad():
        layer.in_proj.weight_orig.mul_(2)
    got = layer(x)
    prune.remove(layer.in_proj, 'weight')
    torch.testing.assert_close(got, layer(x))


@pytest.mark.parametrize('gate', ['none', 'act'])
def test_hooks_and_replaced_forward_of_in_proj(gate):
    """Such as a hook that reads gradients, and accelerate's ``add_hook_to_module``."""
    layer, grads, outputs = make_layer(gate=gate), [], []
    x = torch.randn(1, 3, 4, 6, dtype=torch.float64)
    want = layer(x)
    handle = layer.in_proj.register_full_backward_hook(lambda _, __, out: grads.append(out[0]))
    layer(x).sum().backward()
    handle.remove()
    assert [grad.shape[-1] for grad in grads] == [layer.in_proj.out_features]
    forward = layer.in_proj.forward
    layer.in_proj.forward = lambda x: outputs.append(forward(x)) or outputs[-1]
    torch.testing.assert_close(layer(x), want)
    assert len(outputs) == 1


@pytest.mark.filterwarnings('ignore:torch.ao.quantization:DeprecationWarning')
@pytest.mark.filterwarnings('ignore:must run observer:UserWarning')
@pytest.mark.parametrize('gate', ['none', 'act'])
@pytest.mark.parametrize('dtype', [torch.qint8, torch.float16])
def test_dynamic_quantization(gate, dtype):
    torch.manual_seed(0)
    arch = dict(dims=(16, 16, 32, 32), depths=(1, 1, 1, 1), gate=gate)
    net = VMambaNet(arch, num_classes=5).eval()
    quantized = torch.ao.quantization.quantize_dynamic(net, {torch.nn.Linear}, dtype=dtype)
    assert not any(type(module) is torch.nn.Linear for module in quantized.modules())
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        want, got = net(x), quantized(x)
    assert (got - want).norm() < 0.05 * want.norm()
