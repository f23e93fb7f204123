"""Published and broken files and their addresses; nothing is downloaded."""

import functools
import http.server
import os
import pickle
import re
import subprocess
import sys
import textwrap
import threading
import traceback

import numpy as np
import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.logging import HistoryBuffer, MessageHub, MMLogger
from mmengine.model import BaseModel, BaseModule
from mmengine.runner import Runner, load_checkpoint
from mmengine.runner import checkpoint as mmengine_checkpoint
from mmengine.runner.checkpoint import CheckpointLoader
from torch.utils.data import DataLoader

from mmvmamba.checkpoint.download import cached_path
from mmvmamba.engine.cli import check_checkpoint
from mmvmamba.engine.errors import UserError
from mmvmamba.models import VMamba, loading
from mmvmamba.models.loading import (
    adapt_state_dict,
    check_model,
    load_whole,
    read_checkpoint,
    use_safe_loader,
)
from mmvmamba.nn import VMambaNet, convert_state_dict

from ..naming_schemes import convolution_weights, january_names, one_file_names

THIN = dict(dims=(8, 16, 24, 32), depths=(1, 1, 2, 1))
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
LOADERS = (read_checkpoint, CheckpointLoader.load_checkpoint)
ARCHS = pytest.mark.parametrize('arch', [THIN, THIN_VANILLA], ids=['conv', 'vanilla'])


def classifier_state(arch=THIN, seed=0):
    torch.manual_seed(seed)
    return VMambaNet(arch, num_classes=5).state_dict()


def backbone_state(arch=THIN, seed=0):
    torch.manual_seed(seed)
    state = VMamba(arch).state_dict()
    for value in state.values():
        value.add_(torch.randn_like(value))  # nothing left at its initial value
    return state


def loaded(path, arch=THIN, **init_cfg):
    torch.manual_seed(99)
    model = VMamba(arch, init_cfg=dict(type='Pretrained', checkpoint=str(path), **init_cfg))
    model.init_weights()
    return model.state_dict()


def save(folder, content):
    torch.save(content, folder / 'file.pth')
    return folder / 'file.pth'


def assert_same(state, expected):
    common = [key for key in state if key in expected]
    assert [key for key in state if key not in expected and 'outnorm' not in key] == []
    for key in common:
        assert torch.equal(state[key], expected[key]), key


@ARCHS
@pytest.mark.parametrize(
    'wrap',
    [
        lambda state: state,
        lambda state: {'model': state},
        lambda state: {'state_dict': state, 'meta': {}},
        lambda state: {'model': {f'module.{k}': v for k, v in state.items()}, 'epoch': 3},
    ],
    ids=['plain', 'model', 'state_dict', 'module'],
)
def test_classification_file(tmp_path, arch, wrap):
    state = classifier_state(arch)
    assert_same(loaded(save(tmp_path, wrap(state)), arch), state)


def test_detector_file_with_output_norms(tmp_path):
    state = backbone_state()
    file = {f'backbone.{k}': v for k, v in state.items()}
    file |= {'neck.lateral.weight': torch.zeros(2), 'norm.weight': torch.zeros(3)}
    path = save(tmp_path, {'meta': {}, 'state_dict': file})
    for arguments in ({}, {'prefix': 'backbone.'}, {'prefix': 'backbone'}):
        new = loaded(path, **arguments)
        assert new.keys() == state.keys()
        assert_same(new, state)


@pytest.mark.parametrize('scheme', [january_names, one_file_names, convolution_weights])
@ARCHS
def test_older_schemes(tmp_path, arch, scheme):
    state = classifier_state(arch)
    old = scheme(state)
    assert scheme is convolution_weights or old.keys() != state.keys()
    assert_same(loaded(save(tmp_path, {'model': old}), arch), state)


def test_safetensors_load_everywhere(tmp_path):
    """In a backbone, and in a whole model in a program that names no loader."""
    safetensors = pytest.importorskip('safetensors.torch')
    state = classifier_state()
    safetensors.save_file(state, tmp_path / 'x.safetensors')
    assert_same(loaded(tmp_path / 'x.safetensors'), state)
    detector = Detector()
    state = {key: value + 1 for key, value in detector.state_dict().items()}
    safetensors.save_file(state, tmp_path / 'y.safetensors')
    load_checkpoint(detector, str(tmp_path / 'y.safetensors'))
    assert_same(detector.state_dict(), state)


def test_fewer_outputs_than_the_file_has(tmp_path):
    path = save(tmp_path, {'model': backbone_state()})
    model = VMamba(THIN, out_indices=(3,), init_cfg=dict(type='Pretrained', checkpoint=str(path)))
    model.init_weights()
    assert torch.equal(model.outnorm3.weight, backbone_state()['outnorm3.weight'])


