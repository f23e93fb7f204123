"""S4ND-ConvNeXt: its convolution against a state space model, its size, what it refuses."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

pytest.importorskip('mmengine')

from mmengine.registry import MODELS  # noqa: E402

from mmvmamba.analysis.flops import count_multiply_adds  # noqa: E402
from mmvmamba.models import S4NDConvNeXt  # noqa: E402
from mmvmamba.models.s4nd_convnext import AxisKernel, S4ND2d, convolve_axis  # noqa: E402

THIN = dict(depths=(1, 1, 2, 1), channels=(8, 12, 16, 20))


def thin(**settings):
    torch.manual_seed(0)
    return S4NDConvNeXt(**(dict(arch=THIN, d_state=4, drop_path_rate=0.0) | settings)).eval()


def impulse_response(kernel, length):
    """The response of x' = A x + u, held for a step, as a recurrence over positions."""
    p = {name: value.detach().double().numpy() for name, value in kernel.named_parameters()}
    A = -np.exp(p['log_A_real']) + 1j * p['A_imag']
    C = p['C'][..., 0] + 1j * p['C'][..., 1]
    dt = np.exp(p['log_dt'])
    out = np.zeros((2, len(dt), length))
    for channel, step in enumerate(dt):
        decay = np.exp(step * A)
        state = (decay - 1) / A  # what an impulse of a step leaves
        for position in range(length):
            for end in range(2):
                out[end, channel, position] = 2 * (C[end, channel] * state).sum().real
            state = decay * state
    return out


def test_kernel_is_the_response_of_the_state_space_model():
    torch.manual_seed(0)
    kernel = AxisKernel(3, 8).double()
    np.testing.assert_allclose(kernel(17).detach(), impulse_response(kernel, 17), rtol=1e-9)


def test_kernel_does_not_grow():
    torch.manual_seed(0)
    kernel = AxisKernel(4, 64)(2000)
    assert kernel.isfinite().all()
    assert kernel[..., -100:].abs().max() < 1e-6 * kernel.abs().max()


