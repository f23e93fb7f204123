"""Matching of files with models, and loading by it."""

import re

import pytest
import torch

from mmvmamba.checkpoint.matching import (
    STAGE_NORMS,
    Matching,
    load_tensors,
    match_tensors,
    missing_in_classifier,
    with_image_channels,
)
from mmvmamba.nn import VMambaNet

from ..naming_schemes import convolution_weights, january_names, one_file_names
from .test_tensors import UNUSABLE

THIN = dict(dims=(8, 16, 24, 32), depths=(1, 1, 2, 1))
STAGES = (0, 1, 2, 3)
CLASSIFIER, BACKBONE = dict(num_classes=5), dict(out_indices=STAGES)


def net_of(seed, pos_embed_size=None, norm='ln', **kwargs):
    """A thin network, nothing of which is at its initial value."""
    torch.manual_seed(seed)
    net = VMambaNet(dict(THIN, norm=norm, pos_embed_size=pos_embed_size), **kwargs)
    for value in net.state_dict().values():
        value.copy_(torch.randn_like(value) if value.is_floating_point() else value + 3)
    return net


def file_of(change=dict, **kwargs):
    return change(net_of(1, **kwargs).state_dict())


def without(*parts):
    return lambda state: {k: v for k, v in state.items() if not any(part in k for part in parts)}


def with_prefix(prefix):
    return lambda state: {prefix + key: value for key, value in state.items()}


def extended(state):
    return {**state, 'neck.weight': torch.zeros(2)}


def wide(state):
    return {**state, 'patch_embed.0.bias': torch.zeros(9)}


def norms(*stages):
    return {f'outnorm{i}.{name}' for i in stages for name in ('weight', 'bias')}


HEAD = {'classifier.head.weight', 'classifier.head.bias'}
OTHER_HEAD = dict(num_classes=7)
BATCHNORM = dict(norm='bn')


@pytest.mark.parametrize(
    ('model', 'file', 'new_head', 'missing'),
    [
        (CLASSIFIER, file_of(**CLASSIFIER), False, set()),
        (BACKBONE, file_of(**BACKBONE), False, set()),
        (BACKBONE, file_of(**CLASSIFIER), False, norms(*STAGES)),
        (BACKBONE, file_of(out_indices=(3,)), False, norms(0, 1, 2)),
        (dict(out_indices=(1, 3)), file_of(**BACKBONE), False, set()),
        (CLASSIFIER, file_of(**CLASSIFIER), True, set()),
        (CLASSIFIER, file_of(**OTHER_HEAD), True, HEAD),
        (dict(num_classes=0), file_of(**CLASSIFIER), False, set()),
        (CLASSIFIER, file_of(extended, **CLASSIFIER), False, set()),
        (CLASSIFIER, file_of(with_prefix('module.'), **CLASSIFIER), False, set()),
        (CLASSIFIER, file_of(with_prefix('backbone.'), **CLASSIFIER), False, set()),
        (BACKBONE, file_of(with_prefix('module.backbone.'), **BACKBONE), False, set()),
        (CLASSIFIER, file_of(january_names, **CLASSIFIER), False, set()),
        (BATCHNORM, file_of(without('num_batches_tracked'), **BATCHNORM), False, set()),
    ],
    ids=[
        'classifier',
        'backbone',
        'classifier file for a backbone',
        'fewer output norms',
        'more output norms',
        'same head',
        'other head',
        'no head',
        'extra keys',
        'module.',
        'backbone.',
        'module.backbone.',
        'January names',
        'no counters of BatchNorm',
    ],
)
def test_files_that_are_loaded(model, file, new_head, missing):
    net, source = net_of(2, **model), file
    before = {key: value.clone() for key, value in net.state_dict().items()}
    matching = load_tensors(net, file, 'x.pth', new_head)
    assert set(matching.missing) == missing
    assert matching.mismatched == {}
    assert matching.total == len(before)
    values = [value for key, value in net.state_dict().items() if key in matching.found]
    assert len(values) == len(matching.found) > 60
    for key, value in net.state_dict().items():
        if key not in matching.found:
            assert key in missing or key.endswith('num_batches_tracked')
            assert torch.equal(value, before[key]), key
            continue
        assert any(value.shape == v.shape and torch.equal(value, v) for v in source.values()), key
        assert key.endswith('num_batches_tracked') or not torch.equal(value, before[key])