def test_position_embedding_is_resized(tmp_path):
    arch = dict(THIN, pos_embed_size=64)
    state = classifier_state(arch)
    state['pos_embed'] = torch.ones(1, 8, 8, 8)
    new = loaded(save(tmp_path, {'model': state}), arch)
    assert new['pos_embed'].shape == (1, 8, 16, 16)
    torch.testing.assert_close(new['pos_embed'], torch.ones(1, 8, 16, 16))


@pytest.mark.parametrize('scheme', [dict, january_names, one_file_names, convolution_weights])
@ARCHS
def test_file_for_other_image_channels(tmp_path, arch, scheme):
    state = backbone_state(arch)
    path = save(tmp_path, {'state_dict': scheme(state)})
    own = VMamba(arch, in_channels=12, init_cfg=dict(type='Pretrained', checkpoint=path))
    own.init_weights()
    weight = state.pop('patch_embed.0.weight')
    torch.testing.assert_close(own.patch_embed[0].weight, weight.repeat(1, 4, 1, 1) / 4)
    assert_same({k: v for k, v in own.state_dict().items() if k in state}, state)


def test_missing_file():
    with pytest.raises(FileNotFoundError, match=r"'nowhere/x.pth' does not exist"):
        loaded('nowhere/x.pth')


def test_another_network(tmp_path):
    path = save(tmp_path, {'state_dict': {'conv1.weight': torch.zeros(3)}})
    with pytest.raises(ValueError, match=r'0 of \d+ tensors found.*missing: patch_embed.*conv1'):
        loaded(path)


def test_missing_block(tmp_path):
    state = {k: v for k, v in classifier_state().items() if 'layers.2.blocks.1.' not in k}
    with pytest.raises(ValueError, match=r'missing: layers\.2\.blocks\.1\.norm\.weight'):
        loaded(save(tmp_path, {'model': state}))


def test_other_depth_and_width(tmp_path):
    path = save(tmp_path, {'model': classifier_state()})
    with pytest.raises(ValueError, match=r'layers\.3\.blocks\.1\.'):
        loaded(path, dict(THIN, depths=(1, 1, 2, 2)))
    with pytest.raises(ValueError, match=r'dtype mismatch: patch_embed.0.weight \(4, .* \(8, '):
        loaded(path, dict(THIN, dims=(16, 32, 48, 64)))


def test_unknown_prefix(tmp_path):
    path = save(tmp_path, {'state_dict': {f'backbone.{k}': v for k, v in backbone_state().items()}})
    with pytest.raises(ValueError, match="prefix 'encoder'"):
        loaded(path, prefix='encoder')


def test_a_failed_load_changes_nothing(tmp_path):
    state = {k: v for k, v in classifier_state().items() if 'layers.2.blocks.1.' not in k}
    path = save(tmp_path, {'model': state})
    model = VMamba(THIN, init_cfg=dict(type='Pretrained', checkpoint=str(path)))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match='missing'):
        model.init_weights()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


NAN = float('nan')
DIVERGED = 'The run that saved it has probably diverged'


def with_nan(state, key):
    return {**state, key: torch.full_like(state[key], NAN)}


@pytest.mark.parametrize(
    ('second', 'words'),
    [
        ('nowhere.pth', 'does not exist'),
        ('nan.pth', DIVERGED),
        ('short.pth', r'missing: layers\.2'),
        (
            'twice.pth',
            "'norm.weight' and 'classifier.norm.weight' both map to 'classifier.norm.weight'",
        ),
    ],
)
def test_all_files_are_checked_before_anything_is_initialized(tmp_path, second, words):
    state = classifier_state()
    torch.save(state, tmp_path / 'good.pth')
    torch.save(with_nan(state, 'patch_embed.0.bias'), tmp_path / 'nan.pth')
    short = {key: value for key, value in state.items() if 'layers.2.' not in key}
    torch.save(short, tmp_path / 'short.pth')
    torch.save({'norm.weight': torch.zeros(32), **state}, tmp_path / 'twice.pth')
    files = [dict(type='Pretrained', checkpoint=str(tmp_path / f)) for f in ('good.pth', second)]
    model = VMamba(THIN, init_cfg=[dict(type='Constant', layer='Conv2d', val=3.0), *files])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for _ in range(2):  # nor is it taken for initialized
        with pytest.raises((ValueError, FileNotFoundError), match=words):
            model.init_weights()
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_weights_are_not_initialized_twice(tmp_path):
    state = classifier_state()
    path = save(tmp_path, {'model': state})
    model = VMamba(THIN, init_cfg=dict(type='Pretrained', checkpoint=str(path)))
    model.init_weights()
    path.unlink()
    model.init_weights()
    assert_same(model.state_dict(), state)


