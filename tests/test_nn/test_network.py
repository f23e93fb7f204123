"""The network: shapes, sizes, architectures, threads, freezing, checkpointing."""

import functools

import pytest
import torch
import torch.nn.functional as F

from mmvmamba.nn import ARCHS, SS2D, VMambaNet, VSSBlock
from mmvmamba.ops import extension_error

from .old_torch import checkpoints_random_numbers, compiles_the_convolution

# Without it, the chunks of the PyTorch implementation depend on the size.
with_the_op = pytest.mark.skipif(extension_error() is not None, reason='the op is not there')

THIN = dict(dims=(8, 16, 24, 32), depths=(1, 1, 2, 1))


def thin(name, **settings):
    """A released architecture with few channels and blocks."""
    return VMambaNet(name, **{**THIN, 'num_classes': 5, **settings})


@pytest.mark.parametrize('name', list(ARCHS))
def test_thin_variants_classify(name):
    torch.manual_seed(0)
    net = thin(name)
    scores = net(torch.randn(2, 3, 64, 96))
    assert scores.shape == (2, 5)
    scores.square().sum().backward()
    for key, value in net.named_parameters():
        assert value.grad is not None and value.grad.isfinite().all(), key


@pytest.mark.parametrize('name', list(ARCHS))
def test_blocks_follow_the_architecture(name):
    arch, net = ARCHS[name], thin(name)
    for i, stage in enumerate(net.layers):
        for block in stage.blocks:
            dim = THIN['dims'][i]
            assert block.op.d_inner == int(arch.ssm_ratio * dim)
            assert block.op.A_logs.shape == (4 * block.op.d_inner, arch.d_state)
            assert (block.mlp is not None) == (arch.mlp_ratio > 0)
            assert (block.op.conv2d.bias is not None) == arch.conv_bias
            assert block.op.in_proj.out_features == block.op.d_inner * (1 + (arch.gate != 'none'))


