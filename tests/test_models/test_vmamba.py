"""The backbone: what mmpretrain's tests ask of every backbone, sizes, and names of parameters."""

import math

import pytest
import torch
from mmengine.optim import build_optim_wrapper

from mmvmamba.models import VMamba
from mmvmamba.nn import VMambaNet

# Name: dims[0], depths, d_state, ssm_ratio, vanilla, parameters of the classifier.
RELEASED = {
    'tiny_s1l8': (96, (2, 2, 8, 2), 1, 1.0, False, 30_249_064),
    'tiny_s2l5': (96, (2, 2, 5, 2), 1, 2.0, False, 30_705_832),
    'small_s2l15': (96, (2, 2, 15, 2), 1, 2.0, False, 50_147_752),
    'small_s1l20': (96, (2, 2, 20, 2), 1, 1.0, False, 49_012_840),
    'base_s2l15': (128, (2, 2, 15, 2), 1, 2.0, False, 88_557_800),
    'base_s1l20': (128, (2, 2, 20, 2), 1, 1.0, False, 86_614_504),
    'vanilla_tiny': (96, (2, 2, 9, 2), 16, 2.0, True, 22_893_448),
    'vanilla_small': (96, (2, 2, 27, 2), 16, 2.0, True, 44_417_416),
    'vanilla_base': (128, (2, 2, 27, 2), 16, 2.0, True, 76_254_056),
}
DROP_PATH = {'tiny': 0.2, 'small': 0.3, 'base': 0.6, 'small_s1l20': 0.3, 'base_s1l20': 0.5}
THIN = dict(dims=(8, 16, 24, 32), depths=(1, 1, 2, 1))
LAYERED = dict(dims=(8, 16, 24, 32), depths=(2, 1, 3, 1))
THIN_VANILLA = dict(
    THIN,
    d_state=4,
    ssm_ratio=2.0,
    gate='act',
    conv_bias=True,
    mlp_ratio=0.0,
    stem='patch',
    downsample='merging',
)


def norm_shapes(name, dim):
    return {f'{name}.weight': (dim,), f'{name}.bias': (dim,)}


def stem_shapes(dim, vanilla):
    if vanilla:
        shapes = {'patch_embed.0.weight': (dim, 3, 4, 4), 'patch_embed.0.bias': (dim,)}
        return shapes | norm_shapes('patch_embed.2', dim)
    half = dim // 2
    return {
        'patch_embed.0.weight': (half, 3, 3, 3),
        'patch_embed.0.bias': (half,),
        **norm_shapes('patch_embed.2', half),
        'patch_embed.5.weight': (dim, half, 3, 3),
        'patch_embed.5.bias': (dim,),
        **norm_shapes('patch_embed.7', dim),
    }


def block_shapes(name, dim, d_state, ratio, vanilla):
    inner, rank = int(ratio * dim), math.ceil(dim / 16)
    shapes = {
        **norm_shapes(f'{name}.norm', dim),
        f'{name}.op.x_proj_weight': (4, rank + 2 * d_state, inner),
        f'{name}.op.A_logs': (4 * inner, d_state),
        f'{name}.op.Ds': (4 * inner,),
        f'{name}.op.dt_projs_weight': (4, inner, rank),
        f'{name}.op.dt_projs_bias': (4, inner),
        **norm_shapes(f'{name}.op.out_norm', inner),
        f'{name}.op.in_proj.weight': (2 * inner if vanilla else inner, dim),
        f'{name}.op.conv2d.weight': (inner, 1, 3, 3),
        f'{name}.op.out_proj.weight': (dim, inner),
    }
    if vanilla:
        return shapes | {f'{name}.op.conv2d.bias': (inner,)}
    return shapes | {
        **norm_shapes(f'{name}.norm2', dim),
        f'{name}.mlp.fc1.weight': (4 * dim, dim),
        f'{name}.mlp.fc1.bias': (4 * dim,),
        f'{name}.mlp.fc2.weight': (dim, 4 * dim),
        f'{name}.mlp.fc2.bias': (dim,),
    }


def downsample_shapes(name, dim, vanilla):
    if vanilla:
        return norm_shapes(f'{name}.norm', 4 * dim) | {
            f'{name}.reduction.weight': (2 * dim, 4 * dim)
        }
    shapes = {f'{name}.1.weight': (2 * dim, dim, 3, 3), f'{name}.1.bias': (2 * dim,)}
    return shapes | norm_shapes(f'{name}.3', 2 * dim)


