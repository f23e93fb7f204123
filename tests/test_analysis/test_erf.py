"""Effective receptive fields against what is known of linear networks."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from mmvmamba.analysis.erf import ReceptiveField, receptive_field


def convolutions(*layers):
    """Convolutions (kernel, stride) of weights 1 on one channel, without padding in between."""
    net = nn.Sequential(
        *(nn.Conv2d(1, 1, kernel, stride, kernel // 2, bias=False) for kernel, stride in layers)
    )
    for conv in net:
        nn.init.ones_(conv.weight)
    return net.double()


def known_profile(*layers):
    """The number of ways from each input row to the output, by NumPy's convolution."""
    profile, step = np.ones(1), 1
    for kernel, stride in layers:
        spread = np.zeros((kernel - 1) * step + 1)
        spread[::step] = 1
        profile, step = np.convolve(profile, spread), step * stride
    return profile


@pytest.mark.parametrize(
    'layers', [[(3, 1)] * 3, [(5, 1), (3, 1)], [(3, 2), (3, 1)], [(3, 2), (3, 2), (5, 1)]]
)
def test_stack_of_convolutions(layers):
    size = (48, 64)
    images = torch.rand(2, 1, *size, dtype=torch.float64)
    field = receptive_field(convolutions(*layers), [images]).gradient
    stride = math.prod(s for _, s in layers)
    profile = known_profile(*layers)
    expected = np.zeros(size)
    # The position 0 of a map with odd kernels and padding sees the pixels around pixel 0.
    top, left = (n // stride // 2 * stride - len(profile) // 2 for n in size)
    expected[top : top + len(profile), left : left + len(profile)] = np.outer(profile, profile)
    np.testing.assert_allclose(field.numpy(), expected)


def test_takes_the_positive_part_of_features_and_gradients():
    """Of two output channels only the one that is positive, and of its weights the positive."""
    net = nn.Conv2d(2, 2, 3, padding=1, bias=False).double()
    with torch.no_grad():
        net.weight.zero_()
        net.weight[0, 0, 1] = torch.tensor([-5.0, 1.0, 2.0])
        net.weight[0, 1, 1] = torch.tensor([3.0, -1.0, 0.0])
        net.weight[1] = -1  # a negative feature
    field = receptive_field(
        net, [torch.tensor([0.5, 2.0]).double().view(1, 2, 1, 1) * torch.ones(3, 3)]
    )
    expected = torch.zeros(3, 3, dtype=torch.float64)
    expected[1] = torch.tensor([3.0, 1.0, 2.0])
    torch.testing.assert_close(field.gradient, expected)


def test_is_the_mean_over_images_however_they_are_batched():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.GELU(), nn.Conv2d(8, 16, 3, 2, 1)
    ).double()
    images = torch.randn(5, 3, 12, 20, dtype=torch.float64)
    single = torch.stack([receptive_field(net, [image[None]]).gradient for image in images])
    together = receptive_field(net, images.split(2))
    torch.testing.assert_close(together.gradient, single.mean(0))
    assert all(p.grad is None for p in net.parameters())


def test_a_patch_is_all_that_a_patch_embedding_sees():
    field = receptive_field(nn.Conv2d(3, 8, 4, 4), [torch.rand(1, 3, 32, 48)])
    seen = field.gradient > 0
    assert seen[16:20, 24:28].any() and not seen[:16].any() and not seen[:, 28:].any()
    assert field.share_within([100])[0] == 1


def test_center_is_where_the_network_looks():
    """The middle of a patch; the corner of one for convolutions with padding."""
    image = [torch.rand(1, 3, 32, 64, dtype=torch.float64)]
    patches = receptive_field(nn.AvgPool2d(4), image)
    assert patches.center == pytest.approx((17.5, 33.5))
    assert patches.share_within([0.7, 0.8, 1.6, 2.2]) == pytest.approx([0, 0.25, 0.75, 1])
    image = [torch.rand(1, 1, 32, 64, dtype=torch.float64)]
    field = receptive_field(convolutions((3, 2), (3, 2)), image)
    assert field.center == pytest.approx((16, 32))


def test_wide_background_does_not_move_the_center():
    gradient = torch.full((100, 100), 1e-4, dtype=torch.float64)
    gradient[40:44, 60:64] = 1 / 16
    assert ReceptiveField(gradient).center == pytest.approx((41.5, 61.5), abs=0.05)


def test_shares_and_radii_of_a_disc():
    field = ReceptiveField(torch.ones(101, 101, dtype=torch.float64))
    field.gradient[field.distances() > 40] = 0
    assert field.center == pytest.approx((50, 50))
    shares = field.share_within([0, 20, 40, 100])
    # A disc of half the radius has a quarter of the area, up to the pixels on its rim.
    assert shares == pytest.approx([1 / (math.pi * 1600), 0.25, 1, 1], abs=5e-3)
    assert field.radius_of(0.25) == pytest.approx(20, abs=0.3)
    assert field.radius_of(1.0) == pytest.approx(40)
    picture = field.picture()
    assert picture.max() == 1 and set(picture.unique().tolist()) == {0.0, 1.0}


def test_picture_is_the_fifth_root():
    field = ReceptiveField(torch.tensor([[32.0, 1.0]], dtype=torch.float64))
    torch.testing.assert_close(field.picture(), torch.tensor([[1.0, 0.5]], dtype=torch.float64))


def test_refuses_what_has_no_field():
    net = nn.Conv2d(1, 1, 3, padding=1)
    with pytest.raises(ValueError, match='at least one batch, but got none'):
        receptive_field(net, [])
    with pytest.raises(ValueError, match=r'the same size.*\(8, 8\).*\(8, 9\)'):
        nn.init.ones_(net.weight)
        receptive_field(net, [torch.ones(1, 1, 8, 8), torch.ones(1, 1, 8, 9)])
    with pytest.raises(ValueError, match=r'maps.*\(1, 64\)'):
        receptive_field(nn.Flatten(), [torch.ones(1, 1, 8, 8)])
    with pytest.raises(ValueError, match='no positive gradient'):
        nn.init.zeros_(net.weight)
        receptive_field(net, [torch.ones(1, 1, 8, 8)])
    with pytest.raises(ValueError, match='share must be'):
        ReceptiveField(torch.ones(2, 2)).radius_of(0)
