"""Released files that timm loads: as a file, from a URL and as a checkpoint."""

import functools
import http.server
import re
import sys
import threading
import types

import pytest
import torch

timm = pytest.importorskip('timm')

from timm.models import PretrainedCfg  # noqa: E402

import mmvmamba.timm  # noqa: E402, F401  (registers the models)
from mmvmamba.nn import VMambaNet  # noqa: E402

from ..naming_schemes import convolution_weights, january_names, one_file_names  # noqa: E402

THIN = dict(dims=(8, 16, 24, 32), depths=(1, 1, 2, 1))


def state_of(name='tiny', **kwargs):
    """Of a network with ImageNet's classes, nothing of which is left at its initial value."""
    torch.manual_seed(0)
    state = VMambaNet(name, **THIN, **kwargs).state_dict()
    return {key: value + 0.1 * torch.randn_like(value) for key, value in state.items()}


def save(folder, content):
    torch.save(content, folder / 'file.pth')
    return folder / 'file.pth'


def loaded(path, name='vmamba_tiny', **kwargs):
    torch.manual_seed(99)
    overlay = dict(file=str(path))
    return timm.create_model(
        name, pretrained=True, pretrained_cfg_overlay=overlay, **THIN, **kwargs
    )


def assert_loaded(model, state, but=()):
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key]) == (key not in but), key


@pytest.mark.parametrize('scheme', [dict, january_names, one_file_names, convolution_weights])
@pytest.mark.parametrize('name', ['tiny', 'vanilla_tiny'])
def test_naming_schemes(name, scheme, tmp_path):
    state = state_of(name)
    path = save(tmp_path, {'model': scheme(state)})
    assert_loaded(loaded(path, f'vmamba_{name}'), state)
    model = timm.create_model(f'vmamba_{name}', checkpoint_path=str(path), **THIN)
    assert_loaded(model, state)


@pytest.mark.parametrize('ema', [False, True])
def test_full_training_file_with_yacs_node(ema, tmp_path, monkeypatch):
    """timm takes the moving average if there is one."""
    CfgNode = type('CfgNode', (dict,), {'__module__': 'yacs.config'})
    module = types.ModuleType('yacs.config')
    module.CfgNode = CfgNode
    monkeypatch.setitem(sys.modules, 'yacs', types.ModuleType('yacs'))
    monkeypatch.setitem(sys.modules, 'yacs.config', module)
    state = state_of()
    content = {'model': state, 'config': CfgNode(MODEL=CfgNode(NAME='vssm')), 'epoch': 2}
    if ema:
        content = {**content, 'model_ema': state, 'model': VMambaNet(**THIN).state_dict()}
    path = save(tmp_path, content)
    monkeypatch.delitem(sys.modules, 'yacs.config')
    assert_loaded(loaded(path), state)


def test_other_classes(tmp_path):
    state = state_of()
    model = loaded(save(tmp_path, {'model': state}), num_classes=5)
    head = ('classifier.head.weight', 'classifier.head.bias')
    body = {key: value for key, value in model.state_dict().items() if key not in head}
    assert all(torch.equal(value, state[key]) for key, value in body.items())
    assert model.get_classifier().weight.shape == (5, 32)
    assert_loaded(loaded(save(tmp_path, {'model': state}), num_classes=0), state)


def test_other_channels(tmp_path):
    """timm adds up the first convolution's weights for a gray image."""
    state = state_of()
    model = loaded(save(tmp_path, state), in_chans=1)
    weight = state['patch_embed.0.weight'].sum(1, keepdim=True)
    torch.testing.assert_close(model.state_dict()['patch_embed.0.weight'], weight)
    assert_loaded(model, {**state, 'patch_embed.0.weight': model.patch_embed[0].weight})


@pytest.mark.parametrize('kind', ['classifier', 'detector'])
def test_features_only(kind, tmp_path):
    state = state_of()
    content = {'model': state}
    if kind == 'detector':
        state = state_of(out_indices=(0, 1, 2, 3))
        content = {'state_dict': {f'backbone.{key}': value for key, value in state.items()}}
    model = loaded(save(tmp_path, content), features_only=True, out_indices=(0, 2))
    body = {key.removeprefix('model.'): value for key, value in model.state_dict().items()}
    assert len(body) > 40 and all(torch.equal(value, state[key]) for key, value in body.items())


@pytest.mark.parametrize('kwargs', [{}, dict(num_classes=5), dict(features_only=True)])
@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (
            lambda k: None if 'layers.2.blocks.1.' in k else k,
            r'missing: layers\.2\.blocks\.1\.norm',
        ),
        (lambda k: None if k == 'patch_embed.0.weight' else k, 'missing: patch_embed.0.weight'),
        (lambda k: f'stages.{k}', r'missing: patch_embed\.0\.weight'),
    ],
    ids=['block', 'stem', 'names'],
)
def test_files_that_do_not_match(change, words, kwargs, tmp_path):
    state = {change(key): value for key, value in state_of().items()}
    state.pop(None, None)
    with pytest.raises(ValueError, match=f'does not match VMambaNet.*{words}'):
        loaded(save(tmp_path, {'model': state}), **kwargs)


def test_another_width(tmp_path):
    path = save(
        tmp_path, {'model': VMambaNet(dims=(16, 32, 48, 64), depths=(1, 1, 2, 1)).state_dict()}
    )
    with pytest.raises(ValueError, match=r'dtype mismatch: patch_embed.0.bias \(8,\) instead of'):
        loaded(path, num_classes=5)


def with_nan(state, *keys):
    return {**state, **{key: torch.full_like(state[key], float('nan')) for key in keys}}