@pytest.mark.parametrize(
    ('model', 'file', 'new_head', 'words'),
    [
        (CLASSIFIER, file_of(**BACKBONE), True, r'missing: classifier\.norm\.weight.*head\.bias'),
        (CLASSIFIER, file_of(**OTHER_HEAD), False, r'mismatch: classifier\.head\.weight \(7, 32\)'),
        (CLASSIFIER, file_of(without('head'), **CLASSIFIER), True, r'missing: classifier\.head'),
        (CLASSIFIER, file_of(without('norm.bias'), **OTHER_HEAD), True, r'missing: .*norm\.bias'),
        (CLASSIFIER, file_of(without('s.2.blocks.1.'), **CLASSIFIER), True, r'missing: layers\.2'),
        (BACKBONE, file_of(without('s.2.blocks.1.'), **CLASSIFIER), False, r'missing: layers\.2'),
        (BACKBONE, file_of(wide, **CLASSIFIER), False, r'patch_embed.0.bias \(9,\) instead of \('),
        (CLASSIFIER, file_of(wide, **OTHER_HEAD), True, r'patch_embed.0.bias \(9,\) instead of \('),
        (CLASSIFIER, file_of(with_prefix('x.'), **CLASSIFIER), True, r'0 of \d+ .*unexpected: x\.'),
        (CLASSIFIER, {'a': torch.zeros(1)}, True, r'^checkpoint .x.pth. does not .* VMambaNet: 0'),
        (
            BATCHNORM,
            file_of(without('running_var'), **BATCHNORM),
            True,
            r'missing: \S+running_var',
        ),
    ],
    ids=[
        'backbone file for a classifier',
        'other head',
        'no head',
        'no norm beside another head',
        'block',
        'block of a backbone',
        'shape',
        'shape beside another head',
        'other prefix',
        'other network',
        'statistics of BatchNorm',
    ],
)
def test_files_that_change_nothing(model, file, new_head, words):
    net = net_of(2, **model)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(ValueError, match=words):
        load_tensors(net, file, 'x.pth', new_head)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize('model', [CLASSIFIER, BACKBONE])
def test_position_embedding_of_another_size(model):
    file = file_of(pos_embed_size=32, **model)
    file['pos_embed'] = torch.full_like(file['pos_embed'], 0.25)
    net = net_of(2, pos_embed_size=64, **model)
    assert 'pos_embed' in load_tensors(net, file, 'x.pth').found
    torch.testing.assert_close(net.pos_embed.detach(), torch.full((1, 8, 16, 16), 0.25))


def test_a_position_embedding_of_tokens_does_not_match():
    file = file_of(pos_embed_size=32)
    file['pos_embed'] = torch.zeros(1, 65, 8)  # as in a Vision Transformer
    with pytest.raises(ValueError, match=r'pos_embed \(1, 65, 8\) instead of \(1, 8, 16, 16\)'):
        load_tensors(net_of(2, pos_embed_size=64), file, 'x.pth')


@pytest.mark.parametrize(
    'value', [torch.zeros(1, 8, 4, 4, dtype=torch.int64), torch.zeros(1, 8, 0, 4)]
)
def test_a_position_embedding_that_cannot_be_resized(value):
    file = file_of(pos_embed_size=32)
    file['pos_embed'] = value
    with pytest.raises(ValueError, match=r'mismatch: pos_embed \(1, 8, \d, 4\) instead of'):
        load_tensors(net_of(2, pos_embed_size=64), file, 'x.pth')


def cast(key, dtype):
    return lambda state: {**state, key: torch.ones_like(state[key], dtype=dtype)}


STEM = 'patch_embed.0.bias'
COUNTER = 'patch_embed.2.num_batches_tracked'


@pytest.mark.parametrize(
    ('key', 'dtype', 'words'),
    [
        (STEM, torch.int8, 'int8 instead of float32'),
        (STEM, torch.bool, 'bool instead of float32'),
        (STEM, torch.complex64, 'complex64 instead of float32'),
        (COUNTER, torch.bool, 'bool instead of int64'),
    ],
)
@pytest.mark.parametrize('model', [CLASSIFIER, BACKBONE])
def test_another_kind_of_dtype_changes_nothing(model, key, dtype, words):
    net = net_of(2, norm='bn', **model)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    file = file_of(cast(key, dtype), norm='bn', **model)
    with pytest.raises(ValueError, match=f'mismatch: {key} {words}; '):
        load_tensors(net, file, 'x.pth', new_head=True)
    with pytest.raises(ValueError, match=f'mismatch: {key} {words}; '):
        net.load_state_dict(file)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize(
    ('key', 'dtype'),
    [
        (STEM, torch.float16),
        (STEM, torch.bfloat16),
        (STEM, torch.float8_e4m3fn),
        (COUNTER, torch.int32),
    ],
)
def test_another_width_of_the_dtype_is_cast(key, dtype):
    net = net_of(2, **BATCHNORM)
    load_tensors(net, file_of(cast(key, dtype), **BATCHNORM), 'x.pth')
    assert net.state_dict()[key].eq(1).all()
    assert net.state_dict()[key].dtype != dtype


