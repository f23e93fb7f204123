"""The authors' arguments and what they build, on thin networks."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import DefaultScope

from mmvmamba.models import MM_VSSM, VMamba
from mmvmamba.models.mm_vssm import scan_settings
from mmvmamba.nn import ARCHS
from mmvmamba.registry import MODELS

THIN = dict(dims=(8, 16, 24, 32), depths=(1, 1, 2, 1))
#: How the authors' configs name the released models.
RELEASED = dict(
    ssm_d_state=1,
    ssm_dt_rank='auto',
    ssm_conv=3,
    ssm_conv_bias=False,
    forward_type='v05_noz',
    mlp_ratio=4.0,
    downsample_version='v3',
    patchembed_version='v2',
    norm_layer='ln2d',
)
VANILLA = dict(
    ssm_d_state=16,
    ssm_ratio=2.0,
    forward_type='v0',
    mlp_ratio=0.0,
    downsample_version='v1',
    patchembed_version='v1',
)
#: What a config that overrides Swin's backbone leaves in the dict.
SWIN = dict(
    embed_dims=96,
    num_heads=[3, 6, 12, 24],
    window_size=7,
    qkv_bias=True,
    convert_weights=True,
    init_cfg=dict(type='Pretrained', checkpoint='nowhere/swin.pth'),
)


@pytest.mark.parametrize(
    ('arch', 'given'),
    [
        ('tiny_s1l8', dict(RELEASED, dims=96, depths=(2, 2, 8, 2), ssm_ratio=1.0)),
        ('tiny_s2l5', dict(RELEASED, dims=96, depths=(2, 2, 5, 2), ssm_ratio=2.0)),
        ('small_s2l15', dict(RELEASED, dims=96, depths=(2, 2, 15, 2))),
        ('small_s1l20', dict(RELEASED, dims=96, depths=(2, 2, 20, 2), ssm_ratio=1.0)),
        ('base_s2l15', dict(RELEASED, dims=128, depths=(2, 2, 15, 2))),
        ('base_s1l20', dict(RELEASED, dims=128, depths=(2, 2, 20, 2), ssm_ratio=1.0)),
        ('vanilla_tiny', dict(VANILLA, dims=96, depths=(2, 2, 9, 2))),
        ('vanilla_small', dict(VANILLA, dims=96, depths=(2, 2, 27, 2))),
        ('vanilla_base', dict(VANILLA, dims=[128, 256, 512, 1024], depths=(2, 2, 27, 2))),
    ],
)
def test_released_models(arch, given):
    with torch.device('meta'):
        model = MM_VSSM(**given, drop_path_rate=ARCHS[arch].drop_path_rate, imgsize=224)
    assert model.settings == ARCHS[arch]


def test_defaults_are_the_authors():
    with torch.device('meta'):
        model = MM_VSSM()
    settings = model.settings
    assert settings.depths == (2, 2, 9, 2)
    assert (settings.d_state, settings.ssm_ratio, settings.gate) == (16, 2.0, 'act')
    assert (settings.stem, settings.downsample, settings.conv_bias) == ('patch', 'conv2x2', True)
    assert settings.drop_path_rate == 0.1
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert shapes['patch_embed.0.weight'] == (96, 3, 4, 4)
    assert shapes['layers.0.downsample.1.weight'] == (192, 96, 2, 2)
    assert shapes['layers.2.downsample.3.weight'] == (768,)


@pytest.mark.parametrize(
    ('forward_type', 'scan', 'gate', 'out_norm', 'out_act'),
    [
        ('v05_noz', 'cross', 'none', 'ln', False),
        ('v01', 'cross', 'act', 'ln', False),
        ('v02_no32', 'cross', 'act', 'ln', False),
        ('v3_noz_no32', 'cross', 'none', 'ln', False),
        ('v2', 'cross', 'act', 'ln', False),
        ('v04_nozact', 'cross', 'linear', 'ln', False),
        ('v03_onnone_nozact_noz_oact', 'cross', 'none', 'none', True),
        ('v05_ondwconv3_noz', 'cross', 'none', 'dwconv3', False),
        ('v05_oncnorm_oact_no32', 'cross', 'act', 'ln_dwconv3', True),
        ('v05_onsoftmax', 'cross', 'act', 'softmax', False),
        ('v05_onsigmoid_noz', 'cross', 'none', 'sigmoid', False),
        ('v051d_noz', 'unidirectional', 'none', 'ln', False),
        ('v052d', 'bidirectional', 'act', 'ln', False),
        ('v052dc_onnone_noz', 'cascade', 'none', 'none', False),
    ],
)
def test_forward_type(forward_type, scan, gate, out_norm, out_act):
    expected = dict(scan=scan, gate=gate, out_norm=out_norm, out_act=out_act)
    assert scan_settings(forward_type, 'ln2d') == expected


@pytest.mark.parametrize('forward_type', ['v0', 'v0seq'])
def test_vanilla_block_takes_no_settings(forward_type):
    given = dict(ssm_act_layer='relu', ssm_conv=5, ssm_conv_bias=False, ssm_init='v2')
    settings = MM_VSSM(**THIN, forward_type=forward_type, **given).settings
    assert settings == MM_VSSM(**THIN, forward_type='v05').settings


@pytest.mark.parametrize(
    ('forward_type', 'words'),
    [
        ('xv1a', 'cannot run the xv family'),
        ('xv3a_onnone_act_mul', 'cannot run the xv family'),
        ('v052d3', 'for debugging'),
        ('m0_noz', 'Mamba-2'),
        ('v0_noz', 'must be one of'),
        ('v05_noz_nozact', 'must be one of'),
        ('v05_nozz', "but got 'v05_nozz'"),
        ('v31d', 'must be one of'),
        ('', 'must be one of'),
    ],
)
def test_forward_type_that_the_authors_cannot_run(forward_type, words):
    with pytest.raises(ValueError, match=words):
        MM_VSSM(**THIN, forward_type=forward_type)


@pytest.mark.parametrize(
    ('given', 'error', 'words'),
    [
        (dict(norm_layer='gn'), ValueError, "norm_layer must be one of .*'ln2d'.* 'gn'"),
        (dict(forward_type='v0', norm_layer='ln2d'), ValueError, "needs norm_layer 'ln'"),
        (dict(forward_type=5), TypeError, 'forward_type must be a str'),
        (dict(downsample_version='none'), ValueError, "downsample_version must .* 'none'"),
        (dict(patchembed_version='v3'), ValueError, "patchembed_version must .* 'v3'"),
        (dict(ssm_init='v3'), ValueError, "ssm_init must .* 'v3'"),
        (dict(ssm_act_layer='tanh'), ValueError, "ssm_act_layer must .* 'tanh'"),
        (dict(ssm_dt_rank='full'), TypeError, "ssm_dt_rank must be of type int, but got 'full'"),
        (dict(ssm_drop_rate=1.0), ValueError, 'ssm_drop_rate must be in'),
        (dict(depths=4), TypeError, 'depths must be a sequence of int, but got 4'),
        (dict(dims=2.5), TypeError, 'dims must be a sequence of int, but got 2.5'),
        (dict(ssm_ratio='2'), TypeError, "ssm_ratio must be of type float, but got '2'"),
        (dict(mlp_ratio=None), TypeError, 'mlp_ratio must be of type float, but got None'),
        (dict(ssm_conv='3'), TypeError, "ssm_conv must be of type int, but got '3'"),
        (dict(ssm_d_state=1.5), TypeError, 'ssm_d_state must be of type int'),
        (dict(gmlp=1), TypeError, 'gmlp must be of type bool, but got 1'),
        (dict(patch_norm=1), TypeError, 'patch_norm must be of type bool'),
        (dict(in_chans=0), ValueError, 'in_chans must be at least 1, but got 0'),
    ],
)
def test_bad_arguments(given, error, words):
    with pytest.raises(error, match=words):
        MM_VSSM(**(THIN | given))


OTHERS = dict(
    dropout=(
        dict(ssm_drop_rate=0.1, mlp_drop_rate=0.2),
        dict(ssm_drop_rate=0.1, mlp_drop_rate=0.2),
    ),
    gmlp=(dict(gmlp=True), dict(mlp_gate=True)),
    no_ssm=(dict(ssm_ratio=0.0), dict(ssm_ratio=0)),
    no_conv=(dict(ssm_conv=-1), dict(conv_kernel=0)),
    no_stem_norm=(dict(patch_norm=False), dict(stem_norm=False)),
    sigmoid=(
        dict(ssm_act_layer='SiGmoid', mlp_act_layer='relu'),
        dict(act='sigmoid', mlp_act='relu'),
    ),
    init=(dict(ssm_init='v1'), dict(ssm_init='random')),
    rank=(dict(ssm_dt_rank=3), dict(dt_rank=3)),
    norm=(dict(norm_layer='BN'), dict(norm='bn')),
)


def test_position_embedding_is_held_and_not_added():
    """As in the authors' backbone; their classifier adds it, as VMamba does."""
    arguments = dict(patchembed_version='v2', downsample_version='v3')
    model = MM_VSSM(**THIN, **arguments, posembed=True, imgsize=64).eval()
    assert model.settings.pos_embed_size == 64
    assert model.pos_embed.shape == (1, THIN['dims'][0], 16, 16)
    state = model.state_dict() | {'pos_embed': torch.randn(1, THIN['dims'][0], 8, 8)}
    model.load_state_dict(state)
    expected = F.interpolate(state['pos_embed'], size=(16, 16), mode='bicubic')
    torch.testing.assert_close(model.pos_embed.detach(), expected)
    del state['pos_embed']
    plain = MM_VSSM(**THIN, **arguments).eval()
    plain.load_state_dict(state)
    adding = VMamba(model.settings).eval()
    adding.load_state_dict(model.state_dict())
    image = torch.randn(1, 3, 57, 40)
    for held, without, added in zip(model(image), plain(image), adding(image), strict=True):
        assert torch.equal(held, without)
        assert not torch.allclose(held, added)
    sum(out.sum() for out in model.train()(image)).backward()
    assert [
        name for name, p in model.named_parameters() if p.requires_grad and p.grad is None
    ] == []


