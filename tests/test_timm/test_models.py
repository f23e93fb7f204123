"""Every model through everything that timm asks of a model."""

import inspect
import re
from pathlib import Path

import numpy as np
import pytest
import torch

timm = pytest.importorskip('timm')
Image = pytest.importorskip('PIL.Image')

import mmvmamba.timm  # noqa: E402  (registers the models)
from mmvmamba.models import VMamba  # noqa: E402
from mmvmamba.nn import ARCHS, Arch, VMambaNet  # noqa: E402
from mmvmamba.ops import extension_error  # noqa: E402

DIMS = (8, 16, 24, 32)
THIN = dict(dims=DIMS, depths=(1, 1, 2, 1))
MODELS = pytest.mark.parametrize('name', [f'vmamba_{arch}' for arch in ARCHS])


def thin(name='vmamba_tiny', **kwargs):
    torch.manual_seed(0)
    return timm.create_model(name, **{**THIN, 'num_classes': 5, **kwargs})


def images(*size, channels=3):
    return torch.randn(2, channels, *(size or (32, 64)), generator=torch.Generator().manual_seed(1))


@MODELS
def test_listed(name):
    assert timm.is_model(name)
    assert name in timm.list_models('vmamba*')
    assert f'{name}.in1k' in timm.list_pretrained('vmamba*')


@MODELS
def test_default_cfg(name):
    model = thin(name)
    cfg = model.default_cfg
    assert cfg['architecture'] == name
    assert (cfg['num_classes'], cfg['input_size'], cfg['crop_pct']) == (1000, (3, 224, 224), 0.875)
    assert isinstance(model.get_submodule(cfg['first_conv']), torch.nn.Conv2d)
    assert model.get_submodule(cfg['classifier']) is model.get_classifier()
    released = dict(v0cls='vanilla' in name, v2cls='vanilla' not in name)
    assert [tag for tag, there in released.items() if there and f'%23{tag}/' in cfg['url']]


@MODELS
def test_forward_and_backward(name):
    model, x = thin(name, drop_rate=0.1, drop_path_rate=0.1), images()
    scores = model(x)
    assert scores.shape == (2, 5)
    scores.square().sum().backward()
    for key, value in model.named_parameters():
        assert value.grad is not None and value.grad.isfinite().all(), key


@MODELS
def test_features_and_head(name):
    model, x = thin(name).eval(), images()
    features = model.forward_features(x)
    assert features.shape == (2, 1, 2, 32) and model.output_fmt == 'NHWC'
    assert (model.num_features, model.head_hidden_size, model.in_chans) == (32, 32, 3)
    pooled = model.forward_head(features, pre_logits=True)
    assert pooled.shape == (2, 32)
    torch.testing.assert_close(model.get_classifier()(pooled), model(x))
    torch.testing.assert_close(model.forward_head(features), model(x))


@MODELS
def test_reset_classifier(name):
    model, x = thin(name).eval(), images()
    head, features = model.get_classifier(), model.forward_features(x)
    pooled = model.forward_head(features, pre_logits=True)
    model.reset_classifier(7)
    assert model(x).shape == (2, 7) and model.num_classes == 7
    assert model.get_classifier() is not head
    assert model.get_classifier().weight.std() < 0.03 and not model.get_classifier().bias.any()
    model.reset_classifier(0)
    torch.testing.assert_close(model(x), pooled)
    model.reset_classifier(0, '')
    unpooled = model(x)
    assert unpooled.shape == features.shape
    torch.testing.assert_close(unpooled.mean((1, 2)), pooled)
    model.reset_classifier(0, 'max')
    torch.testing.assert_close(model(x), unpooled.amax((1, 2)))
    model.reset_classifier(3, 'avg', reset_other=True)
    assert not list(model.classifier.norm.parameters())
    torch.testing.assert_close(
        model(x), model.get_classifier()(features.mean((1, 2))), rtol=1e-5, atol=1e-6
    )


def test_head_of_another_type_of_number():
    model = thin().double()
    model.reset_classifier(4)
    assert model(images().double()).dtype == torch.float64


@pytest.mark.parametrize('pool', ['avg', 'max', ''])
def test_created_without_classes(pool):
    y = thin(num_classes=0, global_pool=pool)(images())
    assert y.shape == ((2, 32) if pool else (2, 1, 2, 32))