class Detector(BaseModule):
    def __init__(self, arch=THIN, **backbone):
        super().__init__()
        self.backbone = VMamba(arch, **backbone)
        self.head = torch.nn.Linear(4, 2)


def test_names_of_a_detector(tmp_path):
    detector = Detector()
    file = {f'backbone.{k}': v for k, v in january_names(classifier_state()).items()}
    file['head.weight'] = torch.zeros(2, 4)
    tensors = adapt_state_dict(detector, file, 'file.pth')
    matching = check_model(detector, tensors, 'file.pth', whole=False)
    assert set(matching.missing) == {
        'head.bias',
        *(k for k in detector.state_dict() if 'outnorm' in k),
    }
    with pytest.raises(ValueError, match=r'missing: backbone\.outnorm0.*and 1 more'):
        check_model(detector, tensors, 'file.pth', whole=True)


def test_classifier_file_for_a_detector():
    detector = Detector()
    tensors = adapt_state_dict(detector, classifier_state(), 'file.pth')
    matching = check_model(detector, tensors, 'file.pth', whole=False)
    assert 'backbone.layers.3.blocks.0.op.Ds' in matching.found
    assert matching.unexpected == []


def test_tensors_without_a_backbone_keep_their_names():
    """A file of the heads alone must not be taken for one of a backbone."""
    heads = {'neck.conv.weight': torch.zeros(2), 'module.head.bias': torch.zeros(3)}
    assert adapt_state_dict(Detector(), heads, 'file.pth').keys() == {
        'neck.conv.weight',
        'head.bias',
    }


def test_a_whole_model_is_loaded_or_nothing():
    detector = Detector()
    before = {k: v.clone() for k, v in detector.state_dict().items()}
    torch.manual_seed(7)
    file = {'state_dict': january_names(Detector(THIN).state_dict())}
    short = {k: v for k, v in file['state_dict'].items() if k != 'head.bias'}
    wide = file['state_dict'] | {'head.bias': torch.zeros(3)}
    for state, words in ((short, 'missing: head.bias'), (wide, r'head.bias \(3,\) instead of')):
        with pytest.raises(
            ValueError, match=f"checkpoint 'x.pth' does not match Detector.*{words}"
        ):
            load_whole(detector, {'state_dict': state}, 'x.pth')
        assert all(torch.equal(v, before[k]) for k, v in detector.state_dict().items())
    load_whole(detector, file, 'x.pth')
    torch.manual_seed(7)
    assert_same(detector.state_dict(), Detector(THIN).state_dict())


def test_a_whole_model_is_not_loaded_for_other_image_channels():
    source, target = Detector(), Detector(in_channels=12)
    before = {key: value.clone() for key, value in target.state_dict().items()}
    words = r'backbone\.patch_embed\.0\.weight \(4, 3, 3, 3\) instead of \(4, 12, 3, 3\)'
    with pytest.raises(ValueError, match=words):
        load_whole(target, {'state_dict': source.state_dict()}, 'x.pth')
    assert_same(target.state_dict(), before)


def test_a_failed_load_by_torch_changes_nothing_of_the_backbone():
    for out_indices in ((0, 1, 2, 3), (3,)):
        model = VMamba(THIN, out_indices=out_indices)
        before = {k: v.clone() for k, v in model.state_dict().items()}
        state = {k: v + 1 for k, v in before.items() if 'layers.3' not in k}
        with pytest.raises(ValueError, match=r'does not match VMamba.*missing: layers\.3'):
            model.load_state_dict(state, strict=False)
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize('load', ['torch', 'mmengine', 'load_whole'])
@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (lambda s: with_nan(s, 'backbone.pos_embed'), 'NaN or Inf for .*pos_embed'),
        (lambda s: with_nan(s, 'backbone.outnorm3.bias'), 'NaN or Inf for .*outnorm3.bias'),
        (
            lambda s: {**s, 'backbone.outnorm3.bias': s['backbone.outnorm3.bias'].to(torch.int8)},
            'outnorm3.bias int8 instead of float32',
        ),
        (
            lambda s: {**s, 'backbone.patch_embed.proj.bias': torch.zeros(4)},
            "patch_embed.0.bias' and .*patch_embed.proj.bias' both map to",
        ),
        (
            lambda s: {**s, 'backbone.outnorm3.bias': torch.zeros(32).to_sparse()},
            # The last is the reader's, which MMEngine calls after use_safe_loader.
            'outnorm3.bias.* is a sparse|a sparse tensor|_rebuild_sparse_tensor',
        ),
    ],
    ids=['position embedding', 'norm', 'kind', 'two names', 'sparse'],
)
def test_a_failed_load_of_a_detector_changes_nothing_of_the_backbone(tmp_path, load, change, words):
    detector = Detector(dict(THIN, pos_embed_size=64))
    before = {k: v.clone() for k, v in detector.state_dict().items()}
    file = change({key: value + 1 for key, value in before.items()})
    with pytest.raises(ValueError, match=words):
        if load == 'torch':
            detector.load_state_dict(file)
        elif load == 'mmengine':
            load_checkpoint(detector, str(save(tmp_path, {'state_dict': file})))
        else:
            load_whole(detector, {'state_dict': file}, 'x.pth')
    assert all(torch.equal(v, before[k]) for k, v in detector.state_dict().items())


