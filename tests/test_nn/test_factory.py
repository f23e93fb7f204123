"""Networks by timm's names, with torch alone, and the files that they take."""

import argparse
import logging
import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

import mmvmamba
from mmvmamba.nn import ARCHS, VMambaNet

from ..naming_schemes import january_names
from ..servers import response, serve

DIMS = (8, 16, 24, 32)
THIN = dict(dims=DIMS, depths=(1, 1, 2, 1))
NAMES = pytest.mark.parametrize('name', [f'vmamba_{arch}' for arch in ARCHS])


def thin(name='vmamba_tiny', seed=0, **kwargs):
    torch.manual_seed(seed)
    return mmvmamba.create_model(name, **THIN, **kwargs)


def image():
    return torch.randn(1, 3, 32, 64, generator=torch.Generator().manual_seed(1))


def noisy_state(**kwargs):
    """The state dict of a network with every initial value changed."""
    state = thin(seed=3, **kwargs).state_dict()
    return {key: value + 0.1 * torch.randn_like(value) for key, value in state.items()}


def save(folder, content):
    torch.save(content, folder / 'file.pth')
    return folder / 'file.pth'


@NAMES
def test_classifiers(name):
    net, want = thin(name, num_classes=5), VMambaNet(name.removeprefix('vmamba_'), **THIN)
    assert net.settings == want.settings
    assert net(image()).shape == (1, 5)
    assert thin(name, num_classes=0, in_chans=1)(torch.zeros(2, 1, 32, 32)).shape == (2, 32)


