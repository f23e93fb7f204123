"""convert_state_dict: every spelling that was released gives the same network."""

import re

import pytest
import torch

from mmvmamba.checkpoint.keys import resize_pos_embed
from mmvmamba.nn import VMambaNet, convert_state_dict

from ..test_nn import vmamba_numpy

THIN = dict(dims=(8, 16, 24, 32), depths=(1, 1, 2, 1))
VANILLA = dict(
    THIN, d_state=2, gate='act', conv_bias=True, mlp_ratio=0.0, stem='patch', downsample='merging'
)


def respell(state, *renames):
    result = {}
    for key, value in state.items():
        for pattern, replacement in renames:
            key = re.sub(pattern, replacement, key)
        result[key] = value
    return result


def january(state):
    return respell(
        state,
        (r'^patch_embed\.0\.', 'patch_embed.proj.'),
        (r'^patch_embed\.2\.', 'patch_embed.norm.'),
        (r'(blocks\.\d+)\.norm\.', r'\1.ln_1.'),
        (r'(blocks\.\d+)\.op\.', r'\1.self_attention.'),
        (r'^classifier\.norm\.', 'norm.'),
        (r'^classifier\.head\.', 'head.'),
    )


def one_file(state):
    state = respell(
        state,
        (r'\.op\.x_proj_weight$', '.op.x_proj.weight'),
        (r'\.op\.dt_projs_weight$', '.op.dt_projs.weight'),
        (r'(downsample)\.norm\.', r'\1.1.'),
        (r'(downsample)\.reduction\.', r'\1.2.'),
    )
    flat = ('.op.x_proj.weight', '.op.dt_projs.weight')
    return {k: v.flatten(0, 1) if k.endswith(flat) else v for k, v in state.items()}


def convolutions(state):
    linear = re.compile(r'\.(in_proj|out_proj|fc1|fc2|reduction|head)\.weight$')
    return {k: v[..., None, None] if linear.search(k) else v for k, v in state.items()}


def with_prefix(prefix):
    return lambda state: {prefix + k: v for k, v in state.items()}


def segmentor(state):
    return {**with_prefix('backbone.')(state), 'decode_head.conv.weight': torch.zeros(1)}


SPELLINGS = {
    'todays': dict,
    'january': january,
    'one file': one_file,
    'one file in january names': lambda state: january(one_file(state)),
    '1x1 convolutions': convolutions,
    'distributed': with_prefix('module.'),
    'segmentor': segmentor,
    'distributed segmentor': lambda state: with_prefix('module.')(segmentor(state)),
}


@pytest.mark.parametrize('spelling', list(SPELLINGS))
@pytest.mark.parametrize('arch', [THIN, VANILLA], ids=['conv', 'vanilla'])
def test_every_spelling_gives_the_same_network(arch, spelling):
    if arch is THIN and 'january' in spelling:
        pytest.skip('the January names are those of the vanilla models')
    torch.manual_seed(0)
    source = VMambaNet(arch, num_classes=5).eval()
    with torch.no_grad():
        for value in source.parameters():
            value.add_(torch.randn_like(value) * 0.1)
    state = source.state_dict()
    spelled = SPELLINGS[spelling](state)
    converted = convert_state_dict(spelled)
    assert list(converted) == list(state)
    for key, value in state.items():
        assert torch.equal(converted[key], value), key
    torch.manual_seed(1)
    target = VMambaNet(arch, num_classes=5).eval()
    target.load_state_dict(converted)
    image = torch.randn(1, 3, 33, 40)
    with torch.no_grad():
        assert torch.equal(target(image), source(image))


def test_the_given_dict_stays_as_it_is():
    state = january(VMambaNet(VANILLA, num_classes=5).state_dict())
    keys = list(state)
    convert_state_dict(state)
    assert list(state) == keys


def test_depthwise_kernels_are_left_alone():
    state = VMambaNet(THIN, num_classes=5).state_dict()
    key = 'layers.0.blocks.0.op.conv2d.weight'
    assert convert_state_dict(state)[key].shape == (8, 1, 3, 3)


def test_position_embedding_is_resized_bicubically():
    embedding = torch.randn(1, 2, 8, 8, dtype=torch.float64)
    assert resize_pos_embed(embedding, (8, 8)) is embedding
    for size in ((4, 16), (11, 5)):
        want = torch.from_numpy(vmamba_numpy.resize(embedding.numpy(), size))
        torch.testing.assert_close(resize_pos_embed(embedding, size), want)
