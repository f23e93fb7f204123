"""Vim: its scans against a loop in NumPy, its size, what it takes and what it refuses."""

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip('mmengine')

from mmengine.registry import MODELS  # noqa: E402

from mmvmamba.models import Vim  # noqa: E402
from mmvmamba.models.vim import BidirectionalMamba, resize_positions  # noqa: E402

THIN = dict(embed_dims=12, num_layers=2, d_state=3)


def thin(**settings):
    torch.manual_seed(0)
    return Vim(**(dict(arch=THIN, img_size=32, patch_size=8, drop_path_rate=0.0) | settings)).eval()


def silu(x):
    return x / (1 + np.exp(-x))


def one_direction(params, x, z, end, rank, states):
    """Token by token, from the first of (L, E) to the last."""
    length, inner = x.shape
    weight, bias = params[f'conv1d{end}.weight'][:, 0], params[f'conv1d{end}.bias']
    u = np.zeros_like(x)
    for t in range(length):
        u[t] = bias
        for k in range(4):
            if t - 3 + k >= 0:
                u[t] += weight[:, k] * x[t - 3 + k]
    u = silu(u)
    A = -np.exp(params[f'A{end}_log'])
    h, y = np.zeros((inner, states)), np.zeros_like(x)
    for t in range(length):
        low = params[f'x_proj{end}.weight'] @ u[t]
        dt, B, C = low[:rank], low[rank : rank + states], low[rank + states :]
        dt = np.log1p(np.exp(params[f'dt_proj{end}.weight'] @ dt + params[f'dt_proj{end}.bias']))
        h = np.exp(dt[:, None] * A) * h + (dt * u[t])[:, None] * B
        y[t] = (h @ C + params[f'D{end}'] * u[t]) * silu(z[t])
    return y


@pytest.mark.parametrize('backend', ['auto', 'reference'])
@pytest.mark.parametrize('length', [1, 2, 11])
def test_mixer_is_the_mean_of_two_loops(length, backend):
    torch.manual_seed(1)
    mixer = BidirectionalMamba(10, d_state=3, backend=backend).double()
    for name in ('D', 'D_b', 'A_log', 'A_b_log'):
        nn.init.normal_(getattr(mixer, name))
    x = torch.randn(2, length, 10, dtype=torch.float64)
    params = {name: value.detach().numpy() for name, value in mixer.named_parameters()}
    for given, out in zip(x.numpy(), mixer(x).detach().numpy(), strict=True):
        inner, z = np.split(given @ params['in_proj.weight'].T, 2, axis=1)
        ahead = one_direction(params, inner, z, '', mixer.rank, 3)
        back = one_direction(params, inner[::-1], z[::-1], '_b', mixer.rank, 3)[::-1]
        np.testing.assert_allclose(
            out, (ahead + back) / 2 @ params['out_proj.weight'].T, rtol=1e-9, atol=1e-11
        )


def test_number_of_parameters_is_that_of_the_paper():
    with torch.device('meta'):
        model, head = Vim('small'), nn.Linear(384, 1000)
    count = sum(p.numel() for m in (model, head) for p in m.parameters())
    # By hand: 24 blocks of 1,043,328, the embedding of 16 x 16 x 3, position, token, norm, head.
    block = 384 * 1536 + 768 * 384 + 384 + 2 * 768 * (4 + 1 + 24 + 32 + 24 + 1 + 16 + 1)
    assert count == 24 * block + 768 * 384 + 384 + 197 * 384 + 384 + 384 + 385_000
    assert round(count / 1e6) == 26


def test_first_time_steps_are_in_the_range_of_mamba():
    mixer = thin().layers[0].mixer
    for proj in (mixer.dt_proj, mixer.dt_proj_b):
        steps = nn.functional.softplus(proj.bias)
        assert steps.min() > 0.99e-3 and steps.max() < 0.101


def test_registered_and_trained():
    cfg = dict(type='mmvmamba.Vim', arch=THIN, img_size=32, patch_size=8, with_cp=True)
    model = MODELS.build(cfg).train()
    (out,) = model(torch.rand(2, 3, 32, 32))
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ('size', 'grid'), [((32, 32), (4, 4)), ((41, 30), (5, 3)), ((8, 9), (1, 1))]
)
def test_any_size_of_image(size, grid):
    (out,) = thin()(torch.rand(2, 3, *size))
    assert out.shape == (2, 12, *grid) and out.isfinite().all()


def test_map_and_class_token_are_parts_of_one_sequence():
    """A class token with a view of every position that a token of the map sees."""
    images = torch.rand(1, 3, 32, 32, requires_grad=True)
    (token,) = thin(out_type='cls_token')(images)
    assert token.shape == (1, 12)
    (grad,) = torch.autograd.grad(token.square().sum(), images)
    assert (grad.abs().sum((0, 1)) > 0).all()