@NAMES
@pytest.mark.parametrize('indices', [None, (0,), (-1,), (1, 3), (3, 0)], ids=str)
def test_backbones(name, indices):
    stages = [i % 4 for i in indices] if indices else range(4)
    none = dict(num_classes=0, global_pool='')  # as callers of timm write it
    net = thin(name, features_only=True, out_indices=indices, **none).eval()
    maps = net(image())
    assert [y.shape for y in maps] == [(1, DIMS[i], 8 // 2**i, 16 // 2**i) for i in stages]
    plain = net.forward_intermediates(image(), output_fmt='NHWC', intermediates_only=True)
    for i, y in zip(stages, maps, strict=True):
        want = F.layer_norm(plain[i], (DIMS[i],)).permute(0, 3, 1, 2)
        torch.testing.assert_close(y, want, rtol=1e-4, atol=1e-5)


def test_all_stages_of_an_architecture_with_three():
    net = mmvmamba.create_model(
        'vmamba_tiny', features_only=True, dims=(8, 16, 24), depths=(1, 1, 1)
    )
    assert [y.shape[1] for y in net(image())] == [8, 16, 24]


@pytest.mark.parametrize(
    ('kwargs', 'error', 'words'),
    [
        (dict(model_name='vmamba_huge'), ValueError, "model_name must be one of .*'vmamba_huge'"),
        (dict(model_name=dict(dims=(8,))), TypeError, "model_name must be a str, but got {'dims'"),
        (dict(model_name='tiny'), ValueError, "model_name must be one of .*'tiny'"),
        (dict(model_name='vmamba_tinny'), ValueError, "'vmamba_tinny'; did you mean vmamba_tiny "),
        (dict(model_name='tiny'), ValueError, "'tiny'; did you mean vmamba_tiny "),
        (dict(pretrained=0), TypeError, 'pretrained must be a bool, a file or a URL, but got 0'),
        (dict(pretrained='http://a b/x.pth'), ValueError, "'http://a%20b/x.pth' cannot be downl"),
        (dict(pretrained=''), FileNotFoundError, "'' does not exist"),
        (dict(pretrained='nowhere.pth'), FileNotFoundError, "'nowhere.pth' does not exist"),
        (dict(out_indices=(0,)), ValueError, r'out_indices requires features_only=True.*\(0,\)'),
        (
            dict(features_only=True, out_indices=(4,)),
            ValueError,
            r'must be one or more stages in \[-4',
        ),
        (dict(num_classes=-1), ValueError, 'num_classes must be at least 0'),
        (dict(num_classes='5'), TypeError, 'num_classes must be of type int'),
        (dict(global_pool='sum'), ValueError, "global_pool must be one of .*'sum'"),
        (
            dict(features_only=True, num_classes=10),
            ValueError,
            'num_classes must not be set for a backbone, which has no classifier, but got 10',
        ),
        (dict(features_only=True, global_pool='max'), ValueError, 'global_pool must not be set'),
        (dict(in_channels=4), TypeError, 'in_channels is called in_chans here: pass in_chans=4'),
        (dict(width=3), ValueError, r"unknown settings \['width'\]"),
    ],
)
def test_bad_arguments(kwargs, error, words):
    with pytest.raises(error, match=words):
        mmvmamba.create_model(**{'model_name': 'vmamba_tiny', **THIN, **kwargs})


@pytest.mark.parametrize('features_only', [False, True])
@pytest.mark.parametrize(
    ('kwargs', 'error', 'words'),
    [
        (dict(drop_rate=1.0), ValueError, 'drop_rate must be in'),
        (dict(dims=8), TypeError, 'dims must be a sequence of int, but got 8'),
        (dict(dims=(), depths=()), ValueError, 'dims and depths must have the same length'),
    ],
)
def test_bad_arguments_of_either_form(features_only, kwargs, error, words):
    with pytest.raises(error, match=words):
        mmvmamba.create_model('vmamba_tiny', features_only=features_only, **{**THIN, **kwargs})


def test_no_other_attribute():
    with pytest.raises(AttributeError, match="'VMamba'; the class is mmvmamba.models.VMamba"):
        mmvmamba.VMamba  # noqa: B018
    with pytest.raises(AttributeError, match="'mmvmamba' has no attribute 'create_models'"):
        mmvmamba.create_models  # noqa: B018


@pytest.mark.parametrize('wrap', [dict, lambda s: {'model': january_names(s)}], ids=['new', 'old'])
def test_released_classifier(wrap, tmp_path):
    state = noisy_state(num_classes=5)
    path = save(tmp_path, wrap(state))
    net = thin(pretrained=path, num_classes=5)
    for key, value in net.state_dict().items():
        assert torch.equal(value, state[key]), key
    backbone = thin(pretrained=str(path), features_only=True, out_indices=(2,))
    assert torch.equal(backbone.layers[3].blocks[0].op.Ds, state['layers.3.blocks.0.op.Ds'])
    features = thin(pretrained=path, num_classes=0)
    assert torch.equal(features.classifier.norm.weight, state['classifier.norm.weight'])


def test_other_classes(tmp_path, caplog):
    state = noisy_state(num_classes=5)
    fresh = thin(num_classes=3)
    with caplog.at_level(logging.INFO, 'mmvmamba'):
        net = thin(pretrained=save(tmp_path, state), num_classes=3)
    assert (
        f'{len(state) - 2} of {len(state)} tensors found; missing: classifier.head' in caplog.text
    )
    for key, value in net.state_dict().items():
        source = fresh.state_dict() if 'classifier.head' in key else state
        assert torch.equal(value, source[key]), key


def test_detector(tmp_path):
    state = noisy_state(features_only=True)
    file = {f'backbone.{key}': value for key, value in state.items()}
    path = save(tmp_path, {'meta': {}, 'state_dict': {**file, 'neck.weight': torch.zeros(2)}})
    net = thin(pretrained=path, features_only=True, out_indices=(1, 2))
    for key, value in net.state_dict().items():
        assert torch.equal(value, state[key]), key
    with pytest.raises(ValueError, match=r'does not match VMambaNet.*missing: classifier\.norm'):
        thin(pretrained=path)


def test_image_classifier(tmp_path):
    """A file by mmpretrain's names: the norm is the backbone's, the head is not."""
    state = noisy_state(num_classes=5)
    file = {'data_preprocessor.mean': torch.zeros(3)}
    for key, value in state.items():
        if key.startswith('classifier.head.'):
            file[key.replace('classifier.head.', 'head.fc.')] = value
        else:
            file['backbone.' + key.replace('classifier.norm.', 'outnorm3.')] = value
    path = save(tmp_path, {'meta': {}, 'state_dict': file})
    net = thin(pretrained=path, num_classes=5)
    for key, value in net.state_dict().items():
        assert torch.equal(value, state[key]), key
    backbone = thin(pretrained=path, features_only=True, out_indices=(3,))
    assert torch.equal(backbone.outnorm3.weight, state['classifier.norm.weight'])


def without_a_block(state):
    return {key: value for key, value in state.items() if 'layers.2.blocks.1.' not in key}


def without_a_head(state):
    return {key: value for key, value in state.items() if 'classifier.head' not in key}


@pytest.mark.parametrize('classes', [5, 3])
@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (without_a_block, r'missing: layers\.2\.blocks\.1\.norm\.weight'),
        (without_a_head, r'missing: classifier\.head\.weight, classifier\.head\.bias;'),
        (lambda state: {'fc.weight': torch.zeros(2)}, r'0 of \d+ tensors found'),
        (lambda state: {**state, 'patch_embed.0.bias': torch.zeros(9)}, r'\(9,\) instead of \(4,'),
    ],
)
def test_what_does_not_fit(change, words, classes, tmp_path):
    path = save(tmp_path, {'model': change(noisy_state(num_classes=5))})
    with pytest.raises(ValueError, match=f'file.pth. does not match VMambaNet: .*{words}'):
        thin(pretrained=path, num_classes=classes)