@pytest.mark.parametrize('words', list(UNUSABLE))
def test_tensors_without_plain_data_do_not_match(words):
    matching = match_tensors({'a': torch.zeros(3)}, {'a': UNUSABLE[words]})
    assert matching.mismatched == {'a': f'{words} instead of a dense one'}


def broken(value, *keys):
    """Put a value into the first place of tensors."""

    def change(state):
        state = {key: tensor.clone() for key, tensor in state.items()}
        for key in keys:
            state[key].view(-1)[0] = value
        return state

    return change


NAN, INF = float('nan'), float('inf')
DIVERGED = 'The run that saved it has probably diverged'


@pytest.mark.parametrize('value', [NAN, INF, -INF])
@pytest.mark.parametrize(
    ('model', 'new_head', 'keys'),
    [
        (CLASSIFIER, True, ['patch_embed.0.bias']),
        (CLASSIFIER, False, ['classifier.head.bias']),
        (BACKBONE, False, ['patch_embed.2.bias', 'outnorm3.weight']),
        (BATCHNORM, False, ['patch_embed.2.running_var']),
    ],
)
def test_values_that_are_not_finite_change_nothing(value, model, new_head, keys):
    net = net_of(2, **model)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    file = file_of(broken(value, *keys), **model)
    listed = ', '.join(f'{key} (1 of {file[key].numel()} values)' for key in keys)
    words = re.escape(f' contains NaN or Inf for VMambaNet: {listed}. {DIVERGED}')
    with pytest.raises(ValueError, match=f"^checkpoint 'x.pth'{words}"):
        load_tensors(net, file, 'x.pth', new_head)
    with pytest.raises(ValueError, match=f'^the state dict{words}'):
        net.load_state_dict(file)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize(
    ('model', 'file', 'new_head'),
    [
        (CLASSIFIER, file_of(broken(NAN, 'classifier.head.bias'), **OTHER_HEAD), True),
        (dict(num_classes=0), file_of(broken(NAN, 'classifier.head.bias'), **CLASSIFIER), False),
        (dict(out_indices=(3,)), file_of(broken(NAN, 'outnorm0.bias'), **BACKBONE), False),
    ],
    ids=['other head', 'no head', 'unused norm'],
)
def test_values_that_are_not_loaded_may_be_anything(model, file, new_head):
    net = net_of(2, **model)
    load_tensors(net, file, 'x.pth', new_head)
    assert all(value.isfinite().all() for value in net.state_dict().values())


def test_deliberate_values_that_are_not_finite():
    mask = {'mask': torch.tensor([0.0, -INF]), 'a': torch.zeros(2)}
    assert match_tensors(mask, mask).non_finite == {}
    other = {'mask': torch.tensor([NAN, NAN]), 'a': torch.tensor([0.0, -INF])}
    assert match_tensors(mask, other).non_finite == {'a': '(1 of 2 values)'}


def test_values_that_overflow_in_the_model():
    net = net_of(2).half()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    words = r'patch_embed.0.bias \(1 of 4 values, some too large for float16\)'
    with pytest.raises(ValueError, match=words):
        load_tensors(net, file_of(broken(1e5, STEM)), 'x.pth')
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize(
    ('change', 'strict', 'error', 'words'),
    [
        (without('outnorm3'), True, RuntimeError, r'Missing key.*outnorm3\.weight'),
        (extended, True, RuntimeError, r'Unexpected key.*neck\.weight'),
        (wide, True, RuntimeError, r'size mismatch for patch_embed\.0\.bias'),
        (wide, False, RuntimeError, r'size mismatch for patch_embed\.0\.bias'),
        (
            lambda state: {**state, 'patch_embed.proj.bias': torch.zeros(4)},
            False,
            ValueError,
            "'patch_embed.0.bias' and 'patch_embed.proj.bias' both map to",
        ),
    ],
    ids=['missing', 'unexpected', 'shape', 'shape, not strict', 'two names'],
)
def test_a_failed_load_by_torch_changes_nothing(change, strict, error, words):
    net = net_of(2, **BACKBONE)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(error, match=words):
        net.load_state_dict(file_of(change, **BACKBONE), strict)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_a_load_by_torch_returns_what_torch_does():
    net, file = net_of(2, **BACKBONE), file_of(without('outnorm3'), **BACKBONE)
    result = net.load_state_dict(extended(file), strict=False)
    assert set(result.missing_keys) == norms(3)
    assert result.unexpected_keys == ['neck.weight']
    assert torch.equal(net.patch_embed[0].weight, file['patch_embed.0.weight'])