@MODELS
@pytest.mark.parametrize('indices', [None, 1, 3, (0,), (-1,), (2, 0), (0, 1, 2, 3)], ids=str)
def test_forward_intermediates(name, indices):
    model, x = thin(name).eval(), images()
    stages = {None: range(4), 1: [3], 3: [1, 2, 3], (-1,): [3], (2, 0): [0, 2]}.get(
        indices, indices
    )
    inside = {}
    for i in range(4):
        module = model.get_submodule(model.feature_info[i]['module'])
        module.register_forward_hook(lambda *args, i=i: inside.update({i: args[-1]}))
    final, maps = model.forward_intermediates(x, indices=indices)
    torch.testing.assert_close(final, model.forward_features(x))
    assert len(maps) == len(stages)
    for i, y in zip(stages, maps, strict=True):
        info = model.feature_info[i]
        assert info['num_chs'] == DIMS[i] and info['reduction'] == 4 * 2**i
        assert y.shape == (2, DIMS[i], 32 // info['reduction'], 64 // info['reduction'])
        assert y.is_contiguous()
        torch.testing.assert_close(y, inside[i].permute(0, 3, 1, 2))
    last = max(stages)
    inside.clear()
    early = model.forward_intermediates(
        x, indices=indices, stop_early=True, output_fmt='NHWC', intermediates_only=True
    )
    assert set(inside) == set(range(last + 1))
    for y, want in zip(early, maps, strict=True):
        torch.testing.assert_close(y.permute(0, 3, 1, 2), want)


@MODELS
def test_norm_of_the_last_map(name):
    model, x = thin(name).eval(), images()
    (plain,) = model.forward_intermediates(x, indices=1, intermediates_only=True)
    (normed,) = model.forward_intermediates(x, indices=1, norm=True, intermediates_only=True)
    want = torch.nn.functional.layer_norm(plain.permute(0, 2, 3, 1), (32,))
    torch.testing.assert_close(normed, want.permute(0, 3, 1, 2), rtol=1e-4, atol=1e-5)


@MODELS
@pytest.mark.parametrize('indices', [(0,), (1, 2), (-1,), (3, 1), 2, None], ids=str)
def test_features_only(name, indices):
    kwargs = {} if indices is None else dict(out_indices=indices)
    model, x = thin(name, features_only=True, **kwargs), images(33, 50)
    stages = {None: range(4), 2: [2, 3], (-1,): [3], (3, 1): [1, 3]}.get(indices, indices)
    assert model.feature_info.channels() == [DIMS[i] for i in stages]
    assert model.feature_info.reduction() == [4 * 2**i for i in stages]
    sum(y.square().mean() for y in model(x)).backward()
    # DistributedDataParallel waits for the gradient of every parameter.
    assert all(p.grad is not None for p in model.parameters())
    maps, whole = model.eval()(x), thin(name).eval()
    assert [y.shape[1] for y in maps] == model.feature_info.channels()
    want = whole.forward_intermediates(x, list(stages), intermediates_only=True)
    for y, z in zip(maps, want, strict=True):
        torch.testing.assert_close(y, z)


@pytest.mark.parametrize('indices', [(0, 2), (0, 1, 2, 3), (-1,)])
def test_features_by_hooks(indices):
    """The same maps; as of every channels-last network of timm, channels last."""
    x, kwargs = images(33, 50), dict(features_only=True, out_indices=indices)
    hooks, getter = (thin(feature_cls=name, **kwargs).eval() for name in ('hook', 'getter'))
    assert (hooks.output_fmt, getter.output_fmt) == ('NHWC', 'NCHW')
    assert hooks.feature_info.channels() == getter.feature_info.channels()
    for y, want in zip(hooks(x), getter(x), strict=True):
        assert torch.equal(y.permute(0, 3, 1, 2), want)


@pytest.mark.parametrize('name', ['list', 'dict', 'fx', 'FX'])
def test_feature_classes_that_are_not_supported(name):
    words = rf"feature_cls must be one of \('getter', 'hook'\), but got '{name.lower()}'"
    with pytest.raises(ValueError, match=words):
        thin(features_only=True, feature_cls=name)


@MODELS
def test_group_matcher(name):
    """The layers of this package's own layer-wise decay, counted by other code."""
    from timm.models import group_parameters

    model = thin(name, pos_embed_size=32)
    reference = VMamba(name.removeprefix('vmamba_'), **THIN, pos_embed_size=32)
    layers = group_parameters(model, model.group_matcher(), reverse=True)
    count = 1 + sum(THIN['depths']) + 1
    for key, layer in layers.items():
        expected = (count - 1, count)
        if not key.startswith('classifier.'):
            expected = reference.get_layer_depth(key)
        assert (layer, count) == expected, key
    assert set(layers.values()) == set(range(count))
    coarse = group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    for key, layer in coarse.items():
        first, stage = key.split('.')[:2] if '.' in key else (key, None)
        expected = {'patch_embed': 0, 'pos_embed': 0, 'classifier': 5}.get(first)
        assert layer == (int(stage) + 1 if expected is None else expected), key


@MODELS
def test_optimizer_groups(name):
    from timm.optim import create_optimizer_v2

    model = thin(name, pos_embed_size=32)
    optimizer = create_optimizer_v2(model, 'adamw', lr=1.0, weight_decay=0.05, layer_decay=0.5)
    names = {id(p): key for key, p in model.named_parameters()}
    found = {
        names[id(p)]: (group['lr_scale'], group['weight_decay'])
        for group in optimizer.param_groups
        for p in group['params']
    }
    assert found.keys() == set(names.values())
    # The stem, five blocks, the classifier.
    assert found['patch_embed.0.weight'] == (0.5**6, 0.05)
    assert found['pos_embed'] == (0.5**6, 0.0)
    assert found['layers.0.blocks.0.op.in_proj.weight'] == (0.5**5, 0.05)
    assert found['layers.2.blocks.1.op.in_proj.weight'] == (0.5**2, 0.05)
    assert found['classifier.head.weight'] == (1.0, 0.05)
    # The authors' recipe decays the states' matrix and the time steps' biases, not Ds.
    assert found['layers.0.blocks.0.op.A_logs'][1] == 0.05
    assert found['layers.0.blocks.0.op.dt_projs_bias'][1] == 0.05
    assert found['layers.0.blocks.0.op.Ds'][1] == 0.0
    assert found['layers.0.blocks.0.norm.weight'][1] == 0.0


@MODELS
def test_grad_checkpointing(name):
    x, grads, calls = images(), [], []
    for enable in (False, True):
        model = thin(name, drop_path_rate=0.0)
        model.set_grad_checkpointing(enable)
        block = model.layers[2].blocks[1]
        block.register_forward_pre_hook(lambda *args, enable=enable: calls.append(enable))
        model(x).square().sum().backward()
        grads.append([p.grad for p in model.parameters()])
    assert calls == [False, True, True]
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
    model.set_grad_checkpointing(False)
    assert model.with_cp is False


@MODELS
@pytest.mark.parametrize('grad', [False, True])
def test_trace(name, grad):
    model, x = thin(name).eval(), images()
    with torch.set_grad_enabled(grad):
        traced = torch.jit.trace(model, x)
    for grad_later in (False, True):
        with torch.set_grad_enabled(grad_later):
            torch.testing.assert_close(traced(x + 1), model(x + 1))


@MODELS
@pytest.mark.parametrize('features_only', [False, True])
def test_state_dict_round_trip(name, features_only, tmp_path):
    source = thin(name, features_only=features_only)
    for value in source.state_dict().values():
        value.add_(torch.randn_like(value) * 0.1)
    torch.save(source.state_dict(), tmp_path / 'file.pth')
    torch.manual_seed(7)
    target = timm.create_model(name, **THIN, num_classes=5, features_only=features_only)
    target.load_state_dict(torch.load(tmp_path / 'file.pth', weights_only=True))
    x = images()
    for a, b in zip(source.eval()(x), target.eval()(x), strict=True):
        assert torch.equal(a, b)


@MODELS
def test_names_are_those_of_the_released_files(name):
    model = thin(name)
    net = VMambaNet(name.removeprefix('vmamba_'), **THIN, num_classes=5)
    assert {k: v.shape for k, v in model.state_dict().items()} == {
        k: v.shape for k, v in net.state_dict().items()
    }


def test_other_channels_and_data_config():
    from timm.data import resolve_data_config

    model = thin(in_chans=4)
    assert model(images(channels=4)).shape == (2, 5) and model.in_chans == 4
    config = resolve_data_config({}, model=thin())
    np.testing.assert_allclose(config['mean'], (0.485, 0.456, 0.406))
    assert (config['input_size'], config['crop_pct']) == ((3, 224, 224), 0.875)


@pytest.mark.parametrize('channels', [1, 2, 4, 6, 12])
@pytest.mark.parametrize('name', ['vmamba_tiny', 'vmamba_vanilla_tiny'])
def test_image_channels_are_adapted_as_without_timm(name, channels, tmp_path):
    file = tmp_path / 'file.pth'
    torch.save({'model': thin(name).state_dict()}, file)
    settings = dict(in_chans=channels, num_classes=5)
    overlay = dict(file=str(file), num_classes=5)
    theirs = timm.create_model(name, True, pretrained_cfg_overlay=overlay, **settings, **THIN)
    ours = mmvmamba.create_model(name, file, **settings, **THIN)
    for key, value in theirs.state_dict().items():
        assert torch.equal(value, ours.state_dict()[key]), key


@pytest.mark.parametrize('features_only', [False, True])
@pytest.mark.parametrize(
    ('kwargs', 'error', 'words'),
    [
        (dict(dims=8), TypeError, 'dims must be a sequence of int, but got 8'),
        (dict(drop_rate=7), ValueError, 'drop_rate must be in'),
        (dict(global_pool='bogus'), ValueError, "global_pool must be one of .*'bogus'"),
    ],
)
def test_bad_arguments(features_only, kwargs, error, words):
    with pytest.raises(error, match=words):
        timm.create_model('vmamba_tiny', features_only=features_only, **{**THIN, **kwargs})


def test_examples_of_the_docs(tmp_path, monkeypatch, capsys):
    """In their order, with a smaller network by the same name."""
    text = (Path(__file__).parents[2] / 'docs' / 'timm.md').read_text()
    blocks = re.findall(r'^```python\n(.*?)^```', text, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 7
    monkeypatch.setitem(ARCHS, 'tiny', Arch(**THIN))
    monkeypatch.chdir(tmp_path)
    state = VMambaNet('tiny').state_dict()
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    Path('hub/checkpoints').mkdir(parents=True)
    for folder in ('.', 'hub/checkpoints'):
        torch.save({'model': state}, f'{folder}/vssm1_tiny_0230s_ckpt_epoch_264.pth')
    Image.fromarray(np.zeros((80, 60, 3), np.uint8)).save('photo.jpg')
    names = {'loader': [(torch.randn(2, 3, 32, 32), torch.tensor([0, 9]))]}
    for block in blocks:
        if 'for batch, labels in loader' in block:
            before = {key: p.detach().clone() for key, p in names['model'].named_parameters()}
        exec(block, names)
        if block is blocks[0]:
            assert len(capsys.readouterr().out.splitlines()) == 6
        elif block is blocks[2]:
            assert names['scores'].shape == (2, 10)
            assert [y.shape for y in names['maps']] == [(2, 16, 8, 12), (2, 32, 2, 3)]
        elif block is blocks[1]:
            loaded = names['model'].state_dict(), names['backbone'].state_dict()
            for key in ('patch_embed.0.bias', 'layers.3.blocks.0.op.Ds'):
                assert all(torch.equal(some[key], state[key]) for some in loaded)
            assert loaded[0]['patch_embed.0.weight'].shape[1] == 4
    assert '0.875' in capsys.readouterr().out
    assert names['features'].shape == (2, 2, 3, 32) and names['pooled'].shape == (2, 32)
    assert [y.shape[1] for y in names['maps']] == names['channels'] == list(THIN['dims'])
    change = {
        key: (p.detach() - before[key]).abs().max() for key, p in names['model'].named_parameters()
    }
    # Adam's first step is the learning rate, which falls from layer to layer.
    assert change['classifier.head.weight'].item() == pytest.approx(1e-4, rel=0.05)
    assert change['patch_embed.0.weight'].item() == pytest.approx(1e-4 * 0.75**6, rel=0.05)


class TestOnnxExport:
    """timm's own function, with a model made as its onnx_export.py makes it."""

    SETTINGS = dict(batch_size=1, input_size=(3, 64, 96), check_forward=True)

    @pytest.fixture
    def export(self, tmp_path):
        pytest.importorskip('onnxruntime')
        pytest.importorskip('onnxscript')
        if extension_error() is not None:
            pytest.skip(f'the op is not there: {extension_error()}')
        from timm.utils.onnx import onnx_export

        if 'external_data' not in inspect.signature(onnx_export).parameters:
            pytest.skip(f'timm {timm.__version__} calls an exporter that torch has dropped')
        model = thin(dims=(8, 16), depths=(1, 1), exportable=True)
        return lambda **settings: onnx_export(
            model, str(tmp_path / 'model.onnx'), **self.SETTINGS, **settings
        )

    def test_with_dynamo(self, export, tmp_path):
        import onnxruntime

        export(use_dynamo=True, dynamic_size=True)
        session = onnxruntime.InferenceSession(
            tmp_path / 'model.onnx', providers=['CPUExecutionProvider']
        )
        assert session.run(None, {'input0': images(75, 50).numpy()})[0].shape == (2, 5)

    def test_without_dynamo(self, export):
        cached = torch.is_autocast_cache_enabled()
        try:
            with pytest.raises(ValueError, match='dynamo=True'):
                export(use_dynamo=False)
        finally:  # torch 2.12's exporter leaves the cache off after an error
            torch.set_autocast_cache_enabled(cached)
