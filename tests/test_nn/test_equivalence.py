"""The network beside an independent NumPy implementation of all of it."""

import dataclasses

import numpy as np
import pytest
import torch

from mmvmamba.nn import ARCHS, VMambaNet

from . import vmamba_numpy

BOUNDS = {torch.float32: 1e-5, torch.float64: 1e-10}
DTYPES = pytest.mark.parametrize('dtype', BOUNDS, ids=str)
NAMES = [name for name in ARCHS if '_' in name]
#: Odd sizes of maps at every stage, in one dimension or the other.
SIZE = (45, 38)


def thin(name, **settings):
    """A thin arch: the released settings, with fewer channels, blocks and states."""
    arch = ARCHS[name]
    dims = (8, 16, 24, 32) if arch.dims[0] == 96 else (12, 20, 28, 36)
    depths = tuple(min(depth, 2) if i == 2 else 1 for i, depth in enumerate(arch.depths))
    small = dict(dims=dims, depths=depths, d_state=min(arch.d_state, 4))
    return dataclasses.replace(arch, **(small | settings))


def difference(arch, dtype, size, out_indices=None):
    """Largest absolute difference of the outputs, with no weight left at its initial value."""
    torch.manual_seed(0)
    net = VMambaNet(arch, num_classes=7, out_indices=out_indices).to(dtype).eval()
    with torch.no_grad():
        for value in net.parameters():
            value.add_(0.1 * torch.randn_like(value))
        images = torch.randn(2, 3, *size, dtype=dtype)
        ours = net(images)
    weights = {key: value.double().numpy() for key, value in net.state_dict().items()}
    settings = dataclasses.asdict(arch)
    if out_indices is None:
        ours, theirs = [ours], [vmamba_numpy.classify(images.double().numpy(), weights, settings)]
    else:
        theirs = vmamba_numpy.features(images.double().numpy(), weights, settings)
    pairs = list(zip(ours, theirs, strict=True))
    assert all(a.shape == b.shape and np.abs(b).max() > 0.1 for a, b in pairs)
    return max(np.abs(a.double().numpy() - b).max() for a, b in pairs)


@DTYPES
@pytest.mark.parametrize('name', NAMES)
def test_released_archs(name, dtype):
    assert difference(thin(name), dtype, SIZE) < BOUNDS[dtype]


@DTYPES
@pytest.mark.parametrize('name', ['tiny_s2l5', 'vanilla_base'])
def test_outputs_of_a_backbone(name, dtype):
    assert difference(thin(name), dtype, (33, 64), (0, 1, 2, 3)) < BOUNDS[dtype]


@DTYPES
@pytest.mark.parametrize('gate', ['none', 'act', 'linear'])
@pytest.mark.parametrize('scan', ['cross', 'unidirectional', 'bidirectional', 'cascade'])
def test_scans_and_gates(scan, gate, dtype):
    arch = thin('tiny_s1l8', depths=(1, 1), dims=(8, 16), scan=scan, gate=gate, d_state=2)
    assert difference(arch, dtype, (27, 22)) < BOUNDS[dtype]


@DTYPES
@pytest.mark.parametrize('out_act', [False, True])
@pytest.mark.parametrize('out_norm', ['ln', 'none', 'dwconv3', 'ln_dwconv3', 'softmax', 'sigmoid'])
def test_output_norms(out_norm, out_act, dtype):
    arch = thin('vanilla_tiny', depths=(1, 1), dims=(8, 16), out_norm=out_norm, out_act=out_act)
    assert difference(arch, dtype, (27, 22)) < BOUNDS[dtype]


@DTYPES
@pytest.mark.parametrize('act', ['silu', 'gelu', 'relu'])
@pytest.mark.parametrize('conv_kernel', [0, 3, 5])
def test_activations_and_convolutions(act, conv_kernel, dtype):
    changes = dict(act=act, mlp_act=act, conv_kernel=conv_kernel, conv_bias=conv_kernel == 5)
    arch = thin('tiny_s1l8', depths=(1, 1), dims=(8, 16), **changes)
    assert difference(arch, dtype, (27, 22)) < BOUNDS[dtype]


@DTYPES
@pytest.mark.parametrize('act', ['gelu', 'relu'])
def test_gated_mlps(act, dtype):
    arch = thin('tiny_s1l8', depths=(1, 1), dims=(8, 16), mlp_gate=True, mlp_act=act)
    assert difference(arch, dtype, (27, 22)) < BOUNDS[dtype]


@DTYPES
@pytest.mark.parametrize('stem', ['conv', 'patch'])
@pytest.mark.parametrize('downsample', ['conv', 'conv2x2', 'merging'])
@pytest.mark.parametrize('stem_norm', [True, False])
def test_stems_and_downsamplings(stem, downsample, stem_norm, dtype):
    changes = dict(stem=stem, downsample=downsample, stem_norm=stem_norm)
    arch = thin('tiny_s1l8', depths=(1, 1, 1), dims=(8, 12, 16), **changes)
    assert difference(arch, dtype, (45, 38), (0, 1, 2)) < BOUNDS[dtype]


@DTYPES
@pytest.mark.parametrize('side', [32, 24, 48])
def test_position_embedding(side, dtype):
    arch = thin('tiny_s1l8', depths=(1, 1), dims=(8, 16), pos_embed_size=side)
    assert difference(arch, dtype, (32, 32)) < BOUNDS[dtype]
    assert difference(arch, dtype, (27, 50)) < BOUNDS[dtype]


@DTYPES
@pytest.mark.parametrize('size', [(1, 1), (3, 50), (61, 2), (32, 32)], ids=str)
def test_sizes(size, dtype):
    assert difference(thin('tiny_s1l8'), dtype, size) < BOUNDS[dtype]