def test_models_on_the_meta_device():
    with torch.device('meta'):
        net = VMambaNet(THIN, num_classes=5)
    file = file_of(**CLASSIFIER)
    for load in (lambda: load_tensors(net, file, 'x.pth'), lambda: net.load_state_dict(file)):
        with pytest.raises(ValueError, match=r'is on the meta device.*to_empty'):
            load()
    net.load_state_dict(file, assign=True)
    assert torch.equal(net.patch_embed[0].weight, file['patch_embed.0.weight'])
    with torch.device('meta'):
        net = VMambaNet(THIN, num_classes=5)
    with pytest.raises(ValueError, match=DIVERGED):
        net.load_state_dict(broken(NAN, STEM)(file), assign=True)


def test_two_names_of_one_tensor():
    file = file_of(**CLASSIFIER)
    file['head.bias'] = file['classifier.head.bias']
    words = "'x.pth' cannot be loaded: tensors 'classifier.head.bias' and 'head.bias' both map to"
    with pytest.raises(ValueError, match=words):
        load_tensors(net_of(2, **CLASSIFIER), file, 'x.pth')


FILE = {'backbone.a': 2, 'backbone.outnorm0.weight': 2, 'head.b': 2}


@pytest.mark.parametrize(
    ('changes', 'required', 'allow_missing', 'is_match'),
    [
        ({}, '', (), True),
        ({'head.b': None}, '', (), False),
        ({'head.b': None}, 'backbone.', (), True),
        ({'head.b': 3}, 'backbone.', (), True),
        ({'head.b': 3}, '', (), False),
        ({'backbone.a': None}, 'backbone.', STAGE_NORMS, False),
        ({'backbone.a': 3}, 'backbone.', STAGE_NORMS, False),
        ({'backbone.a': 3}, (), (), True),
        ({'backbone.outnorm0.weight': None}, 'backbone.', (), False),
        ({'backbone.outnorm0.weight': None}, 'backbone.', STAGE_NORMS, True),
        ({'backbone.outnorm0.weight': None}, '', STAGE_NORMS, True),
        ({'backbone.outnorm0.weight': 3}, 'backbone.', STAGE_NORMS, False),
        ({'head.b': None}, '', ('head.',), True),
        ({'head.b': 3}, '', ('head.',), False),
        ({'more': 3, 'backbone.more': 3}, '', (), True),
        (dict.fromkeys(FILE), (), (), False),
        ({**dict.fromkeys(FILE), 'more': 3}, (), (), False),
        ({**dict.fromkeys(FILE, 3)}, (), (), False),
    ],
)
def test_options_of_the_rule(changes, required, allow_missing, is_match):
    """Sizes of the tensors of a file; None is a missing one."""
    own = {key: torch.zeros(size) for key, size in FILE.items()}
    sizes = {key: size for key, size in {**FILE, **changes}.items() if size is not None}
    matching = match_tensors(own, {key: torch.zeros(size) for key, size in sizes.items()})
    options = dict(required=required, allow_missing=allow_missing)
    if is_match:
        matching.check('the file', 'Net', **options)
        return
    with pytest.raises(ValueError, match=r'^the file does not match Net: \d of 3 tensors found; '):
        matching.check('the file', 'Net', **options)


def test_every_tensor_is_listed_once():
    own = {key: torch.zeros(2) for key in ('a', 'b', 'c', 'd.num_batches_tracked')}
    tensors = {'a': torch.zeros(2), 'b': torch.zeros(2, 1), 'e': torch.zeros(1)}
    tensors |= {'classifier.norm.weight': torch.zeros(1)}
    matching = match_tensors(own, tensors)
    assert matching == Matching(4, ['a'], ['c'], {'b': '(2, 1) instead of (2,)'}, ['e'])
    assert str(matching) == (
        '1 of 4 tensors found; missing: c; shape or dtype mismatch: b (2, 1) instead of (2,); '
        'unexpected: e'
    )


@pytest.mark.parametrize(
    ('count', 'ending'), [(0, 'none'), (1, 'k0'), (8, 'k6, k7'), (9, 'k6, k7 and 1 more')]
)
def test_long_lists_are_cut(count, ending):
    text = str(Matching(20, missing=[f'k{i}' for i in range(count)]))
    assert f'{ending}; shape or dtype mismatch: none; unexpected: none' in text