def expected_shapes(dim, depths, d_state, ratio, vanilla):
    shapes = stem_shapes(dim, vanilla)
    dims = [dim * 2**i for i in range(4)]
    for i, depth in enumerate(depths):
        for j in range(depth):
            name = f'layers.{i}.blocks.{j}'
            shapes |= block_shapes(name, dims[i], d_state, ratio, vanilla)
        if i < 3:
            shapes |= downsample_shapes(f'layers.{i}.downsample', dims[i], vanilla)
    shapes |= norm_shapes('classifier.norm', dims[3])
    return shapes | {'classifier.head.weight': (1000, dims[3]), 'classifier.head.bias': (1000,)}


@pytest.mark.parametrize('arch', RELEASED)
def test_released_classifiers(arch):
    *structure, parameters = RELEASED[arch]
    with torch.device('meta'):
        model = VMambaNet(arch)
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert shapes == expected_shapes(*structure)
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize('arch', ['tiny_s1l8', 'base_s2l15', 'vanilla_tiny'])
def test_backbone_has_output_norms_instead_of_a_classifier(arch):
    *structure, _ = RELEASED[arch]
    with torch.device('meta'):
        model = VMamba(arch)
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    expected = {k: v for k, v in expected_shapes(*structure).items() if 'classifier' not in k}
    for i in range(4):
        expected |= norm_shapes(f'outnorm{i}', structure[0] * 2**i)
    assert shapes == expected


@pytest.mark.parametrize(
    ('name', 'full'), [('tiny', 'tiny_s1l8'), ('small', 'small_s2l15'), ('base', 'base_s2l15')]
)
def test_short_names_are_the_papers(name, full):
    with torch.device('meta'):
        assert VMamba(name).settings == VMamba(full).settings


@pytest.mark.parametrize(('arch', 'rate'), DROP_PATH.items())
def test_drop_path_grows_linearly_to_the_rate(arch, rate):
    with torch.device('meta'):
        model = VMamba(arch)
    depth = sum(model.settings.depths)
    blocks = [block for stage in model.layers for block in stage.blocks]
    rates = [block.drop_path.p for block in blocks]
    assert rates == pytest.approx([rate * i / (depth - 1) for i in range(depth)], abs=1e-6)


@pytest.mark.parametrize(
    ('arch', 'error'),
    [('huge', ValueError), (dict(dim=3), ValueError), (3, TypeError), (None, TypeError)],
)
def test_bad_arch(arch, error):
    with pytest.raises(error, match='arch'):
        VMamba(arch)


def test_bad_arch_lists_the_names():
    with pytest.raises(ValueError, match='vanilla_tiny.*hugo'):
        VMamba('hugo')


@pytest.mark.parametrize(
    ('arguments', 'error', 'words'),
    [
        (dict(out_indices=(4,)), ValueError, r'out_indices.*-4, 3.*\(4,\)'),
        (dict(out_indices=()), ValueError, 'out_indices'),
        (dict(out_indices=1), TypeError, 'out_indices'),
        (dict(out_indices=None), TypeError, 'out_indices'),
        (dict(frozen_stages=5), ValueError, r'frozen_stages.*5'),
        (dict(drop_path_rate=1.5), ValueError, r'drop_path_rate.*1.5'),
        (dict(scan='zigzag'), ValueError, 'scan.*zigzag'),
        (dict(color='red'), ValueError, 'color'),
        (dict(depths=(1, 0, 1, 1)), ValueError, 'depths'),
        (dict(out_indices=(0, 0)), ValueError, 'out_indices'),
        (dict(out_indices=(3, -1)), ValueError, 'out_indices'),
        (
            dict(pretrained='x.pth'),
            ValueError,
            r"no argument pretrained; use init_cfg=dict\(type='Pretrained', checkpoint=FILE\)",
        ),
        (
            dict(norm_eval=True),
            ValueError,
            'no argument norm_eval; leave it out: .* LayerNorm.* frozen stages stay in eval mode',
        ),
    ],
)
def test_bad_arguments(arguments, error, words):
    with pytest.raises(error, match=words):
        VMamba(THIN, **arguments)


@pytest.mark.parametrize('shape', [(3, 32, 32), (2, 4, 32, 32), (1, 1, 3, 32, 32)])
def test_bad_images(shape):
    with pytest.raises(ValueError, match=r'\(N, 3, H, W\)'):
        VMamba(THIN)(torch.randn(shape))


def test_no_tensor():
    with pytest.raises(TypeError, match='list'):
        VMamba(THIN)([1, 2])