def first_value(key, value):
    def change(state):
        tensor = state[key].clone()
        tensor.view(-1)[0] = value
        return {**state, key: tensor}

    return change


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (first_value('layers.1.blocks.0.op.Ds', float('nan')), r'NaN or Inf for .*Ds \(1 of \d+ '),
        (first_value('classifier.head.bias', float('-inf')), r'head\.bias \(1 of 5 values\)\. The'),
        (
            lambda state: {**state, 'head.bias': torch.ones(5)},
            "head.bias' and 'head.bias' both map to",
        ),
        (lambda state: {**state, 'module.norm.bias': torch.ones(32)}, "and 'norm.bias' both map"),
        (
            lambda state: {**state, 'patch_embed.0.bias': torch.ones(4, dtype=torch.int8)},
            r'patch_embed\.0\.bias int8 instead of float32',
        ),
        (
            lambda state: {**state, 'patch_embed.0.bias': torch.ones(4, dtype=torch.complex64)},
            r'patch_embed\.0\.bias complex64 instead of float32',
        ),
    ],
)
def test_values_and_names_that_do_not_fit(change, words, tmp_path):
    path = save(tmp_path, {'model': change(noisy_state(num_classes=5))})
    with pytest.raises(ValueError, match=f"^checkpoint '.*file.pth' .*{words}"):
        thin(pretrained=path, num_classes=5)


def test_a_model_and_a_state_dict(tmp_path):
    state = noisy_state(num_classes=5)
    path = save(tmp_path, {'model': state, 'state_dict': state})
    with pytest.raises(ValueError, match="contains both a 'state_dict' and a 'model'"):
        thin(pretrained=path, num_classes=5)


def test_files_of_other_train_scripts(tmp_path):
    """timm's saves its arguments; MMEngine's runner its losses."""
    state = noisy_state(num_classes=5)
    content = {'state_dict': state, 'args': argparse.Namespace(lr=0.1, opt='adamw'), 'epoch': 3}
    net = thin(pretrained=save(tmp_path, content), num_classes=5)
    assert torch.equal(net.classifier.head.bias, state['classifier.head.bias'])
    pytest.importorskip('mmengine')
    from mmengine.logging import MessageHub

    hub = MessageHub('test_files_of_other_train_scripts')
    hub.update_scalar('train/loss', 1.5)
    path = save(tmp_path, {'state_dict': state, 'message_hub': hub.state_dict()})
    assert torch.equal(
        thin(pretrained=path, num_classes=5).classifier.head.bias, state['classifier.head.bias']
    )