HEAD = 'classifier.head.bias'
NON_FINITE = r'^(the checkpoint|the state dict) contains NaN or Inf for VMambaNet: '


@pytest.mark.parametrize(
    ('key', 'kwargs'),
    [
        ('patch_embed.0.weight', {}),
        ('patch_embed.0.weight', dict(in_chans=1)),
        ('layers.0.blocks.0.op.Ds', dict(num_classes=5)),
        ('layers.0.blocks.0.op.Ds', dict(features_only=True)),
        (HEAD, {}),
    ],
)
def test_values_that_are_not_finite(key, kwargs, tmp_path):
    path = save(tmp_path, {'model': with_nan(state_of(), key)})
    with pytest.raises(ValueError, match=f'{NON_FINITE}{key} .*probably diverged'):
        loaded(path, **kwargs)
    if not kwargs:
        with pytest.raises(ValueError, match=f'{NON_FINITE}{key} .*probably diverged'):
            timm.create_model('vmamba_tiny', checkpoint_path=str(path), **THIN)


def test_values_of_a_dropped_head_do_not_matter(tmp_path):
    model = loaded(save(tmp_path, {'model': with_nan(state_of(), HEAD)}), num_classes=5)
    assert all(value.isfinite().all() for value in model.state_dict().values())


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (
            lambda state: {**state, 'head.bias': state[HEAD]},
            "'classifier.head.bias' and 'head.bias'",
        ),
        (
            lambda state: {**state, 'patch_embed.0.weight': torch.ones(4, 3, 3, 3).to(torch.int8)},
            'patch_embed.0.weight int8 instead of float32',
        ),
        (
            lambda state: {**state, 'patch_embed.0.bias': torch.ones(4).to_sparse()},
            "tensor 'patch_embed.0.bias' is a sparse tensor",
        ),
    ],
    ids=['two names', 'kind', 'sparse'],
)
def test_tensors_that_are_refused(change, words, tmp_path):
    path = save(tmp_path, {'model': change(state_of())})
    with pytest.raises(ValueError, match=words):
        loaded(path)


def test_backbone_for_a_classifier(tmp_path):
    """With as many classes as ImageNet has, timm expects a classifier in the file."""
    state = {f'backbone.{key}': value for key, value in state_of(out_indices=(3,)).items()}
    path = save(tmp_path, {'state_dict': state})
    with pytest.raises(RuntimeError, match=r'Missing key.*classifier\.norm\.weight'):
        loaded(path)


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def test_url(tmp_path, monkeypatch):
    """A server on this machine stands for the one of the released files."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    state = state_of()
    (tmp_path / '#v2cls').mkdir()
    torch.save({'model': state}, tmp_path / '#v2cls' / 'tiny.pth')
    handler = functools.partial(QuietHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f'http://127.0.0.1:{server.server_port}/%23v2cls/tiny.pth'
        cfg = dict(url=url)
        models = [
            timm.create_model('vmamba_tiny', pretrained=True, pretrained_cfg_overlay=cfg, **THIN),
            timm.create_model('vmamba_tiny', pretrained=url, **THIN),
        ]
        server.shutdown()
    for model in models:
        assert_loaded(model, state)


@pytest.mark.parametrize('form', [str, lambda path: path], ids=['str', 'Path'])
def test_a_file_by_its_path(form, tmp_path):
    state = state_of()
    path = save(tmp_path, {'model': state})
    assert_loaded(timm.create_model('vmamba_tiny', pretrained=form(path), **THIN), state)
    with pytest.raises(FileNotFoundError, match='nowhere.pth'):
        timm.create_model('vmamba_tiny', pretrained='nowhere.pth', **THIN)


def test_a_folder_is_named_as_in_timm():
    words = "to load a folder, call timm.create_model.'local-dir:FOLDER', pretrained=True."
    with pytest.raises(ValueError, match=words):
        timm.create_model('vmamba_tiny', pretrained='local-dir:folder')


@pytest.mark.parametrize('scheme', ['s3', 'HTTPS'])
def test_messages_have_no_secrets(scheme, monkeypatch):
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    url = f'{scheme}://key:secret@127.0.0.1:1/x.pth?token=abc'
    with pytest.raises((FileNotFoundError, ValueError), match='x.pth') as caught:
        timm.create_model('vmamba_tiny', pretrained=url)
    assert not re.search('secret|abc', str(caught.value))


@pytest.mark.parametrize('form', [dict, PretrainedCfg])
def test_other_settings_name_the_weights(form, tmp_path, monkeypatch):
    monkeypatch.setattr(mmvmamba.timm.models, 'released_file', None)
    state = state_of()
    cfg = form(file=str(save(tmp_path, state)), num_classes=1000)
    model = timm.create_model('vmamba_tiny', pretrained=True, pretrained_cfg=cfg, **THIN)
    assert_loaded(model, state)


def test_released_file(tmp_path, monkeypatch):
    """It comes from where `mmvmamba.create_model` takes it."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    state = state_of()
    (tmp_path / 'hub' / 'checkpoints').mkdir(parents=True)
    torch.save(state, tmp_path / 'hub' / 'checkpoints' / 'vssm1_tiny_0230s_ckpt_epoch_264.pth')
    for name in ('vmamba_tiny', 'vmamba_tiny.in1k'):
        assert_loaded(timm.create_model(name, pretrained=True, **THIN), state)
    monkeypatch.setattr(mmvmamba.timm.models, 'released_file', None)
    assert_loaded(loaded(save(tmp_path, {'model': state})), state)
