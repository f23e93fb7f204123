"""Folders, written and read: every bit comes back, and what is damaged is named."""

import json
import logging
import shutil

import pytest
import torch

import mmvmamba
from mmvmamba.hub import load_folder, write_folder
from mmvmamba.nn import ARCHS, VMambaNet

pytest.importorskip('safetensors')

THIN = dict(dims=(8, 16, 24, 32), depths=(1, 1, 1, 1))
NINE = list(dict.fromkeys(next(n for n in ARCHS if ARCHS[n] == arch) for arch in ARCHS.values()))


def noisy(net):
    """A network with every initial value changed."""
    torch.manual_seed(0)
    with torch.no_grad():
        for value in net.state_dict().values():
            if value.is_floating_point():
                value.add_(0.1 * torch.randn_like(value))
    return net


def saved(folder, arch='tiny', **kwargs):
    net = noisy(VMambaNet(arch, **{**THIN, **kwargs}))
    write_folder(net, folder)
    return net


def images(channels=3, side=32):
    return torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(1))


def assert_equal(net, want, x):
    assert net.settings == want.settings and net.out_indices == want.out_indices
    state = want.state_dict()
    assert net.state_dict().keys() == state.keys()
    for key, value in net.state_dict().items():
        assert value.dtype == state[key].dtype and torch.equal(value, state[key]), key
    with torch.no_grad():
        given, expected = net.eval()(x), want.eval()(x)
    for a, b in zip(given, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize('indices', [None, (0, 1, 2, 3), (3, 1)], ids=str)
@pytest.mark.parametrize('arch', NINE)
def test_bits_come_back(arch, indices, tmp_path):
    net = saved(tmp_path, arch, num_classes=5, out_indices=indices)
    assert_equal(load_folder(tmp_path), net, images())
    assert {path.name for path in tmp_path.iterdir()} == {'config.json', 'model.safetensors'}


@pytest.mark.slow
@pytest.mark.parametrize('indices', [None, (0, 1, 2, 3)], ids=['classifier', 'backbone'])
@pytest.mark.parametrize('arch', NINE)
def test_bits_of_full_size_come_back(arch, indices, tmp_path):
    net = noisy(VMambaNet(arch, out_indices=indices))
    write_folder(net, tmp_path)
    assert json.loads((tmp_path / 'config.json').read_text())['model_args'].keys() <= {
        'features_only',
        'out_indices',
    }
    assert_equal(load_folder(tmp_path), net, images(side=64))
    shutil.rmtree(tmp_path)  # up to 350 MB


@pytest.mark.parametrize(
    'settings',
    [
        dict(in_channels=4, scan='cascade', norm='bn', global_pool='max'),
        dict(pos_embed_size=64, drop_path_rate=0.1, num_classes=0),
    ],
    ids=str,
)
def test_settings_come_back(settings, tmp_path):
    net = saved(tmp_path, **settings)
    assert_equal(load_folder(tmp_path), net, images(net.in_channels))


def test_overrides(tmp_path, caplog):
    net = saved(tmp_path, num_classes=5)
    state = net.state_dict()
    head = load_folder(tmp_path, num_classes=10, drop_path_rate=0.0)
    assert head.num_classes == 10 and head.classifier.head.weight.shape == (10, 32)
    assert torch.equal(head.classifier.norm.weight, state['classifier.norm.weight'])
    assert head.settings.drop_path_rate == 0.0
    four = load_folder(tmp_path, in_chans=4)
    first = state['patch_embed.0.weight']
    want = torch.cat([first, first[:, :1]], dim=1) * 0.75
    torch.testing.assert_close(four.patch_embed[0].weight, want)
    assert torch.equal(four.classifier.head.weight, state['classifier.head.weight'])
    with caplog.at_level(logging.INFO, 'mmvmamba'):
        backbone = load_folder(tmp_path, out_indices=(1, -1))
    assert 'missing: outnorm1.weight' in caplog.text and 'no checksums' not in caplog.text
    assert [y.shape[1] for y in backbone(images())] == [16, 32]
    assert load_folder(tmp_path, features_only=True).out_indices == (0, 1, 2, 3)
    with pytest.raises(ValueError, match=r"unknown settings \['classes'\]"):
        load_folder(tmp_path, classes=3)


def test_overrides_of_a_backbone(tmp_path):
    net = saved(tmp_path, out_indices=(1, 2, 3))
    one = load_folder(tmp_path, out_indices=(2,))
    with torch.no_grad():
        assert torch.equal(one.eval()(images())[0], net.eval()(images())[1])
    assert load_folder(tmp_path, features_only=True).out_indices == (1, 2, 3)


@pytest.mark.parametrize('indices', [None, (0, 1, 2, 3)], ids=['classifier', 'backbone'])
def test_backbones_have_no_classes(indices, tmp_path):
    saved(tmp_path, out_indices=indices)
    assert load_folder(tmp_path, features_only=True, num_classes=0, global_pool='').out_indices
    for given in (dict(num_classes=10), dict(global_pool='max')):
        with pytest.raises(ValueError, match=f'{[*given][0]} must not be set for a backbone'):
            load_folder(tmp_path, features_only=indices is None, **given)


def test_class_names(tmp_path):
    net = VMambaNet('tiny', num_classes=2, **THIN)
    net.class_names = ('cat', 'dog')
    write_folder(net, tmp_path)
    assert load_folder(tmp_path).class_names == ('cat', 'dog')
    assert load_folder(tmp_path, num_classes=3).class_names is None
    assert load_folder(tmp_path, features_only=True).class_names is None


@pytest.mark.parametrize('kwargs', [{}, dict(num_classes=3), dict(in_chans=1)], ids=str)
def test_create_model(kwargs, tmp_path):
    net = saved(tmp_path, num_classes=5)
    model = mmvmamba.create_model('vmamba_tiny_s1l8', f'local-dir:{tmp_path}', **kwargs)
    assert model.training and model.settings == net.settings
    assert model.num_classes == kwargs.get('num_classes', 5)
    assert model.in_chans == kwargs.get('in_chans', 3)
    kwargs.pop('num_classes', None)
    maps = mmvmamba.create_model(
        'vmamba_tiny', f'local-dir:{tmp_path}', features_only=True, out_indices=(1,), **kwargs
    )
    assert maps.out_indices == (1,)


def test_create_model_asks_for_the_right_name(tmp_path):
    saved(tmp_path)
    with pytest.raises(ValueError, match="model_name must be 'vmamba_tiny', the model in"):
        mmvmamba.create_model('vmamba_base', f'local-dir:{tmp_path}')
    with pytest.raises(ValueError, match="pretrained must be 'local-dir:"):
        mmvmamba.create_model('vmamba_tiny', str(tmp_path))


def test_other_classes_of_networks(tmp_path):
    pytest.importorskip('mmengine')
    from mmvmamba.models import VMamba

    net = saved(tmp_path, out_indices=(0, 1, 2, 3))
    backbone = load_folder(tmp_path, VMamba)
    assert type(backbone) is VMamba
    assert_equal(backbone, net, images())


def test_what_is_missing_or_damaged(tmp_path):
    with pytest.raises(FileNotFoundError, match="folder '.*none' does not exist"):
        load_folder(tmp_path / 'none')
    net = saved(tmp_path, num_classes=5)
    weights, config = tmp_path / 'model.safetensors', tmp_path / 'config.json'
    good, settings = weights.read_bytes(), config.read_text()
    with pytest.raises(FileNotFoundError, match=r'model.safetensors. does not exist or is not a f'):
        load_folder(weights)
    weights.write_bytes(good[:-100])
    with pytest.raises(ValueError, match=r'model.safetensors. cannot be read; it may be trunc'):
        load_folder(tmp_path)
    weights.write_bytes(b'')
    with pytest.raises(ValueError, match=r'model.safetensors. cannot be read'):
        load_folder(tmp_path)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match='has neither model.safetensors nor pytorch_model'):
        load_folder(tmp_path)
    weights.write_bytes(good)
    config.write_text(settings.replace('[\n      8,', '[\n      12,'))
    with pytest.raises(ValueError, match=r'does not match VMambaNet.*\(8,\) instead of \(12,\)'):
        load_folder(tmp_path)
    config.unlink()
    with pytest.raises(FileNotFoundError, match='has no config.json'):
        load_folder(tmp_path)
    with torch.no_grad():
        net.layers[0].blocks[0].norm.weight[0] = float('nan')
    write_folder(net, tmp_path)
    with pytest.raises(ValueError, match=r'model.safetensors. contains NaN or Inf'):
        load_folder(tmp_path)