@pytest.mark.parametrize('name', ['tiny', 'vanilla_tiny'])
@pytest.mark.parametrize('size', [(64, 64), (65, 97), (33, 130)], ids=str)
def test_backbone_sizes(name, size):
    maps = thin(name, out_indices=(0, 1, 2, 3))(torch.randn(1, 3, *size))
    first = [n // 4 if name == 'vanilla_tiny' else -(-n // 4) for n in size]
    for i, y in enumerate(maps):
        want = [-(-n // 2**i) for n in first]
        assert y.shape == (1, THIN['dims'][i], *want)
        assert y.is_contiguous(memory_format=torch.channels_last)


def test_smallest_images():
    assert thin('tiny', out_indices=(3,))(torch.randn(1, 3, 1, 1))[0].shape == (1, 32, 1, 1)
    assert thin('vanilla_tiny', out_indices=(3,))(torch.randn(1, 3, 4, 4))[0].shape == (1, 32, 1, 1)
    with pytest.raises(ValueError, match='at least 4 pixels'):
        thin('vanilla_tiny')(torch.randn(1, 3, 3, 4))


def test_empty_batch():
    maps = thin('tiny', out_indices=(0, 3))(torch.randn(0, 3, 32, 32))
    assert [tuple(y.shape) for y in maps] == [(0, 8, 8, 8), (0, 32, 1, 1)]


@pytest.mark.parametrize(
    ('image', 'error'),
    [
        (torch.zeros(3, 32, 32), ValueError),
        (torch.zeros(1, 4, 32, 32), ValueError),
        (torch.zeros(1, 3, 0, 32), ValueError),
        ([[1.0]], TypeError),
    ],
)
def test_bad_images(image, error):
    with pytest.raises(error, match='^the images must'):
        thin('tiny')(image)


@pytest.mark.parametrize(
    ('settings', 'error', 'message'),
    [
        (dict(arch='huge'), ValueError, "arch must be one of .*'huge'"),
        (dict(arch=3), TypeError, 'arch must be a str, dict or Arch'),
        (dict(arch=dict(width=3)), ValueError, r"unknown architecture settings \['width'\]"),
        (dict(out_indixes=(1,)), ValueError, r"\['out_indixes'\]; did you mean out_indices"),
        (dict(with_pc=True), ValueError, r"\['with_pc'\]; did you mean with_cp.*'frozen_stages'"),
        (dict(arch=dict(dims=(8,), depths=(1, 1))), ValueError, 'dims and depths'),
        (dict(arch=dict(dims=(8,), depths=(0,))), ValueError, r'depths\[0\] must be at least 1'),
        (dict(d_state=0), ValueError, 'd_state must be in'),
        (dict(d_state=257), ValueError, 'd_state must be in'),
        (dict(gate='yes'), ValueError, 'gate must be one of'),
        (dict(stem='pool'), ValueError, 'stem must be one of'),
        (dict(downsample='pool'), ValueError, 'downsample must be one of'),
        (dict(mlp_act='tanh'), ValueError, 'mlp_act must be one of'),
        (dict(conv_kernel=4), ValueError, 'conv_kernel must be 0 or odd'),
        (dict(drop_path_rate=1.0), ValueError, 'drop_path_rate must be in'),
        (dict(ssm_ratio=0.01), ValueError, 'ssm_ratio must give'),
        (dict(mlp_ratio=-1.0), ValueError, 'mlp_ratio must be'),
        (dict(patch_size=3), ValueError, 'patch_size must be even'),
        (dict(frozen_stages=5), ValueError, 'frozen_stages must be in'),
        (dict(out_indices=(4,)), ValueError, 'out_indices must be one or more stages'),
        (dict(out_indices=()), ValueError, 'out_indices must be one or more stages'),
        (dict(out_indices=2), TypeError, 'out_indices must be a sequence'),
        (dict(out_indices=(1, 1)), ValueError, r'must not repeat a stage, but got \(1, 1\)'),
        (dict(out_indices=(0, 3, -1)), ValueError, r'stage, but got \(0, 3, -1\) with \[3\] twice'),
        (dict(backend='gpu'), ValueError, 'backend must be one of'),
    ],
)
def test_bad_settings(settings, error, message):
    with pytest.raises(error, match=message):
        VMambaNet(**{'arch': THIN, **settings})


def test_drop_path_grows_linearly():
    net = thin('tiny', drop_path_rate=0.4)
    rates = [m.drop_path.p for m in net.modules() if isinstance(m, VSSBlock)]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])


def test_linear_layers_are_initialized():
    torch.manual_seed(0)
    net = VMambaNet(dict(dims=(64, 128), depths=(1, 1)), num_classes=100)
    for name, module in net.named_modules():
        if isinstance(module, torch.nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.05), name
            assert module.weight.mean().item() == pytest.approx(0.0, abs=1e-3), name
            assert module.bias is None or not module.bias.any(), name
        elif isinstance(module, torch.nn.LayerNorm):
            assert torch.equal(module.weight, torch.ones_like(module.weight)), name
            assert not module.bias.any(), name


def test_maps_come_in_the_order_of_out_indices():
    nets = [thin('tiny', out_indices=indices).eval() for indices in ((0, 1, 2, 3), (3, 0, -3))]
    assert list(nets[1].state_dict()) == [
        key for key in nets[0].state_dict() if not key.startswith('outnorm2')
    ]
    nets[1].load_state_dict(nets[0].state_dict(), strict=False)
    x = torch.randn(1, 3, 64, 32)
    (one, two, _, four), maps = (net(x) for net in nets)
    assert all(torch.equal(y, want) for y, want in zip(maps, (four, one, two), strict=True))


@pytest.mark.parametrize('stages', [-1, 0, 2, 4])
def test_frozen_stages(stages):
    settings = dict(frozen_stages=stages, pos_embed_size=32)
    net = thin('tiny', out_indices=(0, 1, 2, 3), **settings).train()
    image = torch.randn(1, 3, 32, 32, requires_grad=True)
    sum(y.sum() for y in net(image)).backward()
    for i, stage in enumerate(net.layers):
        for module in stage.modules():
            assert module.training == (i >= stages)
        assert all((p.grad is None) == (i < stages) for p in stage.blocks.parameters())
    stem = [net.pos_embed, *net.patch_embed.parameters()]
    assert all((p.grad is None) == (stages >= 0) for p in stem)
    assert all(p.requires_grad == (stages < 0) for p in stem)


@pytest.mark.parametrize('name', ['tiny', 'vanilla_tiny'])
@pytest.mark.parametrize('indices', [(0,), (1,), (2,), (3,), (0, 2), (1, 3)], ids=str)
def test_only_weights_that_run_expect_a_gradient(name, indices):
    """DistributedDataParallel waits for the gradient of all others."""
    net = thin(name, out_indices=indices, pos_embed_size=32).train()
    sum(y.square().mean() for y in net(torch.randn(1, 3, 64, 64))).backward()
    expected = {key: p.requires_grad for key, p in net.named_parameters()}
    assert {key: p.grad is not None for key, p in net.named_parameters()} == expected
    # All of the file's tensors are still there.
    assert set(thin(name, out_indices=(0, 1, 2, 3)).state_dict()) - set(net.state_dict()) <= {
        f'outnorm{i}.{part}' for i in range(4) for part in ('weight', 'bias')
    }
    assert any(expected.values()) and all(expected.values()) == (3 in indices)


def test_checkpointing_changes_no_gradient():
    images, grads = torch.randn(2, 3, 33, 40), []
    for with_cp in (False, True):
        torch.manual_seed(0)
        net = thin('tiny', with_cp=with_cp)
        torch.manual_seed(1)
        net(images).sum().backward()
        grads.append([p.grad for p in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('with_cp', [True, False])
def test_checkpointing_runs_each_block_again_in_a_training(with_cp, training):
    net = thin('tiny', with_cp=with_cp).train(training)
    calls = []
    for module in net.modules():
        if isinstance(module, VSSBlock):
            module.register_forward_pre_hook(lambda block, _: calls.append(block))
    scores = net(torch.randn(1, 3, 32, 32))
    assert len(calls) == 5
    scores.sum().backward()
    assert len(calls) == (10 if with_cp and training else 5)


def with_one_thread(function):
    """PyTorch's products and convolutions divide some sums by threads, depending on the CPU."""

    @functools.wraps(function)
    def call(*args, **kwargs):
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return function(*args, **kwargs)
        finally:
            torch.set_num_threads(threads)

    return call


@pytest.mark.parametrize('name', ['tiny', 'vanilla_tiny'])
def test_output_is_independent_of_the_threads(name, monkeypatch):
    """All but PyTorch's products and convolutions to the last bit, with them to rounding."""
    torch.manual_seed(0)
    net = thin(name, out_indices=(0, 1, 2, 3)).eval()
    image = torch.randn(1, 3, 65, 97)

    def run(threads):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            with torch.no_grad():
                return net(image)
        finally:
            torch.set_num_threads(before)

    for threads in (2, 3, 5):
        for value, want in zip(run(threads), run(1), strict=True):
            torch.testing.assert_close(value, want, rtol=1e-5, atol=1e-5)
    products = [(F, 'linear'), (F, 'conv2d'), (torch, 'mm'), (torch.Tensor, 'addmm_')]
    for module, op in products:
        monkeypatch.setattr(module, op, with_one_thread(getattr(module, op)))
    for threads in (2, 3, 5):
        for value, want in zip(run(threads), run(1), strict=True):
            assert torch.equal(value, want)


FORMS = {
    'backbone': dict(out_indices=(0, 1)),
    'classifier': dict(num_classes=5),
    'vanilla': dict(arch='vanilla_tiny', out_indices=(0, 1)),
    'cascade': dict(scan='cascade', out_indices=(0, 1)),
}


def two_stages(arch='tiny', **settings):
    torch.manual_seed(0)
    return VMambaNet(arch, dims=(8, 16), depths=(1, 1), **settings)


def compile_once(net, sizes):
    """Yields each image's result compiled, after the first without a recompilation, and eager."""
    torch._dynamo.reset()
    compiled = torch.compile(net, backend='aot_eager', fullgraph=True, dynamic=True)
    for i, size in enumerate(sizes):
        image = torch.randn(size[0], 3, *size[1:])
        results = []
        for run in (compiled, net):
            torch.manual_seed(1)
            with torch._dynamo.config.patch(error_on_recompile=i > 0):
                results.append(run(image))
        yield results


@pytest.mark.parametrize(
    'form',
    [
        'backbone',
        'vanilla',
        *(pytest.param(f, marks=pytest.mark.slow) for f in ('classifier', 'cascade')),
    ],
)
@with_the_op
def test_network_compiles_once(form):
    net = two_stages(**FORMS[form]).eval()
    sizes = [(2, 40, 52), (2, 64, 64), (3, 33, 70)]
    with torch.no_grad():
        for got, want in compile_once(net, sizes):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    'sizes',
    [
        [(1, 224, 320), (1, 96, 96), (1, 512, 384)],
        pytest.param([(2, 64, 96), (16, 64, 96)], marks=pytest.mark.slow),
    ],
    ids=['one image', 'batches'],
)
@with_the_op
@compiles_the_convolution
def test_backbone_compiles_once_for_small_and_large(sizes):
    net = two_stages(out_indices=(0, 1)).eval()
    with torch.no_grad():
        for got, want in compile_once(net, sizes):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ('form', 'with_cp'),
    [
        pytest.param('backbone', True, marks=checkpoints_random_numbers),
        pytest.param('classifier', False, marks=pytest.mark.slow),
        pytest.param('vanilla', False, marks=pytest.mark.slow),
    ],
)
@with_the_op
def test_network_trains_compiled_once(form, with_cp):
    """With drop path, whose masks are drawn in the same order."""
    net = two_stages(**FORMS[form], with_cp=with_cp, drop_path_rate=0.5)
    weights = list(net.parameters())
    for results in compile_once(net, [(4, 40, 52), (3, 33, 70)]):
        grads = []
        for maps in results:
            maps = [maps] if isinstance(maps, torch.Tensor) else maps
            grads.append(torch.autograd.grad(sum(y.square().sum() for y in maps), weights))
        torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_backbone_trains_compiled_by_inductor():
    torch._dynamo.reset()
    net = VMambaNet(dict(dims=(8, 16), depths=(1, 1)), out_indices=(0, 1), drop_path_rate=0.0)
    compiled = torch.compile(net, fullgraph=True, dynamic=True)
    for i, size in enumerate([(2, 40, 52), (2, 64, 64), (3, 33, 70)]):
        image = torch.randn(size[0], 3, *size[1:])
        with torch._dynamo.config.patch(error_on_recompile=i > 0):
            got = compiled(image)
        want = net(image)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
        leaves = list(net.parameters())
        names = [name for name, _ in net.named_parameters()]
        for name, a, b in zip(
            names,
            torch.autograd.grad(sum(y.square().sum() for y in got), leaves),
            torch.autograd.grad(sum(y.square().sum() for y in want), leaves),
            strict=True,
        ):
            torch.testing.assert_close(
                a, b, rtol=1e-3, atol=1e-3, msg=lambda text, name=name: f'{name}: {text}'
            )


def test_every_scan_is_an_ss2d():
    net = thin('tiny', scan='cascade')
    assert [m.scan for m in net.modules() if isinstance(m, SS2D)] == ['cascade'] * 5
