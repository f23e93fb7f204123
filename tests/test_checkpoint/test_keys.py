"""Every naming scheme that was released gives the same network."""

import re

import pytest
import torch

from mmvmamba.checkpoint.keys import (
    adapt_channels,
    last_stage,
    rename_tensors,
    resize_pos_embed,
    split_backbone,
    split_state_dict,
    to_image_classifier,
)
from mmvmamba.nn import VMambaNet, convert_state_dict

from ..naming_schemes import convolution_weights, january_names, one_file_names
from ..test_nn import vmamba_numpy

THIN = dict(dims=(8, 16, 24, 32), depths=(1, 1, 2, 1))
VANILLA = dict(
    THIN, d_state=2, gate='act', conv_bias=True, mlp_ratio=0.0, stem='patch', downsample='merging'
)


def one_file_names_but_biases(state):
    """Rename and reshape tensors as in the one-file version, except for the time steps' biases."""
    pairs = zip(state.items(), one_file_names(state).items(), strict=True)
    return dict(old if old[0].endswith('dt_projs_bias') else new for old, new in pairs)


def with_prefix(prefix):
    return lambda state: {prefix + k: v for k, v in state.items()}


def segmentor(state):
    return {**with_prefix('backbone.')(state), 'decode_head.conv.weight': torch.zeros(1)}


SCHEMES = {
    'current': dict,
    'january': january_names,
    'one file': one_file_names,
    'one file but biases': one_file_names_but_biases,
    'one file in january names': lambda state: january_names(one_file_names_but_biases(state)),
    '1x1 convolutions': convolution_weights,
    'distributed': with_prefix('module.'),
    'segmentor': segmentor,
    'distributed segmentor': lambda state: with_prefix('module.')(segmentor(state)),
}


@pytest.mark.parametrize('scheme', list(SCHEMES))
@pytest.mark.parametrize('arch', [THIN, VANILLA], ids=['conv', 'vanilla'])
def test_every_scheme_gives_the_same_network(arch, scheme):
    if arch is THIN and 'january' in scheme:
        pytest.skip('the January names are those of the vanilla models')
    torch.manual_seed(0)
    source = VMambaNet(arch, num_classes=5).eval()
    with torch.no_grad():
        for value in source.parameters():
            value.add_(torch.randn_like(value) * 0.1)
    state = source.state_dict()
    converted = convert_state_dict(SCHEMES[scheme](state))
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
    state = january_names(VMambaNet(VANILLA, num_classes=5).state_dict())
    keys = list(state)
    convert_state_dict(state)
    assert list(state) == keys


def test_depthwise_kernels_are_left_alone():
    state = VMambaNet(THIN, num_classes=5).state_dict()
    key = 'layers.0.blocks.0.op.conv2d.weight'
    assert convert_state_dict(state)[key].shape == (8, 1, 3, 3)


@pytest.mark.parametrize(
    ('name', 'shape'),
    [
        ('x_proj.weight', (6, 2)),
        ('x_proj.weight', (4, 0)),
        ('dt_projs.bias', (6,)),
        ('dt_projs.bias', (0,)),
        ('dt_projs.bias', ()),
        ('in_proj.weight', (0, 2, 1, 1)),
    ],
)
def test_shapes_that_are_not_those_of_a_scheme(name, shape):
    """They stay as they are, so that the comparison with the model names them."""
    value = torch.zeros(shape)
    (converted,) = rename_tensors({f'layers.0.blocks.0.op.{name}': value}).values()
    assert converted is value


def test_a_stage_of_a_hostile_name():
    assert last_stage({f'layers.{"9" * 5000}.a': torch.zeros(1), 'layers.2.a': torch.zeros(1)}) == 2


def test_position_embedding_is_resized_bicubically():
    embedding = torch.randn(1, 2, 8, 8, dtype=torch.float64)
    assert resize_pos_embed(embedding, (8, 8)) is embedding
    for size in ((4, 16), (11, 5)):
        want = torch.from_numpy(vmamba_numpy.resize(embedding.numpy(), size))
        torch.testing.assert_close(resize_pos_embed(embedding, size), want)