def test_position_embedding_is_resized_without_the_class_token():
    ramp = torch.arange(16.0).reshape(1, 4, 4, 1).expand(-1, -1, -1, 12)
    tokens = ramp.flatten(1, 2)
    whole = torch.cat((tokens[:, :8], torch.full((1, 1, 12), 99.0), tokens[:, 8:]), dim=1)
    assert resize_positions(whole, (4, 4), (4, 4)) is whole
    resized = resize_positions(whole, (4, 4), (8, 8))
    assert resized.shape == (1, 65, 12) and (resized[:, 32] == 99).all()
    rest = torch.cat((resized[:, :32], resized[:, 33:]), dim=1)
    assert rest.max() < 16 and (rest[:, 1:8] > rest[:, :7]).all()


def test_loads_weights_of_another_size():
    small, wide = thin(), thin(img_size=(64, 40))
    assert wide.pos_embed.shape == (1, 8 * 5 + 1, 12)
    wide.load_state_dict(small.state_dict())
    image = torch.rand(1, 3, 64, 40)
    torch.testing.assert_close(wide(image), small(image))


def test_a_wider_map_of_the_same_length_is_not_the_same():
    image = torch.rand(1, 3, 16, 64)
    model = thin()
    (wide,), (high,) = model(image), model(image.transpose(2, 3))
    assert wide.shape == (1, 12, 2, 8) and high.shape == (1, 12, 8, 2)
    assert not torch.allclose(wide, high.transpose(2, 3), atol=1e-3)


def test_autocast_keeps_the_residual_sum_in_float32():
    with torch.autocast('cpu', torch.bfloat16), torch.no_grad():
        (out,) = thin()(torch.rand(1, 3, 32, 32))
    assert out.dtype == torch.float32 and out.isfinite().all()


@pytest.mark.parametrize(
    ('settings', 'error', 'words'),
    [
        (dict(arch='huge'), ValueError, r"arch must be one of .*small.*'huge'"),
        (dict(arch=dict(embed_dims=8)), ValueError, 'embed_dims.*num_layers'),
        (
            dict(arch=dict(embed_dims=8, num_layers=0)),
            ValueError,
            'num_layers must be at least 1, but got 0',
        ),
        (dict(arch=dict(embed_dims='8', num_layers=1)), TypeError, "embed_dims must .* '8'"),
        (dict(arch=dict(embed_dims=8, num_layers=True)), TypeError, 'num_layers must .* True'),
        (dict(img_size=None), TypeError, 'img_size must be an int or a pair of ints, but got None'),
        (dict(arch=dict(embed_dims=8, num_layers=1, d_state=999)), ValueError, 'd_state'),
        (dict(arch=dict(embed_dims=8, num_layers=1, depth=1)), ValueError, "'depth': 1"),
        (dict(arch=3), TypeError, 'arch must be a str or a dict'),
        (dict(out_type='avg'), ValueError, "out_type must be one of .*'avg'"),
        (dict(img_size=4), ValueError, 'img_size must be .* patch_size 8, but got 4'),
        (dict(img_size=(32, 32, 32)), ValueError, 'img_size must be one or two sides'),
        (dict(patch_size='8'), TypeError, 'patch_size'),
        (dict(drop_path_rate=1.0), ValueError, 'drop_path_rate'),
        (dict(backend='fast'), ValueError, "backend.*'fast'"),
    ],
)
def test_refuses_wrong_settings(settings, error, words):
    with pytest.raises(error, match=words):
        thin(**settings)(torch.rand(1, 3, 32, 32))


@pytest.mark.parametrize('shape', [(1, 3, 7, 32), (1, 1, 32, 32), (3, 32, 32)])
def test_refuses_wrong_images(shape):
    with pytest.raises(ValueError, match=r'\(N, 3, H, W\) with sides of at least 8'):
        thin()(torch.rand(shape))


def test_hooks_of_the_time_steps():
    vim, grads = thin(), []
    for name, module in vim.named_modules():
        if 'dt_proj' in name:
            module.register_full_backward_hook(lambda *_: grads.append(1))
    vim(torch.rand(1, 3, 32, 32))[0].sum().backward()
    assert len(grads) == 2 * len(vim.layers)


@pytest.mark.filterwarnings('ignore:torch.ao.quantization:DeprecationWarning')
@pytest.mark.filterwarnings('ignore:must run observer:UserWarning')
def test_dynamic_quantization():
    """The layer of the time steps, whose bias the scan adds otherwise, is replaced too."""
    torch.manual_seed(0)
    vim = Vim(dict(embed_dims=32, num_layers=2), img_size=32).eval()
    quantized = torch.ao.quantization.quantize_dynamic(vim, {nn.Linear})
    assert not any(type(module) is nn.Linear for module in quantized.modules())
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        (want,), (got,) = vim(x), quantized(x)
    assert (got - want).norm() < 0.05 * want.norm()