@pytest.mark.parametrize('name', OTHERS)
def test_other_arguments_build_the_equal_model(name):
    theirs, ours = OTHERS[name]
    model = MM_VSSM(**THIN, **theirs, num_classes=7, in_chans=4, use_checkpoint=True)
    base = dict(THIN, d_state=16, ssm_ratio=2.0, gate='act', conv_bias=True, stem='patch')
    base |= dict(downsample='conv2x2', drop_path_rate=0.1) | ours
    other = VMamba(base, in_channels=4, with_cp=True)
    assert model.settings == other.settings
    assert model.with_cp
    other.load_state_dict(model.state_dict())
    image = torch.randn(2, 4, 64, 64)
    model.eval()
    other.eval()
    for a, b in zip(model(image), other(image), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ('stem', 'downsample'), [('v1', 'v1'), ('v1', 'v2'), ('v2', 'v3')], ids=str
)
def test_batch_norm(stem, downsample):
    given = dict(THIN, patchembed_version=stem, downsample_version=downsample, norm_layer='bn')
    model = MM_VSSM(**given, mlp_ratio=2.0, forward_type='v05')
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    per_stem = 2 if stem == 'v2' else 1
    assert len(norms) == per_stem + 2 * 5 + 3 + 4
    # A norm after the scan stays a LayerNorm, as in the authors' code.
    assert isinstance(model.layers[0].blocks[0].op.out_norm, torch.nn.LayerNorm)
    outs = model(torch.randn(2, 3, 64, 64))
    for i, out in enumerate(outs):
        assert out.shape == (2, THIN['dims'][i], 16 >> i, 16 >> i)
        torch.testing.assert_close(
            out.mean((0, 2, 3)), torch.zeros(out.shape[1]), atol=1e-5, rtol=0
        )
    sum(out.square().mean() for out in outs).backward()
    assert all(n.weight.grad is not None for n in norms)
    converted = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model).eval()
    assert converted(torch.randn(1, 3, 64, 64))[0].shape == (1, 8, 16, 16)