def test_a_whole_model_needs_finite_values_and_memory():
    detector = Detector()
    before = {k: v.clone() for k, v in detector.state_dict().items()}
    file = with_nan(detector.state_dict(), 'head.bias')
    with pytest.raises(ValueError, match=rf'Detector: head\.bias \(2 of 2 values\)\. {DIVERGED}'):
        load_whole(detector, {'state_dict': file}, 'x.pth')
    assert all(torch.equal(v, before[k]) for k, v in detector.state_dict().items())
    with torch.device('meta'):
        detector = Detector()
    with pytest.raises(ValueError, match=r"checkpoint 'x.pth' cannot be loaded: .* meta device"):
        load_whole(detector, {'state_dict': before}, 'x.pth')


def image_classifier():
    """A classifier of mmpretrain, which renames through the backbone's filter."""
    torch.manual_seed(5)
    models = pytest.importorskip('mmpretrain.models')
    return models.ImageClassifier(
        dict(type='mmvmamba.VMamba', arch=THIN, out_indices=(3,)),
        dict(type='GlobalAveragePooling'),
        dict(type='LinearClsHead', num_classes=5, in_channels=32),
    )


def test_released_file_for_an_image_classifier(tmp_path):
    model, state = image_classifier(), classifier_state(seed=3)
    load_checkpoint(model, str(save(tmp_path, {'model': state})))
    assert torch.equal(model.head.fc.weight, state['classifier.head.weight'])
    assert torch.equal(model.backbone.outnorm3.bias, state['classifier.norm.bias'])


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (lambda s: with_nan(s, 'classifier.norm.bias'), r'outnorm3\.bias \(32 of 32 values\)'),
        (
            lambda s: {**s, 'norm.bias': torch.zeros(32)},
            "'classifier.norm.bias' and 'norm.bias' both map",
        ),
        (lambda s: {**s, 'module.norm.bias': torch.zeros(32)}, "' and 'norm.bias' both map to"),
        (lambda s: {**s, 'outnorm3.bias': torch.zeros(32)}, "'outnorm3.bias' both map to"),
        (
            lambda s: {**s, 'patch_embed.0.bias': torch.zeros(4, dtype=torch.int8)},
            r'patch_embed\.0\.bias int8 instead of float32',
        ),
        (lambda s: {k: v for k, v in s.items() if 'head' not in k}, 'lacks classifier.head'),
    ],
    ids=['NaN', 'two names', 'two names with a prefix', 'two norms', 'kind', 'no head'],
)
@pytest.mark.parametrize('load', ['mmengine', 'load_whole'])
def test_a_failed_load_of_an_image_classifier_changes_nothing(tmp_path, change, words, load):
    model = image_classifier()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    file = {'model': change(classifier_state(seed=3))}
    words = f'{words}|missing: head.fc' if load == 'load_whole' else words
    with pytest.raises(ValueError, match=words):
        if load == 'mmengine':
            load_checkpoint(model, str(save(tmp_path, file)))
        else:
            load_whole(model, file, 'x.pth')
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_detector_refuses_half_a_backbone_and_another_width():
    detector = Detector()
    state = detector.state_dict()
    half = {k: v for k, v in state.items() if 'layers.0.' not in k}
    with pytest.raises(ValueError, match=r'backbone\.layers\.0\.'):
        check_model(detector, half, 'file.pth', whole=False)
    wide = {**state, 'backbone.patch_embed.0.bias': torch.zeros(9)}
    with pytest.raises(ValueError, match=r'\(9,\) instead of \(4,\)'):
        check_model(detector, wide, 'file.pth', whole=False)
    other_head = {**state, 'head.weight': torch.zeros(3, 4)}
    assert check_model(detector, other_head, 'file.pth', whole=False).mismatched