@pytest.mark.parametrize('length', [1, 2, 7, 16])
def test_axis_is_convolved_with_both_kernels(length):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 2, length, dtype=torch.float64)
    kernels = torch.randn(2, 3, length, dtype=torch.float64)
    expected = torch.zeros_like(x)
    for i in range(length):
        for j in range(length):
            weight = kernels[0, :, i - j] if j <= i else kernels[1, :, j - i - 1]
            expected[..., i] += weight[:, None] * x[..., j]
    torch.testing.assert_close(convolve_axis(x, kernels), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(('H', 'W'), [(5, 8), (1, 3), (6, 6)])
def test_convolution_by_fft_is_a_direct_one(H, W):
    torch.manual_seed(0)
    layer = S4ND2d(3, 4).double()
    x = torch.randn(2, 3, H, W, dtype=torch.float64)
    # conv2d correlates: the weight at offset o is the kernel at distance -o.
    sides = []
    for kernel, length in zip(layer.kernels, (H, W), strict=True):
        behind, ahead = torch.from_numpy(impulse_response(kernel, length))
        sides.append(torch.cat((behind.flip(-1), ahead[:, : length - 1]), dim=-1))
    weight = sides[0].unsqueeze(-1) * sides[1].unsqueeze(-2)  # (C, 2H - 1, 2W - 1)
    direct = F.conv2d(x, weight.unsqueeze(1), padding=(H - 1, W - 1), groups=3)
    direct = direct + layer.D[:, None, None] * x
    torch.testing.assert_close(layer(x), direct, rtol=1e-9, atol=1e-10)


def test_number_of_parameters_is_that_of_the_paper():
    with torch.device('meta'):
        model, head = S4NDConvNeXt(), torch.nn.Linear(768, 1000)
    count = sum(p.numel() for m in (model, head) for p in m.parameters())
    # ConvNeXt-T without its depthwise 7x7 convolutions, then for each of their 6624 channels two
    # axes with a time step and C of two directions and 32 complex states, and D; A is shared.
    depthwise, channels = 331_200, 3 * 96 + 3 * 192 + 9 * 384 + 3 * 768
    assert count == 28_589_128 - depthwise + channels * (2 * (1 + 2 * 64) + 1) + 18 * 2 * 64
    assert f'{count / 1e6:.1f}' == '30.0'


def test_registered_and_trained():
    model = MODELS.build(dict(type='mmvmamba.S4NDConvNeXt', arch=THIN, d_state=4)).train()
    (out,) = model(torch.rand(2, 3, 64, 64))
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize('size', [(64, 64), (75, 102), (33, 32)])
def test_any_size_of_image(size):
    outs = thin(out_indices=(0, 1, 2, 3))(torch.rand(2, 3, *size))
    for i, out in enumerate(outs):
        stride = 4 * 2**i
        assert out.shape == (2, THIN['channels'][i], size[0] // stride, size[1] // stride)
        assert out.is_contiguous() and out.isfinite().all()


def test_maps_do_not_depend_on_what_else_is_asked_for():
    images = torch.rand(1, 3, 64, 64)
    first = thin(out_indices=(-1,))
    last = thin(out_indices=(0, 3))
    last.load_state_dict(first.state_dict(), strict=False)
    torch.testing.assert_close(first(images)[0], last(images)[1])
    assert len(thin(out_indices=(1,)).stages) == 2


@pytest.mark.parametrize('indices', [(2, 0), (-1, 1, 0), (3, 2, 1, 0)])
def test_maps_have_the_order_of_out_indices(indices):
    images = torch.rand(1, 3, 64, 64)
    whole, other = thin(out_indices=range(4)), thin(out_indices=indices)
    state = whole.state_dict()
    other.load_state_dict({key: state[key] for key in other.state_dict()})
    expected, maps = whole(images), other(images)
    assert len(maps) == len(indices)
    for index, out in zip(indices, maps, strict=True):
        torch.testing.assert_close(out, expected[index])


def test_memory_format_changes_nothing():
    images, model = torch.rand(2, 3, 64, 64), thin()
    (plain,) = model(images)
    (last,) = model.to(memory_format=torch.channels_last)(
        images.contiguous(memory_format=torch.channels_last)
    )
    torch.testing.assert_close(last, plain)


def test_every_pixel_reaches_every_position_in_one_block():
    block = thin().stages[0][0]
    x = torch.zeros(1, 8, 9, 12, requires_grad=True)
    (grad,) = torch.autograd.grad(block.conv(x)[0, :, 0, 11].sum(), x)
    assert (grad.abs().sum(1) > 0).all()


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_transforms_in_float32_within_autocast(dtype):
    torch.manual_seed(0)
    layer, x = S4ND2d(4, 8), torch.randn(1, 4, 8, 8)
    plain = layer(x)
    with torch.autocast('cpu', torch.bfloat16):
        torch.testing.assert_close(layer(x), plain)
        low = layer(x.to(dtype))
    assert low.dtype == dtype
    torch.testing.assert_close(low.float(), layer(x.to(dtype).float()), rtol=1e-2, atol=1e-2)


def test_fft_is_counted():
    """2.5 n log2(n) operations for each of the real transforms, two to a multiply-add."""
    layer, x = S4ND2d(4, 8).to('meta'), torch.zeros(2, 4, 16, 8, device='meta')
    counts = count_multiply_adds(layer, x).counts
    rows = 2 * 4 * (16 * 16 * math.log2(16) + 8 * 32 * math.log2(32))
    kernels = 4 * (16 * math.log2(16) + 32 * math.log2(32))
    assert counts['_fft_c2r'] == 1.25 * rows
    # An input shorter than its transform is padded first.
    assert counts['_fft_r2c'] == 1.25 * (rows + kernels)


@pytest.mark.parametrize(
    ('settings', 'error', 'words'),
    [
        (dict(arch='large'), ValueError, r"arch must be one of .*tiny.*'large'"),
        (dict(arch=dict(depths=(1,))), ValueError, "dict with .*'depths', 'channels'"),
        (dict(arch=dict(depths=(1,), channels=(4, 8))), ValueError, 'the same length'),
        (dict(arch=dict(depths=(0,), channels=(4,))), ValueError, r'depths\[0\]'),
        (
            dict(arch=dict(depths=(1,), channels=(0,))),
            ValueError,
            r'channels\[0\] must be',
        ),
        (dict(arch=None), TypeError, 'arch must be a str or a dict'),
        (dict(d_state=3), ValueError, 'd_state must be even, but got 3'),
        (dict(d_state=0), ValueError, 'd_state'),
        (dict(out_indices=(4,)), ValueError, 'out_indices'),
        (dict(out_indices=(1, 1)), ValueError, 'out_indices'),
        (dict(out_indices=None), TypeError, 'out_indices'),
    ],
)
def test_refuses_wrong_settings(settings, error, words):
    with pytest.raises(error, match=words):
        thin(**settings)


@pytest.mark.parametrize('shape', [(1, 3, 31, 64), (1, 4, 64, 64), (3, 64, 64)])
def test_refuses_wrong_images(shape):
    with pytest.raises(ValueError, match=r'\(N, 3, H, W\) with sides of at least 32'):
        thin()(torch.rand(shape))