@pytest.mark.parametrize('arch', [THIN, THIN_VANILLA], ids=['conv', 'vanilla'])
@pytest.mark.parametrize('size', [(64, 64), (32, 96), (61, 87)])
def test_outputs(arch, size):
    model = VMamba(arch).eval()
    with torch.no_grad():
        outs = model(torch.randn(2, 3, *size))
    assert len(outs) == 4
    # The patch stem gives floor sizes, merging pads; convolutions give ceil sizes.
    sizes = [-(-n // 4) for n in size] if arch is THIN else [n // 4 for n in size]
    for out, dim in zip(outs, arch['dims'], strict=True):
        assert out.shape == (2, dim, *sizes)
        assert torch.isfinite(out).all()
        sizes = [-(-n // 2) for n in sizes]


def test_released_model_at_odd_size():
    model = VMamba('tiny').eval()
    with torch.no_grad():
        outs = model(torch.randn(1, 3, 225, 391))
    assert [tuple(o.shape[1:]) for o in outs] == [
        (96, 57, 98),
        (192, 29, 49),
        (384, 15, 25),
        (768, 8, 13),
    ]


@pytest.mark.parametrize(
    ('indices', 'dims'), [((3,), [32]), ((-1,), [32]), ((1, 3), [16, 32]), ((0,), [8])]
)
def test_out_indices(indices, dims):
    torch.manual_seed(0)
    model = VMamba(THIN, out_indices=indices).eval()
    outs = model(torch.randn(1, 3, 48, 48))
    assert [o.shape[1] for o in outs] == dims
    norms = {k.split('.')[0] for k in model.state_dict() if k.startswith('outnorm')}
    assert norms == {f'outnorm{i % 4}' for i in indices}


@pytest.mark.parametrize('indices', [(2, 0), (-1, 1, 0), (3, 2, 1, 0)])
def test_maps_have_the_order_of_out_indices(indices):
    model = VMamba(THIN).eval()
    other = VMamba(THIN, out_indices=indices).eval()
    state = model.state_dict()
    other.load_state_dict({key: state[key] for key in other.state_dict()})
    images = torch.randn(1, 3, 48, 32)
    with torch.no_grad():
        expected, maps = model(images), other(images)
    assert len(maps) == len(indices)
    for index, out in zip(indices, maps, strict=True):
        assert torch.equal(out, expected[index])


@pytest.mark.parametrize('mode', [True, False])
def test_train_and_eval(mode):
    model = VMamba(THIN).train(not mode)
    assert model.train(mode) is model
    assert all(module.training is mode for module in model.modules())


@pytest.mark.parametrize('frozen', [-1, 0, 1, 3, 4])
def test_frozen_stages(frozen):
    model = VMamba(THIN, frozen_stages=frozen)
    model.train()
    loss = sum(out.mean() for out in model(torch.randn(1, 3, 32, 32)))
    assert loss.requires_grad is (frozen < 4)
    if loss.requires_grad:
        loss.backward()
    parts = {'patch_embed': frozen >= 0}
    parts |= {f'layers.{i}.': i < frozen for i in range(4)}
    parts |= {f'outnorm{i}.': i < frozen for i in range(4)}
    for start, is_frozen in parts.items():
        named = [(k, p) for k, p in model.named_parameters() if k.startswith(start)]
        assert named
        assert all(p.requires_grad is not is_frozen for _, p in named), start
        assert all((p.grad is None) is is_frozen for _, p in named), start
    assert model.patch_embed.training is (frozen < 0)
    assert [stage.training for stage in model.layers] == [i >= frozen for i in range(4)]


@pytest.mark.parametrize('arch', [THIN, THIN_VANILLA], ids=['conv', 'vanilla'])
def test_checkpointing_gives_equal_gradients(arch):
    images = torch.randn(2, 3, 40, 56)
    grads = []
    for with_cp in (False, True):
        torch.manual_seed(3)
        model = VMamba(arch, with_cp=with_cp, drop_path_rate=0.3).train()
        torch.manual_seed(4)  # the same paths are dropped, in the recomputation as well
        sum(out.square().mean() for out in model(images)).backward()
        grads.append({k: p.grad for k, p in model.named_parameters()})
    assert grads[0].keys() == grads[1].keys()
    for key, grad in grads[0].items():
        torch.testing.assert_close(grads[1][key], grad, rtol=0, atol=0, msg=key)


def gradients(images, **settings):
    torch.manual_seed(0)
    model = VMamba(THIN, drop_path_rate=0.0, **settings).train()
    sum(out.square().mean() for out in model(images)).backward()
    return model, {k: p.grad for k, p in model.named_parameters() if p.grad is not None}


def test_checkpointing_with_frozen_stages():
    images = torch.randn(2, 3, 32, 32)
    _, expected = gradients(images)
    model, found = gradients(images, with_cp=True, frozen_stages=2)
    kept = ('layers.2.', 'layers.3.', 'outnorm2.', 'outnorm3.')
    assert found.keys() == {name for name in expected if name.startswith(kept)}
    for name, grad in found.items():
        assert torch.equal(grad, expected[name]), name
    assert [stage.training for stage in model.layers] == [False, False, True, True]


def test_accumulation_steps_like_the_whole_batch():
    """Two halves and one step, against the whole in one; nothing in the model mixes images."""
    x = torch.randn(4, 3, 32, 32)
    start, *models = (gradients(x)[0] for _ in range(3))
    for model, parts in zip(models, ([x], [x[:2], x[2:]]), strict=True):
        cfg = dict(
            optimizer=dict(type='SGD', lr=0.1),
            accumulative_counts=len(parts),
            clip_grad=dict(max_norm=1.0),
        )
        model.zero_grad()
        wrapper = build_optim_wrapper(model, cfg)
        for part in parts:
            wrapper.update_params(model(part)[-1].square().mean())
    whole, halves, start = (dict(m.named_parameters()) for m in (*models, start))
    for name, value in whole.items():
        torch.testing.assert_close(value, halves[name], rtol=1e-4, atol=1e-6, msg=name)
    assert any(not torch.equal(value, start[name]) for name, value in whole.items())


@pytest.mark.parametrize(
    ('name', 'depth'),
    [
        ('patch_embed.0.weight', 0),
        ('layers.0.blocks.0.norm.weight', 1),
        ('layers.0.blocks.1.op.Ds', 2),
        ('layers.0.downsample.1.weight', 2),
        ('layers.1.blocks.0.norm.weight', 3),
        ('layers.2.blocks.2.norm.weight', 6),
        ('layers.3.blocks.0.norm2.bias', 7),
        ('outnorm3.weight', 8),
    ],
)
def test_layer_depth(name, depth):
    backbone = VMamba(LAYERED, out_indices=(3,))
    assert backbone.get_layer_depth(name) == (depth, 9)
    assert backbone.get_layer_depth(f'backbone.{name}', 'backbone.') == (depth, 9)


@pytest.mark.parametrize('name', ['neck.conv.weight', 'head.fc.weight', 'layers.0.blocks.0.op.Ds'])
def test_layer_depth_outside_the_backbone(name):
    """The contract of mmpretrain's backbones: what follows the backbone is in the last layer."""
    assert VMamba(LAYERED).get_layer_depth(name, 'backbone.') == (8, 9)


def test_layer_depth_of_the_head_of_a_classifier():
    assert VMamba(LAYERED).get_layer_depth('head.fc.weight') == (8, 9)


def test_every_parameter_gets_a_gradient():
    model = VMamba(THIN).train()
    sum(out.square().mean() for out in model(torch.randn(1, 3, 32, 32))).backward()
    assert [k for k, p in model.named_parameters() if p.grad is None] == []


def test_output_independent_of_the_batch():
    torch.manual_seed(0)
    model = VMamba(THIN).eval()
    images = torch.randn(3, 3, 40, 40)
    with torch.no_grad():
        together = model(images)
        alone = [model(images[i : i + 1]) for i in range(3)]
    for stage, out in enumerate(together):
        single = torch.cat([outs[stage] for outs in alone])
        torch.testing.assert_close(out, single, rtol=1e-4, atol=1e-5)


def test_channels_last_images_and_views():
    model = VMamba(THIN).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(images)
        for same in (
            images.contiguous(memory_format=torch.channels_last),
            images.repeat(2, 1, 1, 1)[:1],
        ):
            for a, b in zip(model(same), expected, strict=True):
                torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    'memory_format', [torch.contiguous_format, torch.channels_last], ids=['nchw', 'nhwc']
)
def test_outputs_are_contiguous(memory_format):
    images = torch.randn(2, 3, 65, 97).contiguous(memory_format=memory_format)
    assert all(out.is_contiguous() for out in VMamba(THIN)(images))


def test_roi_align_reads_the_outputs_right():
    ops = pytest.importorskip('mmcv.ops')
    out = VMamba(THIN)(torch.randn(2, 3, 64, 64))[0]
    # All of the second image, one bin, one sample in its middle: the mean of four pixels there.
    roi = torch.tensor([[1.0, 0.0, 0.0, 64.0, 64.0]])
    value = ops.roi_align(out, roi, 1, 0.25, 1, 'avg', True)
    torch.testing.assert_close(value[0, :, 0, 0], out[1, :, 7:9, 7:9].mean((1, 2)))


def test_classifier_scores():
    model = VMambaNet(THIN, num_classes=7).eval()
    assert model(torch.randn(2, 3, 50, 34)).shape == (2, 7)