@pytest.mark.parametrize('scheme', [january_names, one_file_names, convolution_weights])
@ARCHS
def test_inferencers_take_every_scheme(tmp_path, arch, scheme):
    """They call MMEngine's load_checkpoint on the whole model, without a hook."""
    detector = Detector(arch)
    state = backbone_state(arch, seed=3)
    file = {f'backbone.{k}': v for k, v in scheme(state).items()}
    file |= {'head.weight': torch.ones(2, 4), 'head.bias': torch.ones(2)}
    path = save(tmp_path, {'meta': {}, 'state_dict': file})
    load_checkpoint(detector, str(path), map_location='cpu')
    assert_same(detector.backbone.state_dict(), state)
    assert torch.equal(detector.head.weight, torch.ones(2, 4))


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (
            lambda k: k.removeprefix('backbone.'),
            r'no key has the prefix of this backbone.*convert_vmamba',
        ),
        (lambda k: k.replace('backbone.layers.', 'backbone.stages.'), r'missing: layers\.0'),
        (lambda k: None if 'layers.2.blocks.1.' in k else k, r'missing: layers\.2\.blocks\.1'),
    ],
    ids=['prefix', 'names', 'block'],
)
def test_inferencers_refuse_files_that_do_not_match(tmp_path, change, words):
    state = {change(k): v for k, v in Detector().state_dict().items()}
    state.pop(None, None)
    path = save(tmp_path, {'state_dict': state})
    with pytest.raises(ValueError, match=words):
        load_checkpoint(Detector(), str(path), map_location='cpu')
    wide = Detector(dict(THIN, dims=(16, 32, 48, 64))).state_dict()
    with pytest.raises(ValueError, match='dtype mismatch: patch_embed'):
        load_checkpoint(Detector(), str(save(tmp_path, {'state_dict': wide})))


def test_plain_network_takes_every_scheme():
    for arch in (THIN, THIN_VANILLA):
        state = classifier_state(arch)
        for scheme in (january_names, one_file_names, convolution_weights):
            net = VMambaNet(arch, num_classes=5)
            net.load_state_dict(scheme(state))
            assert_same(net.state_dict(), state)
    net = VMambaNet(dict(THIN, pos_embed_size=64), num_classes=5)
    net.load_state_dict({**net.state_dict(), 'pos_embed': torch.ones(1, 8, 5, 7)})
    torch.testing.assert_close(net.pos_embed.detach(), torch.ones(1, 8, 16, 16))


@pytest.mark.parametrize('prefix', ['', 'module.', 'backbone.', 'module.backbone.'])
def test_plain_network_takes_prefixes_with_convert_state_dict(prefix):
    net, outputs = VMambaNet(THIN, num_classes=5), VMambaNet(THIN, out_indices=(0, 3))
    for model, state in ((net, classifier_state()), (outputs, outputs.state_dict())):
        file = {prefix + key: value for key, value in january_names(state).items()}
        model.load_state_dict(convert_state_dict(file))
        assert_same(model.state_dict(), state)
    with pytest.raises(RuntimeError, match='Missing key.*outnorm0'):
        outputs.load_state_dict(convert_state_dict(classifier_state()))


def log_lines(monkeypatch):
    lines = []
    logger = MMLogger.get_current_instance()
    monkeypatch.setattr(logger, 'info', lambda message, *args, **kwargs: lines.append(message))
    return lines


def test_loading_is_logged_in_one_line(tmp_path, monkeypatch):
    lines = log_lines(monkeypatch)
    loaded(save(tmp_path, {'model': classifier_state()}))
    found = [line for line in lines if 'tensors found' in line]
    count = len(VMamba(THIN).state_dict())
    assert len(found) == 1
    assert f'file.pth: {count - 8} of {count} tensors found; missing: outnorm0' in found[0]


# ---- reading with MMEngine's classes ----


def test_broken_files(tmp_path):
    whole = save(tmp_path, {'model': classifier_state()}).read_bytes()
    (tmp_path / 'short.pth').write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        ValueError, match=r"short.pth' cannot be read; it may be truncated or not a checkpoint"
    ):
        loaded(tmp_path / 'short.pth')
    with pytest.raises(ValueError, match='must contain a state dict, but contains a list'):
        loaded(save(tmp_path, [1, 2]))