def test_names_of_a_classifier():
    file = file_of(**CLASSIFIER)
    assert missing_in_classifier(file) == []
    assert missing_in_classifier(file_of(**BACKBONE))[0] == 'classifier.norm.weight'
    for key in [key for key in file if key.startswith('classifier.')]:
        assert missing_in_classifier(without(key)(file)) == [key]


def test_counters_in_floating_point_are_cast():
    """As averages of several checkpoints have them."""
    norm = torch.nn.BatchNorm2d(2)
    tensors = {key: value.float() for key, value in norm.state_dict().items()}
    matching = match_tensors(norm.state_dict(), tensors)
    assert not matching.mismatched
    assert len(matching.found) == 5
    indices = {'indices': torch.zeros(2, dtype=torch.int64)}
    matching = match_tensors(indices, {'indices': torch.zeros(2)})
    assert matching.mismatched == {'indices': 'float32 instead of int64'}


FIRST_CONV = 'patch_embed.0.weight'


@pytest.mark.parametrize('channels', [1, 2, 4, 6, 12])
@pytest.mark.parametrize('model', [CLASSIFIER, BACKBONE])
def test_image_channels_are_adapted(model, channels):
    net, state = net_of(0, in_channels=channels, **model), file_of(**model)
    matching = load_tensors(net, state, 'x.pth')
    own, given = net.state_dict(), state.pop(FIRST_CONV).double()
    for key, value in state.items():
        assert torch.equal(own[key], value), key
    want = [given[:, i % 3] * 3 / channels for i in range(channels)]
    want = torch.stack(want, 1) if channels > 1 else given.sum(1, keepdim=True)
    torch.testing.assert_close(own[FIRST_CONV].double(), want, rtol=1e-6, atol=1e-6)
    assert str(matching).endswith(
        f'unexpected: none; {FIRST_CONV} adapted from 3 to {channels} image channels'
    )


@pytest.mark.parametrize('scheme', [january_names, one_file_names, convolution_weights])
def test_image_channels_are_adapted_in_every_scheme(scheme):
    state = file_of(**CLASSIFIER)
    net, want = net_of(0, in_channels=5, **CLASSIFIER), net_of(2, in_channels=5, **CLASSIFIER)
    load_tensors(net, {f'module.{key}': value for key, value in scheme(state).items()}, 'x.pth')
    load_tensors(want, state, 'x.pth')
    assert torch.equal(net.state_dict()[FIRST_CONV], want.state_dict()[FIRST_CONV])


def test_image_channels_of_half_precision_are_computed_in_float32():
    state = file_of(**CLASSIFIER)
    state[FIRST_CONV] = state[FIRST_CONV].half()
    net = net_of(0, in_channels=12, **CLASSIFIER)
    load_tensors(net, state, 'x.pth')
    assert torch.equal(net.state_dict()[FIRST_CONV][:, 4], state[FIRST_CONV][:, 1].float() / 4)


@pytest.mark.parametrize(
    ('channels', 'change', 'words'),
    [
        (3, dict(in_channels=12), 'patch_embed.0.weight (4, 12, 3, 3) instead of (4, 3, 3, 3)'),
        (12, dict(in_channels=4), 'patch_embed.0.weight (4, 4, 3, 3) instead of (4, 12, 3, 3)'),
        (12, cast(FIRST_CONV, torch.int8), 'patch_embed.0.weight (4, 3, 3, 3) instead of'),
        (12, broken(NAN, FIRST_CONV), 'patch_embed.0.weight (4 of 432 values)'),
        (12, lambda state: {**state, FIRST_CONV: state[FIRST_CONV][..., :2]}, '(4, 3, 3, 2)'),
        (12, without(FIRST_CONV), f'missing: {FIRST_CONV};'),
    ],
)
def test_image_channels_that_change_nothing(channels, change, words):
    net = net_of(0, in_channels=channels, **BACKBONE)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    state = (
        file_of(**BACKBONE, **change) if isinstance(change, dict) else file_of(change, **BACKBONE)
    )
    with pytest.raises(ValueError, match=re.escape(words)):
        load_tensors(net, state, 'x.pth')
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_load_state_dict_does_not_adapt_image_channels():
    net = net_of(0, in_channels=12, **BACKBONE)
    with pytest.raises((RuntimeError, ValueError), match=re.escape(FIRST_CONV)):
        net.load_state_dict(file_of(**BACKBONE))


def test_tensors_for_the_same_channels_are_returned_as_they_are():
    state = file_of(**BACKBONE)
    assert with_image_channels(state, net_of(0, **BACKBONE)) == (state, '')