@pytest.mark.parametrize(
    ('settings', 'words'),
    [
        (dict(dims=[10**7] * 4), r'\(4,\) instead of \(5000000,\)'),
        (dict(depths=[10**7] * 4), 'but config.json has 40000000 blocks'),
        (dict(ssm_ratio=1e7), 'instead of'),
        (dict(mlp_ratio=1e30), 'the sizes in config.json next to .* are too large'),
        (dict(pos_embed_size=10**5), 'missing: pos_embed'),
        (dict(in_chans=10**9), r'instead of \(4, 1000000000, 3, 3\)'),
        (dict(num_classes=10**10), r'instead of \(10000000000'),
    ],
    ids=str,
)
def test_sizes_are_compared_before_memory_is_taken(settings, words, tmp_path, monkeypatch):
    saved(tmp_path, num_classes=5)
    path = tmp_path / 'config.json'
    config = json.loads(path.read_text())
    config['num_classes'] = settings.pop('num_classes', 5)
    config['model_args'] |= settings
    path.write_text(json.dumps(config))
    monkeypatch.setattr('mmvmamba.hub.folder._build', None)
    with pytest.raises(ValueError, match=words):
        load_folder(tmp_path)


def test_changed_networks_are_not_written(tmp_path):
    pruned = VMambaNet('tiny', **THIN)
    pruned.prune_intermediate_layers((0, 1))
    swapped = VMambaNet('tiny', **THIN)
    swapped.layers[0].blocks[0].mlp.fc1 = torch.nn.Linear(8, 12)
    for net, words in ((pruned, 'classifier.norm.bias'), (swapped, 'blocks.0.mlp.fc1.bias')):
        with pytest.raises(ValueError, match=f'but these did: .*{words}'):
            write_folder(net, tmp_path / 'new')
        assert not (tmp_path / 'new').exists()


def test_networks_without_values_are_not_written(tmp_path):
    with torch.device('meta'):
        net = VMambaNet('tiny', **THIN)
    with pytest.raises(ValueError, match='must be dense and have data, but is a meta tensor'):
        write_folder(net, tmp_path / 'new')


@pytest.mark.parametrize('safe', [True, False])
@pytest.mark.parametrize('arch', ['tiny', 'vanilla_small'])
def test_folders_of_timm(safe, arch, tmp_path):
    timm = pytest.importorskip('timm')
    pytest.importorskip('huggingface_hub')
    from timm.models import save_for_hf

    import mmvmamba.timm  # noqa: F401

    model = timm.create_model(f'vmamba_{arch}', **THIN, num_classes=5, in_chans=4, d_state=2)
    noisy(model).reset_classifier(6, 'max')
    names = [f'class {i}' for i in range(6)]
    save_for_hf(model, tmp_path, safe_serialization=safe, model_config=dict(label_names=names))
    net = load_folder(tmp_path)
    assert net.class_names == tuple(names) and net.pretrained_cfg['input_size'] == (4, 224, 224)
    assert_equal(net, model, images(4))