def test_runner_state(tmp_path):
    hub = MessageHub('test_runner_state')
    hub.update_scalar('train/loss', 1.5)
    hub.update_info('iter', 3)
    content = {'message_hub': hub.state_dict(), 'state_dict': backbone_state()}
    new = read_checkpoint(str(save(tmp_path, content)))
    assert new['message_hub']['log_scalars']['train/loss'].current() == 1.5


def test_dictionaries_of_a_config(tmp_path):
    """A dataset's meta information has them where its config has a dictionary in another."""
    meta = dict(classes=('a',), skeleton=ConfigDict({0: dict(name='x', swap=[ConfigDict(y=1)])}))
    path = save(tmp_path, dict(state_dict={}, meta=dict(dataset_meta=meta)))
    # MMEngine compares the two pickles when it resumes.
    assert pickle.dumps(read_checkpoint(path)['meta']['dataset_meta']) == pickle.dumps(meta)


class Scalar(BaseModel):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def forward(self, inputs, mode):
        output = self.layer(inputs)
        return dict(loss=output.square().mean()) if mode == 'loss' else [output]


def stock_runner(work_dir, max_epochs, **settings):
    loader = DataLoader([dict(inputs=torch.ones(1))] * 4, batch_size=2)
    return Runner(
        Scalar(),
        str(work_dir),
        train_dataloader=loader,
        train_cfg=dict(by_epoch=True, max_epochs=max_epochs),
        param_scheduler=dict(type='ExponentialLR', gamma=0.5),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9)),
        custom_hooks=[dict(type='EMAHook')],
        experiment_name=f'{work_dir.name} {max_epochs} {settings}',
        **settings,
    )


def assert_equal(got, want):
    assert type(got) is type(want)
    if isinstance(want, torch.Tensor):
        assert torch.equal(got, want)
    elif isinstance(want, np.ndarray):
        np.testing.assert_array_equal(got, want)
    elif isinstance(want, HistoryBuffer):
        assert_equal(vars(got), vars(want))
    elif isinstance(want, dict):
        assert_equal([*got.items()], [*want.items()])
    elif isinstance(want, list | tuple):
        for a, b in zip(got, want, strict=True):
            assert_equal(a, b)
    else:
        assert got == want


def test_stock_runner(tmp_path):
    """MMEngine loads and resumes what it saved, in a program that names no loader."""
    stock_runner(tmp_path, 1).train()
    path = tmp_path / 'epoch_1.pth'
    saved = torch.load(path, weights_only=False)
    assert {'message_hub', 'optimizer', 'param_schedulers', 'ema_state_dict'} <= saved.keys()
    assert_equal(CheckpointLoader.load_checkpoint(str(path)), saved)
    assert_equal(read_checkpoint(path), saved)

    resumed = stock_runner(tmp_path, 2, resume=True)
    resumed.train()
    assert (resumed.epoch, resumed.iter) == (2, 4)
    assert len(resumed.message_hub.get_scalar('train/loss').data[0]) == 4

    loaded = stock_runner(tmp_path, 3, load_from=str(path))
    loaded.call_hook('before_run')
    loaded.load_or_resume()
    assert_equal(loaded.model.state_dict(), saved['state_dict'])


@pytest.fixture
def safe_loader(monkeypatch):
    monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))
    monkeypatch.setattr(mmengine_checkpoint, 'print_log', mmengine_checkpoint.print_log)
    use_safe_loader()


def test_code_in_a_file_is_not_executed_on_resume(tmp_path, safe_loader):
    stock_runner(tmp_path, 1).train()
    path = tmp_path / 'epoch_1.pth'
    content = torch.load(path, weights_only=False)
    content['meta']['config'] = f'file = open({str(tmp_path / "made")!r}, "w").name'
    torch.save(content, path)
    resumed = stock_runner(tmp_path, 2, resume=True)
    resumed.train()
    assert resumed.epoch == 2
    assert not (tmp_path / 'made').exists()


# ---- addresses ----