def test_classes_of_a_file(tmp_path):
    """Without num_classes a classifier has those of the file, by name where the file has names."""
    state = noisy_state(num_classes=2)
    content = {'meta': {'dataset_meta': {'classes': ('cat', 'dog')}}, 'state_dict': state}
    path = save(tmp_path, content)
    net = thin(pretrained=path)
    assert (net.num_classes, net.class_names) == (2, ('cat', 'dog'))
    assert torch.equal(net.classifier.head.weight, state['classifier.head.weight'])
    assert thin(pretrained=path, num_classes=3).class_names is None
    assert thin(pretrained=path, features_only=True).class_names is None
    net.reset_classifier(2)
    assert net.class_names is None
    net = thin(pretrained=save(tmp_path, january_names(state)))
    assert (net.num_classes, net.class_names) == (2, None)
    assert thin().num_classes == 1000
    del state['classifier.head.weight']
    with pytest.raises(ValueError, match=r'missing: classifier\.head\.weight'):
        thin(pretrained=save(tmp_path, state))


def test_url(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    state = noisy_state(num_classes=5)
    with serve(response(save(tmp_path, state).read_bytes())) as server:
        url = f'http://user:secret@{server.address}/x.pth'
        net = thin(pretrained=url)
        assert thin(pretrained=url.replace('http', 'HTTP', 1)).num_classes == 5
        with pytest.raises(ValueError, match=r"'http://127.*/x.pth, cached in .*x.pth' does not"):
            mmvmamba.create_model('vmamba_tiny', pretrained=url)
    assert len(server.requests) == 2  # the cache goes by the spelling
    assert torch.equal(net.classifier.head.bias, state['classifier.head.bias'])


def test_pretrained_true(tmp_path, monkeypatch):
    """A file under the released name in torch.hub's folder stands for a download."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    state = noisy_state(num_classes=1000)
    (tmp_path / 'hub' / 'checkpoints').mkdir(parents=True)
    released = tmp_path / 'hub' / 'checkpoints' / 'vssm1_tiny_0230s_ckpt_epoch_264.pth'
    torch.save({'model': state}, released)
    for name in ('vmamba_tiny', 'vmamba_tiny_s1l8'):
        net = thin(name, pretrained=True)
        assert torch.equal(net.classifier.head.bias, state['classifier.head.bias'])
    assert thin(pretrained=True, num_classes=5).num_classes == 5


def test_list_models():
    names = mmvmamba.list_models()
    assert len(names) == 12 and names == sorted(names)
    assert mmvmamba.list_models('*small*') == [name for name in names if 'small' in name]
    assert mmvmamba.list_models('resnet*') == []


def test_torch_is_enough(tmp_path):
    path = save(tmp_path, {'model': noisy_state(num_classes=5)})
    code = f"""
import sys, torch, mmvmamba
thin = dict(dims={DIMS}, depths=(1, 1, 2, 1))
x = torch.zeros(1, 3, 32, 32)
net = mmvmamba.create_model('vmamba_tiny', pretrained={str(path)!r}, num_classes=5, **thin)
maps = mmvmamba.create_model('vmamba_tiny', features_only=True, out_indices=(0, -1), **thin)(x)
net.forward_intermediates(x), net.group_matcher(), net.reset_classifier(3)
print(*net(x).shape, len(maps))
print([m for m in sys.modules if m.split('.')[0] in ('timm', 'mmengine', 'mmcv', 'torchvision')])
"""
    result = subprocess.run(
        [sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True, timeout=600
    )
    assert result.stdout.splitlines() == ['1 3 2', '[]'], result.stdout + result.stderr


@pytest.mark.parametrize('features_only', [False, True])
def test_files_for_other_image_channels(features_only, tmp_path, caplog):
    state = noisy_state(num_classes=5)
    file = save(tmp_path, {'model': january_names(state)})
    with caplog.at_level(logging.INFO):
        net = thin(pretrained=file, in_chans=12, features_only=features_only)
    weight = net.state_dict()['patch_embed.0.weight']
    torch.testing.assert_close(weight, state['patch_embed.0.weight'].repeat(1, 4, 1, 1) / 4)
    (record,) = caplog.records
    assert 'patch_embed.0.weight adapted from 3 to 12 image channels' in record.getMessage()
    file = save(tmp_path, {'model': noisy_state(num_classes=5, in_chans=4)})
    with pytest.raises(ValueError, match=r'patch_embed\.0\.weight \(4, 4, 3, 3\) instead of'):
        thin(pretrained=file, in_chans=12, features_only=features_only)
