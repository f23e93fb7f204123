"""SS2D for every switch against a float64 loop that calls nothing of the package."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.utils._python_dispatch import TorchDispatchMode

from mmvmamba.nn import SS2D, VMambaNet, register_out_norm
from mmvmamba.nn.ss2d import OUT_NORMS

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
        ({'scan': ('row', 'spiral')}, 'scan'),
        ({'scan': ()}, 'scan'),
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


# ---- scans and norms of one's own ----


def test_sequence_of_orders_is_the_pattern():
    want = make_layer(scan='cross')
    got = make_layer(scan=['row', 1, 2, 'column_reversed'])
    got.load_state_dict(want.state_dict())
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    assert got.scan == ('row', 1, 2, 'column_reversed')
    assert torch.equal(got(x), want(x))


@pytest.mark.parametrize('backend', ['auto', 'reference'])
def test_registered_order_reads_the_map_along_its_path(backend):
    """A map of one row that is permuted beforehand gives the same result."""
    layer = make_layer(
        scan=('local_window', 'local_window_reversed'), conv_kernel=0, backend=backend
    )
    rows = make_layer(scan=('row', 'row_reversed'), conv_kernel=0, backend=backend)
    rows.load_state_dict(layer.state_dict())
    x = torch.randn(2, 2, 9, 6, dtype=torch.float64)
    # Two windows of 7 columns: the first 7 of both rows, then the last 2.
    order = [*range(7), *range(9, 16), 7, 8, 16, 17]
    want = torch.empty(2, 18, 6, dtype=torch.float64)
    want[:, order] = rows(x.flatten(1, 2)[:, order].unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(layer(x).flatten(1, 2), want, rtol=1e-10, atol=1e-10)


def test_scan_of_another_type():
    with pytest.raises(TypeError, match='^scan must be a str or a sequence of orders'):
        SS2D(8, scan=np.array([0, 1]))


def test_directions_have_their_own_parameters():
    layer = make_layer(dim=8, scan=('snake', 'column', 'hilbert_transposed'))
    shapes = {name: tuple(value.shape) for name, value in layer.named_parameters()}
    assert shapes['x_proj_weight'] == (3, 5, 12) and shapes['dt_projs_weight'] == (3, 12, 1)
    assert shapes['A_logs'] == (36, 2) and shapes['Ds'] == (36,)
    layer(torch.randn(1, 3, 4, 8, dtype=torch.float64)).sum().backward()
    grads = {name: value.grad for name, value in layer.named_parameters()}
    assert all(grad is not None and grad.abs().sum() > 0 for grad in grads.values())


class Scale(nn.Module):
    """Multiply by a vector."""

    def __init__(self, dim):
        super().__init__()
        self.weight = nn.Parameter(torch.full((dim,), 3.0))

    def forward(self, x):
        return x * self.weight


@pytest.fixture
def scale_norm(monkeypatch):
    monkeypatch.setitem(OUT_NORMS, 'scale', None)
    del OUT_NORMS['scale']
    register_out_norm('scale', Scale)


@pytest.mark.usefixtures('scale_norm')
@pytest.mark.parametrize('grad', [False, True])
def test_registered_out_norm(grad):
    net = VMambaNet('tiny', dims=(8, 16), depths=(1, 1), out_norm='scale', num_classes=3).eval()
    plain = VMambaNet('tiny', dims=(8, 16), depths=(1, 1), out_norm='none', num_classes=3).eval()
    assert net.state_dict()['layers.0.blocks.0.op.out_norm.weight'].shape == (8,)
    plain.load_state_dict(net.state_dict(), strict=False)
    with torch.no_grad():
        for stage in plain.layers:
            stage.blocks[0].op.out_proj.weight *= 3
    x = torch.randn(1, 3, 32, 40)
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(net(x), plain(x), rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures('scale_norm')
def test_bad_out_norms():
    with pytest.raises(TypeError, match='^name must be a str'):
        register_out_norm(1, Scale)
    with pytest.raises(TypeError, match='^fn must be a class or function'):
        register_out_norm('new', Scale(3))
    for name, force in (('ln', False), ('ln', True), ('scale', False)):
        with pytest.raises(ValueError, match=f'^name must not be one of .* but got {name!r}'):
            register_out_norm(name, Scale, force=force)
    register_out_norm('scale', int, force=True)
    with pytest.raises(TypeError, match="^out_norm 'scale' must be .* but it returned int"):
        SS2D(8, out_norm='scale')
    register_out_norm('scale', nn.LayerNorm, force=True)
    assert OUT_NORMS['scale'] is nn.LayerNorm


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