class Opens:
    """A pickle of it would create a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, 'w')


@pytest.mark.parametrize('address', ['file:///tmp/x.pth', 'gs://b/x.pth', 'htps://host/x.pth'])
def test_unknown_addresses_are_refused(address, safe_loader):
    words = f"'{address}' must be a path or start with http://"
    for load in LOADERS:
        with pytest.raises(ValueError, match=words):
            load(address)
    with pytest.raises(UserError, match=words):
        check_checkpoint(Config(dict(load_from=address)), whole=False)


@pytest.mark.parametrize('address', ['s3://b/x.pth', 'petrel://b/x.pth', 'cluster:s3://b/x.pth'])
def test_files_from_ceph_are_not_executed(address, safe_loader, monkeypatch, tmp_path):
    seen = []

    def get(uri, backend_args):
        seen.append((uri, backend_args['backend']))
        return path.read_bytes()

    path = tmp_path / 'x.pth'
    monkeypatch.setattr(loading.fileio, 'get', get)
    for load in LOADERS:
        torch.save({'state_dict': {'a': torch.ones(2)}}, path)
        assert torch.equal(load(address, 'cpu')['state_dict']['a'], torch.ones(2))
        torch.save({'extra': Opens(str(tmp_path / 'made'))}, path)
        with pytest.raises(ValueError, match=f'{address}.* needs .*open'):
            load(address, 'cpu')
    assert seen == [(address, 'petrel')] * 4
    assert not (tmp_path / 'made').exists()


def test_paths_may_be_paths(tmp_path):
    state = VMamba(THIN).state_dict()
    torch.save(state, tmp_path / 'x.pth')
    assert read_checkpoint(tmp_path / 'x.pth').keys() == state.keys()
    model = VMamba(THIN, init_cfg=dict(type='Pretrained', checkpoint=tmp_path / 'x.pth'))
    model.init_weights()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize('name', [None, 3, b'x.pth'])
def test_only_paths_and_urls_are_read(name):
    with pytest.raises(TypeError, match='checkpoint must be a path or a URL, but got'):
        read_checkpoint(name)


PROCESS = """
import datetime, os, sys, time
import torch
from mmvmamba.checkpoint import download as module
from mmvmamba.models import loading

rank = int(sys.argv[1])

def fetch(url, path, name, log):
    assert rank == 0, 'a second download'
    if 'fails' in url:
        raise module.RequestError('no such host')
    time.sleep(0.5)  # a process that did not wait would ask too
    torch.save({'a': torch.ones(1)}, path)

def download(url, log):
    assert rank == 0 or os.path.isfile(module.cached_path(url)), 'asked too early'
    return module.download(url, log=log)

module._fetch, loading.download = fetch, download
torch.distributed.init_process_group(
    'gloo',
    init_method='file://' + sys.argv[2],
    rank=rank,
    world_size=2,
    timeout=datetime.timedelta(seconds=240),
)
for outcome in ('works', 'fails'):
    try:
        content = loading.read_checkpoint(f'http://host.invalid/{outcome}.pth')
        print(outcome + ': read', sorted(content), flush=True)
    except ValueError as error:
        print(outcome + ': refused', error, flush=True)
"""


def test_one_process_downloads_and_all_know_how_it_went(tmp_path, monkeypatch):
    """A file that is there, then one that is not."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    command = [sys.executable, '-c', textwrap.dedent(PROCESS)]
    arguments = (str(tmp_path / 'store'),)
    streams = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    processes = [subprocess.Popen([*command, str(r), *arguments], **streams) for r in (0, 1)]
    # Below the group's time limit: nobody waits for it.
    results = [process.communicate(timeout=300) for process in processes]
    for out, err in results:
        assert "works: read ['a']" in out, out + err[-2000:]
        assert re.search('fails: refused .*cannot be downloaded: no such host', out), out + err


