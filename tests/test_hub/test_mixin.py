"""Saving, downloads from a cache and uploads through huggingface_hub's mixin, offline."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch

huggingface_hub = pytest.importorskip('huggingface_hub')
pytest.importorskip('safetensors')

import mmvmamba  # noqa: E402
from mmvmamba.hub.mixin import HubModel  # noqa: E402
from mmvmamba.nn import VMambaNet  # noqa: E402

THIN = dict(dims=(8, 16, 24, 32), depths=(1, 1, 1, 1))
COMMIT = 'c' * 40


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)


def network(**kwargs):
    return VMambaNet('tiny', **THIN, **kwargs)


def assert_same(net, want):
    assert type(net) is VMambaNet and net.settings == want.settings
    for key, value in want.state_dict().items():
        assert torch.equal(net.state_dict()[key], value), key


@pytest.fixture
def cache(tmp_path):
    """The folder of huggingface_hub after a download of owner/name."""
    net = network(num_classes=3)
    root = tmp_path / 'models--owner--name'
    net.save_pretrained(root / 'snapshots' / COMMIT)
    for name in ('main', 'v1'):
        (root / 'refs').mkdir(exist_ok=True)
        (root / 'refs' / name).write_text(COMMIT)
    return SimpleNamespace(net=net, folder=tmp_path, files=root / 'snapshots' / COMMIT)


def test_mixin():
    assert issubclass(HubModel, huggingface_hub.PyTorchModelHubMixin)
    assert not issubclass(VMambaNet, huggingface_hub.ModelHubMixin)


def test_save_and_load(tmp_path):
    net = network(num_classes=3)
    assert net.save_pretrained(tmp_path / 'new') is None
    names = {path.name for path in (tmp_path / 'new').iterdir()}
    assert names == {'README.md', 'config.json', 'model.safetensors'}
    loaded = VMambaNet.from_pretrained(tmp_path / 'new')
    assert not loaded.training
    assert_same(loaded, net)


def test_saved_again(tmp_path):
    """Keep an edited card, and replace config and weights."""
    network(num_classes=3).save_pretrained(tmp_path)
    (tmp_path / 'README.md').write_text('edited')
    net = network(num_classes=4)
    net.save_pretrained(str(tmp_path))
    assert_same(VMambaNet.from_pretrained(str(tmp_path)), net)
    assert (tmp_path / 'README.md').read_text() == 'edited'


def test_an_error_changes_nothing(tmp_path):
    net = network(num_classes=3)
    net.save_pretrained(tmp_path)
    pruned = network()
    pruned.prune_intermediate_layers((0, 1))
    with pytest.raises(ValueError, match='must not change after it is built'):
        pruned.save_pretrained(tmp_path)
    net.class_names = ('a', 'b')
    with pytest.raises(ValueError, match='there must be 3 class names, but got 2'):
        net.save_pretrained(tmp_path)
    assert_same(VMambaNet.from_pretrained(tmp_path), net)


def test_card_arguments(tmp_path):
    network().save_pretrained(tmp_path, model_card_kwargs=dict(license='apache-2.0', notes='Mine.'))
    card = huggingface_hub.ModelCard.load(tmp_path / 'README.md')
    assert card.data.license == 'apache-2.0' and 'Mine.' in card.text


@pytest.mark.parametrize('revision', [None, 'v1', COMMIT])
def test_from_the_cache(revision, cache):
    net = VMambaNet.from_pretrained('owner/name', cache_dir=cache.folder, revision=revision)
    assert_same(net, cache.net)
    net = VMambaNet.from_pretrained(
        'owner/name', cache_dir=cache.folder, local_files_only=True, num_classes=5, in_chans=1
    )
    assert (net.num_classes, net.in_chans, net.training) == (5, 1, False)


def test_create_model(cache):
    for name in ('hf-hub:owner/name', 'hf-hub:owner/name@v1'):
        net = mmvmamba.create_model('vmamba_tiny', name, cache_dir=cache.folder)
        assert net.training and net.num_classes == 3
    net = VMambaNet.from_pretrained(name, cache_dir=cache.folder)
    assert not net.training and net.num_classes == 3
    net = mmvmamba.create_model('vmamba_tiny', name, features_only=True, cache_dir=cache.folder)
    assert net.out_indices == (0, 1, 2, 3)
    with pytest.raises(ValueError, match="model_name must be 'vmamba_tiny'"):
        mmvmamba.create_model('vmamba_small', name, cache_dir=cache.folder)


def test_without_safetensors(cache):
    """Older repositories have a pickle file alone, which is read as any other."""
    (cache.files / 'model.safetensors').unlink()
    torch.save(cache.net.state_dict(), cache.files / 'pytorch_model.bin')
    assert_same(VMambaNet.from_pretrained('owner/name', cache_dir=cache.folder), cache.net)


def test_not_in_the_cache(cache):
    errors = (OSError, huggingface_hub.errors.HfHubHTTPError)
    for name in ('owner/other', 'other'):
        with pytest.raises(errors, match='config.json|offline|cache'):
            VMambaNet.from_pretrained(name, cache_dir=cache.folder)
    (cache.files / 'model.safetensors').unlink()
    with pytest.raises(huggingface_hub.errors.LocalEntryNotFoundError):
        VMambaNet.from_pretrained('owner/name', cache_dir=cache.folder)


def test_malformed_config_on_the_hub(cache):
    (cache.files / 'config.json').write_text(json.dumps({'architecture': 'resnet50'}))
    with pytest.raises(ValueError, match="config.json' is not a VMamba config"):
        VMambaNet.from_pretrained('owner/name', cache_dir=cache.folder)


def test_push_to_hub(tmp_path, monkeypatch):
    calls = {}

    class Api:
        def __init__(self, token):
            calls['token'] = token

        def create_repo(self, repo_id, private, exist_ok):
            calls.update(private=private, exist_ok=exist_ok)
            return SimpleNamespace(repo_id=repo_id)

        def upload_folder(self, folder_path, **kwargs):
            calls.update(kwargs)
            shutil.copytree(folder_path, tmp_path / 'uploaded')
            return 'url'

    monkeypatch.setattr(huggingface_hub.hub_mixin, 'HfApi', Api)
    net = network(out_indices=(0, 1, 2, 3))
    assert net.push_to_hub('owner/name', private=True, token='t', branch='b') == 'url'
    assert (calls['repo_id'], calls['token'], calls['revision']) == ('owner/name', 't', 'b')
    assert calls['private'] and calls['exist_ok']
    names = {path.name for path in (tmp_path / 'uploaded').iterdir()}
    assert names == {'README.md', 'config.json', 'model.safetensors'}
    assert_same(VMambaNet.from_pretrained(tmp_path / 'uploaded'), net)
    shutil.rmtree(tmp_path / 'uploaded')
    assert net.save_pretrained(tmp_path / 'x', push_to_hub=True, repo_id='owner/other') == 'url'
    assert calls['repo_id'] == 'owner/other'
    with pytest.raises(huggingface_hub.errors.HFValidationError):
        net.push_to_hub('not/a/name')
