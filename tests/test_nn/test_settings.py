"""Settings that are refused when a network or a layer is built, by name."""

import numpy as np
import pytest
import torch

from mmvmamba.nn import SS2D, Arch, VMambaNet
from mmvmamba.nn.settings import check_images

WRONG_TYPES = [
    dict(dims=8),
    dict(dims=(8.0, 16)),
    dict(depths='12'),
    dict(depths=(1.0, 1)),
    dict(depths=(True, 1)),
    dict(d_state=1.5),
    dict(d_state=None),
    dict(ssm_ratio='2'),
    dict(dt_rank='auto'),
    dict(conv_kernel='3'),
    dict(conv_bias=1),
    dict(out_act='no'),
    dict(mlp_ratio=None),
    dict(mlp_gate='gelu'),
    dict(drop_path_rate='0.1'),
    dict(mlp_drop_rate=False),
    dict(stem_norm='ln'),
    dict(patch_size=4.0),
    dict(pos_embed_size=(32, 32)),
    dict(in_channels='rgb'),
    dict(num_classes=2.0),
    dict(frozen_stages='a'),
    dict(out_indices=1.0),
]
OUT_OF_RANGE = [
    (dict(dims=(8, 0)), r'dims\[1\] must be at least 1'),
    (dict(dims=(1, 2)), r"dims\[0\] must be at least 2 for stem 'conv'"),
    (dict(dims=(8, 16, 24)), 'dims and depths must have the same length'),
    (dict(dims=(), depths=()), 'dims and depths must have the same length of at least 1'),
    (dict(d_state=-1), r'd_state must be in \[1, 256\]'),
    (dict(ssm_ratio=-1.0), r'ssm_ratio must be in \[0, inf\)'),
    (dict(ssm_ratio=float('inf')), r'ssm_ratio must be in \[0, inf\)'),
    (dict(dt_rank=0), 'dt_rank must be at least 1, but got 0'),
    (dict(dt_rank=-1), 'dt_rank must be at least 1, but got -1'),
    (dict(conv_kernel=-1), 'conv_kernel must be at least 0'),
    (dict(mlp_ratio=0.01), 'mlp_ratio must give at least one channel for a width of 8'),
    (dict(mlp_ratio=float('nan')), 'mlp_ratio must be in'),
    (dict(mlp_drop_rate=1), r'mlp_drop_rate must be in \[0, 1\)'),
    (dict(ssm_drop_rate=-0.1), r'ssm_drop_rate must be in \[0, 1\)'),
    (dict(patch_size=0), 'patch_size must be at least 2'),
    (dict(patch_size=-2), 'patch_size must be at least 2'),
    (dict(pos_embed_size=0), 'pos_embed_size must be at least 1'),
    (dict(pos_embed_size=2), 'pos_embed_size must be at least patch_size 4, but got 2'),
    (dict(in_channels=0), 'in_channels must be at least 1'),
    (dict(num_classes=-1), 'num_classes must be at least 0'),
    (dict(frozen_stages=-2), r'frozen_stages must be in \[-1, 2\]'),
]


def build(**settings):
    """A network by its arguments; None is a value here, where an override would leave it out."""
    names = ('in_channels', 'num_classes', 'frozen_stages', 'out_indices')
    own = {key: settings.pop(key) for key in names if key in settings}
    return VMambaNet({'dims': (8, 16), 'depths': (1, 1), **settings}, **own)


@pytest.mark.parametrize('settings', WRONG_TYPES, ids=str)
def test_wrong_types(settings):
    (name,) = settings
    with pytest.raises(TypeError, match=rf'^{name}(\[0\])? must be (of type|a sequence of) '):
        build(**settings)


@pytest.mark.parametrize(('settings', 'message'), OUT_OF_RANGE, ids=str)
def test_out_of_range(settings, message):
    with pytest.raises(ValueError, match=f'^{message}'):
        build(**settings)


@pytest.mark.parametrize(
    ('settings', 'error', 'message'),
    [
        (dict(dim=0), ValueError, 'dim must be at least 1'),
        (dict(dim=8.0), TypeError, 'dim must be of type int'),
        (dict(d_state=300), ValueError, r'd_state must be in \[1, 256\], but got 300'),
        (
            dict(ssm_ratio=0),
            ValueError,
            'ssm_ratio must give at least one channel for a width of 8',
        ),
        (dict(ssm_ratio='1'), TypeError, 'ssm_ratio must be of type float'),
        (dict(dt_rank=0), ValueError, 'dt_rank must be at least 1'),
        (dict(conv_kernel=3.0), TypeError, 'conv_kernel must be of type int'),
        (dict(conv_bias=None), TypeError, 'conv_bias must be of type bool'),
        (dict(out_act=1), TypeError, 'out_act must be of type bool'),
        (dict(drop_rate=1.0), ValueError, r'drop_rate must be in \[0, 1\)'),
    ],
)
def test_settings_of_ss2d(settings, error, message):
    with pytest.raises(error, match=f'^{message}'):
        SS2D(**{'dim': 8, **settings})


@pytest.mark.parametrize('shape', [(2, 3, 4, 6), (3, 4, 8), (8,), (1, 2, 3, 4, 8)], ids=str)
def test_maps_of_another_shape(shape):
    with pytest.raises(ValueError, match=r'^x must have shape \(N, H, W, 8\), but got'):
        SS2D(8)(torch.zeros(shape))


def test_a_map_that_is_no_tensor():
    with pytest.raises(TypeError, match='^x must be a torch.Tensor, but got list'):
        SS2D(8)([[1.0]])


def test_numbers_of_other_types_are_taken():
    arch = Arch(dims=np.array([8, 16]), depths=[1, 1], ssm_ratio=2, mlp_ratio=np.float32(1.5))
    assert (arch.dims, arch.depths, arch.ssm_ratio) == ((8, 16), (1, 1), 2)
    assert VMambaNet(arch, num_classes=3)(torch.zeros(1, 3, 8, 8)).shape == (1, 3)


def test_a_patch_stem_may_have_one_channel():
    net = VMambaNet(dict(dims=(1, 2), depths=(1, 1), stem='patch'), out_indices=(1,))
    assert net(torch.zeros(1, 3, 8, 8))[0].shape == (1, 2, 1, 1)


def test_images():
    check_images(torch.zeros(2, 4, 8, 9), in_channels=4, min_side=8)
    for shape in ((2, 4, 7, 9), (2, 4, 9, 7), (2, 3, 8, 9), (4, 8, 9)):
        with pytest.raises(ValueError, match=r'shape \(N, 4, H, W\) with sides of at least 8'):
            check_images(torch.zeros(shape), in_channels=4, min_side=8)