def test_url(tmp_path, monkeypatch):
    """A server on this machine stands for the one of the published files."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    state = classifier_state()
    (tmp_path / '#v2cls').mkdir()
    torch.save({'model': state}, tmp_path / '#v2cls' / 'tiny.pth')
    handler = functools.partial(QuietHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f'http://127.0.0.1:{server.server_port}'
        assert_same(loaded(f'{address}/%23v2cls/tiny.pth'), state)
        with pytest.raises(ValueError, match='/none.pth. cannot be downloaded: .*404'):
            loaded(f'{address}/none.pth')
        server.shutdown()
    # The second time it comes from the cache.
    assert_same(loaded(f'{address}/%23v2cls/tiny.pth'), state)
    with pytest.raises(ValueError, match='/other.pth. cannot be downloaded'):
        loaded(f'{address}/other.pth')


@pytest.fixture
def secret_url(tmp_path, monkeypatch):
    """The URL of a backbone's file with a password and a token, and the form in messages."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    save(tmp_path, {'model': classifier_state()})
    handler = functools.partial(QuietHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f'127.0.0.1:{server.server_port}/file.pth'
        yield f'http://user:pa55@{address}?token=pa55', f'http://{address}?...'
        server.shutdown()


def test_no_secret_in_the_log(secret_url, monkeypatch):
    url, shown = secret_url
    lines = log_lines(monkeypatch)
    assert_same(loaded(url), classifier_state())
    count = len(VMamba(THIN).state_dict())
    assert [line.replace(shown, 'URL').split(' (')[0] for line in lines[:1]] == ['downloading URL']
    assert lines[1].startswith(f'downloaded {shown} to ')
    assert lines[2].startswith(f'{shown}: {count - 8} of {count} tensors found')
    assert 'pa55' not in ''.join(lines)


def traceback_of(raised):
    return ''.join(traceback.format_exception(raised.value))


@pytest.mark.parametrize('content', [[1], {'model': {'conv1.weight': torch.ones(1)}}])
def test_no_secret_in_tracebacks(content, secret_url, tmp_path):
    url, shown = secret_url
    save(tmp_path, content)
    for load in (loaded, functools.partial(loaded, prefix='encoder')):
        with pytest.raises(ValueError, match=re.escape(f"'{shown}")) as raised:
            load(url)
        assert 'pa55' not in traceback_of(raised)


def test_a_damaged_file_in_the_cache_is_named(secret_url, tmp_path):
    url, shown = secret_url
    path = loading.local_path(url)
    assert os.path.dirname(os.path.dirname(path)).endswith('cache/hub/checkpoints/mmvmamba')
    with open(path, 'r+b') as file:
        file.truncate(1000)
    with pytest.raises(ValueError, match=re.escape(f"'{shown}, cached in {path}' ")) as raised:
        read_checkpoint(url)
    assert 'pa55' not in traceback_of(raised)
    os.remove(path)
    assert read_checkpoint(url).keys() == {'model'}


@pytest.mark.parametrize(
    'address',
    ['htps://user:pa55@host/x.pth', 'http://u:pa55 /@h/?pa55', 'http://u:pa/55@h'],
)
def test_no_secret_of_a_malformed_address(address, safe_loader):
    for load in LOADERS:
        with pytest.raises(ValueError, match="checkpoint 'h") as raised:
            load(address)
        assert not re.search('55', str(raised.value))


def test_mmengines_loader_prints_no_secret(secret_url, safe_loader, capsys):
    url, shown = secret_url
    assert CheckpointLoader.load_checkpoint(url, logger=None).keys() == {'model'}
    out = capsys.readouterr().out
    assert f'from path: {shown}\n' in out
    assert 'pa55' not in out


def test_load_from_is_downloaded_at_once(secret_url):
    url, shown = secret_url
    cfg = Config(dict(load_from=url))
    check_checkpoint(cfg, whole=False)
    assert cfg.load_from == url
    assert os.path.isfile(cached_path(url))
    with pytest.raises(
        UserError, match=f'{re.escape(shown.replace("file", "other"))}. cannot be downloaded: .*404'
    ) as raised:
        check_checkpoint(Config(dict(load_from=url.replace('file', 'other'))), whole=False)
    assert 'pa55' not in traceback_of(raised)


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


# ---- init_cfg ----


@pytest.mark.parametrize(
    ('init_cfg', 'error', 'words'),
    [
        ('x.pth', TypeError, "dict or a list of dicts, but got 'x.pth'"),
        ([dict(type='Pretrained', checkpoint='x.pth'), 'y.pth'], TypeError, 'or a list of dicts'),
        (dict(checkpoint='x.pth'), ValueError, "must have a type, e.g. 'Pretrained'"),
        (dict(type='Pretrained'), TypeError, 'must be a path or a URL'),
        (dict(type='Pretrained', checkpoint=None), TypeError, 'must be a path or a URL'),
    ],
)
def test_mistakes_in_init_cfg_are_named(init_cfg, error, words):
    with pytest.raises(error, match=words) as raised:
        VMamba(THIN, init_cfg=init_cfg)
    assert 'init_cfg' in str(raised.value)


def test_init_cfg_may_be_a_list(tmp_path):
    """As in MMEngine, files are loaded after everything else."""
    state = VMamba(THIN).state_dict()
    torch.save({k: v for k, v in state.items() if 'outnorm' not in k}, tmp_path / 'x.pth')
    model = VMamba(
        THIN,
        init_cfg=[
            dict(type='Pretrained', checkpoint=str(tmp_path / 'x.pth')),
            dict(type='Constant', layer='LayerNorm', val=3.0, bias=4.0),
        ],
    )
    kind = type(model.outnorm0).__name__
    model.init_cfg[1]['layer'] = kind
    model.init_weights()
    new = model.state_dict()
    loaded = [k for k in state if 'outnorm' not in k]
    assert all(torch.equal(new[k], state[k]) for k in loaded)
    assert new['outnorm0.weight'].eq(3).all()
    assert new['outnorm0.bias'].eq(4).all()
    assert model.is_init