def test_swin_keys_are_ignored_with_one_warning():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        model = MM_VSSM(**THIN, **SWIN, pretrained='')
    texts = [str(w.message) for w in caught if 'ignores' in str(w.message)]
    assert len(texts) == 1
    assert all(key in texts[0] for key in SWIN)
    assert 'pretrained=' in texts[0]
    model.init_weights()  # loads nothing
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        MM_VSSM(**THIN)


@pytest.mark.parametrize(
    ('given', 'expected'),
    [
        (dict(), False),
        (dict(with_cp=True), True),
        (dict(use_checkpoint=True), True),
        (dict(with_cp=False), False),
        (dict(use_checkpoint=False), False),
        (dict(with_cp=True, use_checkpoint=True), True),
        (dict(with_cp=False, use_checkpoint=False), False),
    ],
)
def test_both_names_of_checkpointing(given, expected):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        model = MM_VSSM(**THIN, **given).train()
    assert model.with_cp is expected
    calls = []
    model.layers[2].blocks[1].register_forward_pre_hook(lambda *args: calls.append(1))
    model(torch.randn(1, 3, 64, 64))[-1].sum().backward()
    assert len(calls) == (2 if expected else 1)


@pytest.mark.parametrize('with_cp', [True, False])
def test_names_of_checkpointing_must_agree(with_cp):
    with pytest.raises(ValueError, match=f'must be equal, but got {with_cp} .* {not with_cp}$'):
        MM_VSSM(**THIN, with_cp=with_cp, use_checkpoint=not with_cp)


def test_pretrained(tmp_path):
    torch.manual_seed(1)
    state = VMamba(MM_VSSM(**THIN).settings).state_dict()
    torch.save({'model': state}, tmp_path / 'file.pth')
    model = MM_VSSM(**THIN, pretrained=str(tmp_path / 'file.pth'))
    model.init_weights()
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key])
    with pytest.raises(FileNotFoundError, match='nowhere.pth'):
        MM_VSSM(**THIN, pretrained='nowhere.pth').init_weights()


@pytest.mark.parametrize('scope', ['mmengine', 'mmdet', 'mmseg', 'mmvmamba'])
def test_builds_without_a_scope(scope):
    if scope in ('mmdet', 'mmseg'):
        pytest.importorskip(scope)
    backbone = Config(dict(backbone=dict(type='MM_VSSM', **THIN))).backbone
    registry = MODELS if scope == 'mmvmamba' else MMENGINE_MODELS
    with DefaultScope.overwrite_default_scope(scope):
        assert type(registry.build(backbone)) is MM_VSSM
