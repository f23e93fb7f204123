"""The interface of timm's models, with torch alone; ``tests/test_timm`` has the rest."""

import pytest
import torch

from mmvmamba.nn import VMambaNet

DIMS = (8, 16, 24, 32)


def thin(**kwargs):
    torch.manual_seed(0)
    return VMambaNet('tiny', dims=DIMS, depths=(1, 1, 2, 1), **kwargs)


def image():
    return torch.randn(1, 3, 32, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ('indices', 'stages'),
    [(None, [0, 1, 2, 3]), (2, [2, 3]), ((3, 0), [0, 3]), ((-1, 3, 1), [1, 3])],
)
def test_intermediates_come_in_the_order_of_the_stages(indices, stages):
    """As in timm, which takes a set of indices."""
    maps = thin().eval().forward_intermediates(image(), indices, intermediates_only=True)
    assert [y.shape for y in maps] == [(1, DIMS[i], 8 // 2**i, 16 // 2**i) for i in stages]


@pytest.mark.parametrize('stem', ['conv', 'patch'])
@pytest.mark.parametrize('patch_size', [2, 4, 8])
def test_reductions_are_the_strides_of_the_maps(stem, patch_size):
    net = thin(stem=stem, patch_size=patch_size).eval()
    maps = net.forward_intermediates(torch.zeros(1, 3, 512, 256), intermediates_only=True)
    for info, y in zip(net.feature_info, maps, strict=True):
        stride = info['reduction']
        assert abs(512 / stride - y.shape[2]) <= 2 and abs(256 / stride - y.shape[3]) <= 2


@pytest.mark.parametrize(
    'call',
    [
        lambda net: net.get_classifier(),
        lambda net: net.reset_classifier(3),
        lambda net: net.forward_head(torch.zeros(1, 1, 1, 32)),
        lambda net: net.prune_intermediate_layers(),
    ],
)
def test_a_backbone_has_no_classifier(call):
    with pytest.raises(TypeError, match='with out_indices is a backbone and has no classifier'):
        call(thin(out_indices=(0, 1, 2, 3)))


@pytest.mark.parametrize(
    ('kwargs', 'error', 'words'),
    [
        (dict(indices=0), ValueError, 'indices must be 1 to 4 stages or a list, but got 0'),
        (dict(indices=5), ValueError, 'indices must be 1 to 4 stages or a list, but got 5'),
        (
            dict(indices=(4,)),
            ValueError,
            r'indices must be one or more stages in \[-4, 3\].*\(4,\)',
        ),
        (dict(indices=()), ValueError, 'indices must be one or more stages'),
        (dict(indices='01'), TypeError, 'indices must be a sequence'),
        (dict(indices=(1.0,)), TypeError, 'indices must be a sequence of int'),
        (dict(output_fmt='NLC'), ValueError, "output_fmt must be one of .*'NLC'"),
    ],
)
def test_bad_intermediates(kwargs, error, words):
    with pytest.raises(error, match=f'^{words}'):
        thin().forward_intermediates(image(), **kwargs)


@pytest.mark.parametrize('norm', ['ln', 'bn'])
def test_pooling_of_both_norms(norm):
    net = thin(norm=norm, num_classes=5).eval()
    features = net.forward_features(image())
    assert net.forward_head(features).shape == (1, 5)
    net.reset_classifier(0, '')
    assert net(image()).shape == features.shape
    (normed,) = net.forward_intermediates(image(), 1, norm=True, output_fmt='NHWC')[1]
    torch.testing.assert_close(normed, net(image()))