@pytest.mark.parametrize('prefix', ['', 'module.'])
def test_split_of_a_classifier_of_mmpretrain(prefix):
    """And the way there: its head is outside the backbone, its norm the last stage's."""
    state = VMambaNet(THIN, num_classes=5).state_dict()
    assert last_stage(state) == 3
    file = to_image_classifier(state, 3)
    assert {'backbone.outnorm3.weight', 'head.fc.bias'} < file.keys()
    assert not any('classifier' in key for key in file)
    file['data_preprocessor.mean'] = torch.zeros(3)
    inside, others = split_state_dict(with_prefix(prefix)(file))
    assert inside.keys() == state.keys()
    assert all(torch.equal(inside[key], value) for key, value in state.items())
    assert list(others) == ['data_preprocessor.mean']


HEAD_OF_MMPRETRAIN = {'head.fc.weight': torch.zeros(5, 32)}
WHOLE = 'layers.3.blocks.0.op.Ds'


@pytest.mark.parametrize(
    ('function', 'first', 'second', 'name'),
    [
        (split_backbone, 'a', 'module.a', 'a'),
        (split_backbone, 'module.backbone.a', 'backbone.a', 'backbone.a'),
        (split_state_dict, 'module.a', 'a', 'a'),
        (convert_state_dict, 'module.a', 'a', 'a'),
        (rename_tensors, 'head.weight', 'classifier.head.weight', 'classifier.head.weight'),
        (rename_tensors, 'classifier.norm.bias', 'norm.bias', 'classifier.norm.bias'),
        (rename_tensors, 'patch_embed.0.bias', 'patch_embed.proj.bias', 'patch_embed.0.bias'),
        (
            rename_tensors,
            'layers.0.blocks.1.self_attention.Ds',
            'layers.0.blocks.1.op.Ds',
            'layers.0.blocks.1.op.Ds',
        ),
        (
            rename_tensors,
            'layers.1.downsample.2.weight',
            'layers.1.downsample.reduction.weight',
            'layers.1.downsample.reduction.weight',
        ),
        (
            lambda state: to_image_classifier(state, 3),
            'classifier.norm.weight',
            'outnorm3.weight',
            'backbone.outnorm3.weight',
        ),
    ],
)
def test_two_names_of_one_tensor(function, first, second, name):
    """Either alone is fine, and the order does not matter."""
    state = {WHOLE: torch.zeros(1), first: torch.zeros(2), second: torch.ones(2)}
    for names in ((first, second), (second, first)):
        words = f"'{names[0]}' and '{names[1]}' both map to '{name}' of the model; remove one"
        with pytest.raises(ValueError, match=re.escape(words)):
            function({WHOLE: state[WHOLE], **{key: state[key] for key in names}})
        function({key: state[key] for key in (WHOLE, names[0])})


@pytest.mark.parametrize(
    ('inside', 'outside', 'name'),
    [
        ('classifier.norm.weight', 'outnorm3.weight', 'classifier.norm.weight'),
        ('classifier.head.weight', 'head.fc.weight', 'classifier.head.weight'),
    ],
)
def test_two_norms_or_heads_in_a_file_of_mmpretrain(inside, outside, name):
    prefix = '' if outside.startswith('head') else 'backbone.'
    file = {f'backbone.{key}': torch.zeros(2) for key in (WHOLE, inside)} | HEAD_OF_MMPRETRAIN
    file[f'{prefix}{outside}'] = torch.zeros(2)
    with pytest.raises(ValueError, match=f"'{inside}'.*'{outside}'|'{outside}'.*'{inside}'"):
        split_state_dict(file)
    del file[f'backbone.{inside}']
    assert name in split_state_dict(file)[0]


def test_split_of_a_detector_and_of_a_classifier():
    state = VMambaNet(VANILLA, num_classes=5).state_dict()
    assert split_state_dict(january_names(state))[0].keys() == state.keys()
    assert split_state_dict(state)[1] == {}
    inside, others = split_state_dict(segmentor(january_names(state)))
    assert inside.keys() == state.keys()
    assert list(others) == ['decode_head.conv.weight']


def test_adapted_channels_respond_as_before_to_gray_images():
    """A gray image has the same value in all channels."""
    weight = torch.randn(4, 3, 3, 3, dtype=torch.float64)
    for channels in (1, 2, 3, 6, 12):
        adapted = adapt_channels(weight, channels)
        assert adapted.shape == (4, channels, 3, 3) and adapted.dtype == torch.float64
        if channels % 3 == 0 or channels == 1:
            torch.testing.assert_close(adapted.sum(1), weight.sum(1))
