"""Classification with mmpretrain: the recipe, the released keys, training on the demo data."""

import importlib.util
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import mmcv
import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope

import mmvmamba.registry  # noqa: F401  (resolves mmvmamba::)
from mmvmamba.models.loading import adapt_state_dict, check_model
from mmvmamba.nn import VMambaNet, resolve_arch

from ..naming_schemes import convolution_weights, january_names, one_file_names

pytest.importorskip('mmpretrain')

ROOT = Path(__file__).parents[2]
CONFIGS = {
    'vmamba-t': 'tiny_s1l8',
    'vmamba-t-s2l5': 'tiny_s2l5',
    'vmamba-s': 'small_s2l15',
    'vmamba-s-s1l20': 'small_s1l20',
    'vmamba-b': 'base_s2l15',
    'vmamba-b-s1l20': 'base_s1l20',
    'vanilla-vmamba-t': 'vanilla_tiny',
    'vanilla-vmamba-s': 'vanilla_small',
    'vanilla-vmamba-b': 'vanilla_base',
}
DROP_PATH = dict(zip(CONFIGS, (0.2, 0.2, 0.3, 0.3, 0.6, 0.5, 0.2, 0.3, 0.6), strict=True))
THIN = dict(depths=(1, 1, 1, 1), dims=(8, 16, 24, 32))


def load(name):
    return Config.fromfile(ROOT / f'configs/vmamba/{name}_8xb128_in1k.py')


def thin_model(name, **backbone):
    cfg = load(name)
    init_default_scope('mmpretrain')
    cfg.model.backbone.update(THIN | backbone)
    cfg.model.head.in_channels = THIN['dims'][-1]
    cfg.model.data_preprocessor = cfg.data_preprocessor  # as the runner does
    model = MODELS.build(cfg.model)
    model.init_weights()
    return cfg, model


def transform(pipeline, name):
    return next(t for t in pipeline if t['type'] == name)


def test_every_config_is_tested():
    found = {path.name for path in (ROOT / 'configs/vmamba').glob('*.py')}
    assert found == {f'{name}_8xb128_in1k.py' for name in CONFIGS}


@pytest.mark.parametrize('name', CONFIGS)
def test_recipe(name):
    cfg = load(name)
    arch = resolve_arch(CONFIGS[name])
    backbone = dict(type='mmvmamba.VMamba', arch=CONFIGS[name], out_indices=(3,))
    assert {k: v for k, v in cfg.model.backbone.items() if k != '_scope_'} == backbone
    assert arch.drop_path_rate == DROP_PATH[name]
    assert (cfg.model.head.in_channels, cfg.model.head.num_classes) == (arch.dims[-1], 1000)
    assert cfg.model.head.loss.label_smooth_val == 0.1
    augments = [(a['type'], a['alpha']) for a in cfg.model.train_cfg.augments]
    assert augments == [('Mixup', 0.8), ('CutMix', 1.0)]
    wrapper = cfg.optim_wrapper
    assert (wrapper.type, wrapper.dtype) == ('AmpOptimWrapper', 'float16')
    assert wrapper.clip_grad == dict(max_norm=5.0)
    optimizer = {k: wrapper.optimizer[k] for k in ('type', 'lr', 'weight_decay', 'eps')}
    assert optimizer == dict(type='AdamW', lr=1e-3, weight_decay=0.05, eps=1e-8)
    assert cfg.train_cfg.max_epochs == 300
    warmup, cosine = cfg.param_scheduler
    assert (warmup.type, warmup.start_factor, warmup.end) == ('LinearLR', 1e-3, 20)
    assert warmup.by_epoch and warmup.convert_to_iter_based
    assert (cosine.type, cosine.eta_min, cosine.begin) == ('CosineAnnealingLR', 1e-5, 20)
    (ema,) = cfg.custom_hooks
    assert (ema.type, ema.momentum) == ('EMAHook', 1e-4)
    assert cfg.train_dataloader.batch_size == 128
    assert cfg.auto_scale_lr.base_batch_size == 1024


def test_pipelines():
    cfg = load('vmamba-t')
    train = cfg.train_dataloader.dataset.pipeline
    randaugment = transform(train, 'RandAugment')
    assert (randaugment.magnitude_level, randaugment.magnitude_std) == (9, 0.5)
    assert randaugment.policies == 'timm_increasing'
    assert transform(train, 'RandomErasing').erase_prob == 0.25
    assert transform(train, 'RandomResizedCrop').interpolation == 'bicubic'
    test = cfg.test_dataloader.dataset.pipeline
    assert (transform(test, 'ResizeEdge').scale, transform(test, 'CenterCrop').crop_size) == (
        256,
        224,
    )
    assert transform(test, 'ResizeEdge').interpolation == 'bicubic'


def test_vectors_and_biases_are_not_decayed():
    cfg, model = thin_model('vanilla-vmamba-t')
    cfg.optim_wrapper.update(type='OptimWrapper')
    for key in ('dtype', 'loss_scale'):
        cfg.optim_wrapper.pop(key)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    decay = {id(p): g['weight_decay'] for g in wrapper.param_groups for p in g['params']}
    for name, parameter in model.named_parameters():
        free = parameter.dim() == 1 or name.endswith('.bias')
        assert decay[id(parameter)] == (0.0 if free else 0.05), name
    parameters = dict(model.named_parameters())
    op = 'backbone.layers.0.blocks.0.op.'
    for name, expected in (('A_logs', 0.05), ('dt_projs_bias', 0.05), ('Ds', 0.0)):
        assert decay[id(parameters[op + name])] == expected


@pytest.mark.parametrize('name', ['vmamba-t', 'vanilla-vmamba-t'])
@pytest.mark.parametrize('size', [(64, 64), (57, 90)])
def test_a_released_file_gives_the_same_scores(name, size):
    """Through adapt_state_dict, which tools/test.py and load_from use, at any size."""
    torch.manual_seed(0)
    net = VMambaNet(CONFIGS[name], **THIN).eval()
    torch.nn.init.normal_(net.classifier.norm.weight)
    _, model = thin_model(name)
    tensors = adapt_state_dict(model, net.state_dict(), 'file.pth')
    matching = check_model(model, tensors, 'released.pth', whole=True)
    assert (matching.missing, matching.unexpected) == ([], [])
    model.load_state_dict(tensors)
    image = torch.rand(2, 3, *size)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(image), net(image), rtol=1e-5, atol=1e-6)


def released_file(folder, name, scheme=dict, change=dict, **wrapping):
    torch.manual_seed(0)
    net = VMambaNet(CONFIGS[name], **THIN).eval()
    torch.nn.init.normal_(net.classifier.norm.weight)
    torch.save({'model': scheme(change(net.state_dict())), **wrapping}, folder / 'released.pth')
    return net, str(folder / 'released.pth')


def infer_with(name, path):
    """The stock inferencer, which calls MMEngine's load_checkpoint and no hook of a runner."""
    from mmpretrain import ImageClassificationInferencer

    cfg = load(name)
    cfg.model.backbone.update(THIN)
    cfg.model.head.in_channels = THIN['dims'][-1]
    return ImageClassificationInferencer(cfg, pretrained=path, device='cpu')


@pytest.mark.parametrize('name', ['vmamba-t', 'vanilla-vmamba-t'])
@pytest.mark.parametrize('scheme', [dict, january_names, one_file_names, convolution_weights])
def test_the_inferencer_takes_a_released_file(tmp_path, name, scheme):
    net, path = released_file(tmp_path, name, scheme, epoch=292, optimizer={'state': {}})
    inferencer = infer_with(name, path)
    image = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(inferencer.model(image), net(image), rtol=1e-5, atol=1e-6)
    (result,) = inferencer(torch.randint(0, 256, (60, 70, 3)).byte().numpy())
    assert len(result['pred_scores']) == 1000


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (lambda s: {f'x.{k}': v for k, v in s.items()}, 'no key has the prefix of this backbone'),
        (lambda s: {k: v for k, v in s.items() if 'layers.1.' not in k}, r'missing: layers\.1\.'),
        (lambda s: s | {'patch_embed.0.bias': torch.zeros(9)}, r'\(9,\) instead of \(4,\)'),
        (
            lambda s: {k: v for k, v in s.items() if 'classifier' not in k},
            r'lacks classifier\.norm\.weight.*classifier\.head\.bias.*init_cfg',
        ),
    ],
    ids=['nothing', 'block', 'shape', 'head'],
)
def test_the_inferencer_refuses_what_does_not_fit(tmp_path, change, words):
    _, path = released_file(tmp_path, 'vmamba-t', change=change)
    with pytest.raises(ValueError, match=words):
        infer_with('vmamba-t', path)


@pytest.mark.parametrize('name', CONFIGS)
def test_steps(name):
    from mmpretrain.structures import DataSample

    cfg, model = thin_model(name)
    cfg.optim_wrapper.update(type='mmvmamba.CPUAmpOptimWrapper')
    for key in ('dtype', 'loss_scale'):
        cfg.optim_wrapper.pop(key)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    before = model.backbone.patch_embed[0].weight.detach().clone()
    samples = [DataSample().set_gt_label(i) for i in (3, 7)]
    data = dict(inputs=torch.randint(0, 256, (2, 3, 64, 64)).byte(), data_samples=samples)
    losses = model.train().train_step(data, wrapper)
    assert torch.isfinite(losses['loss'])
    assert not torch.equal(before, model.backbone.patch_embed[0].weight)


# ---- the demo data ----


def run(path, *arguments):
    environment = dict(os.environ, OMP_NUM_THREADS='1')
    command = [sys.executable, str(ROOT / path), *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


@pytest.fixture(scope='module')
def data_root(tmp_path_factory):
    pytest.importorskip('skimage')
    out = tmp_path_factory.mktemp('demo') / 'data'
    sizes = ('--num-train', 24, '--num-val', 8, '--size', 64)
    run('tools/dataset_converters/make_demo_dataset.py', out, *sizes)
    return out


def test_demo_config_agrees_with_the_data(data_root):
    cfg = Config.fromfile(ROOT / 'configs/demo/vmamba-demo_demo-64x64.py')
    annotations = json.loads((data_root / 'annotations/instances_train.json').read_text())
    assert list(cfg.classes) == [category['name'] for category in annotations['categories']]
    assert {p.name for p in (data_root / 'crops/train').iterdir()} == set(cfg.classes)


def test_train_test_and_infer_on_the_demo_data(data_root, run_fork, tmp_path):
    config = ROOT / 'configs/demo/vmamba-demo_demo-64x64.py'
    options = [f'{loader}_dataloader.dataset.data_root={data_root}' for loader in ('train', 'val')]
    options += [f'test_dataloader.dataset.data_root={data_root}', 'max_epochs=2']
    options += ['train_cfg.max_epochs=2', 'train_cfg.val_interval=2', 'size=32']
    options += ['default_hooks.checkpoint.interval=2', 'default_hooks.logger.interval=1']
    options += ['model.backbone.arch.dims=(8,16,24,32)', 'model.head.in_channels=32']
    options += ['optim_wrapper.type=AmpOptimWrapper']  # which the tool replaces on a CPU
    run('tools/train.py', config, '--work-dir', tmp_path, '--cfg-options', *options)
    losses = [
        json.loads(line)['loss']
        for path in tmp_path.rglob('scalars.json')
        for line in path.read_text().splitlines()
        if 'loss' in line
    ]
    assert sum(losses[-3:]) < sum(losses[:3])
    checkpoint = tmp_path / 'epoch_2.pth'
    saved = tmp_path / config.name
    output = run_fork('test.py', saved, checkpoint, '--work-dir', 'test', cwd=tmp_path)
    assert 'accuracy/top1' in output

    from mmpretrain import ImageClassificationInferencer

    inferencer = ImageClassificationInferencer(str(saved), pretrained=str(checkpoint), device='cpu')
    images = sorted(map(str, (data_root / 'crops/val').rglob('*.jpg')))[:3]
    results = inferencer(images)
    assert len(results) == 3
    assert {r['pred_class'] for r in results} <= set(Config.fromfile(config).classes)


def test_the_tool_tests_a_released_file(data_root, run_fork, tmp_path):
    """With the moving average of the recipe, which takes a file's weights as its own."""
    demo = ROOT / 'configs/demo/vmamba-demo_demo-64x64.py'
    hooks = Config.fromfile(ROOT / 'configs/vmamba/vmamba-t_8xb128_in1k.py').custom_hooks
    text = f'_base_ = [{str(demo)!r}]\ncustom_hooks = {[dict(hook) for hook in hooks]}\n'
    (tmp_path / 'config.py').write_text(text)
    arch = Config.fromfile(demo).model.backbone.arch
    torch.manual_seed(0)
    net = VMambaNet(dict(arch), num_classes=6)
    options = (f'test_dataloader.dataset.data_root={data_root}', 'size=64')
    torch.save({'model': net.state_dict()}, tmp_path / 'whole.pth')
    output = run_fork(
        'test.py',
        *('config.py', 'whole.pth', '--work-dir', '.', '--out', 'scores.pkl'),
        *('--cfg-options', *options),
        cwd=tmp_path,
    )
    assert 'Start testing on EMA model' in output
    assert output.count('tensors found') == 1
    sample = pickle.loads((tmp_path / 'scores.pkl').read_bytes())[0]
    cfg = Config.fromfile(demo)
    image = mmcv.imread(sample['img_path'], channel_order='rgb')
    image = mmcv.imresize(image, (64, 64), interpolation='bicubic', backend='pillow')
    mean, std = (torch.tensor(cfg.data_preprocessor[k]) for k in ('mean', 'std'))
    tensor = ((torch.from_numpy(image).float() - mean) / std).permute(2, 0, 1)[None]
    with torch.no_grad():
        expected = net.eval()(tensor).softmax(-1)[0]
    torch.testing.assert_close(
        torch.as_tensor(sample['pred_score']), expected, rtol=1e-4, atol=1e-5
    )


def test_stock_tool_of_mmpretrain_trains(data_root, tmp_path):
    """By path, with our config: nothing imports the package before the model is built."""
    tools = Path(importlib.util.find_spec('mmpretrain').origin).parent / '.mim/tools'
    options = [f'{loader}_dataloader.dataset.data_root={data_root}' for loader in ('train', 'val')]
    options += ['train_cfg.max_epochs=1', 'train_cfg.val_interval=1', 'model.head.in_channels=32']
    options += ['model.backbone.arch.dims=(8,16,24,32)', 'default_hooks.checkpoint.interval=1']
    config = ROOT / 'configs/demo/vmamba-demo_demo-64x64.py'
    run(tools / 'train.py', config, '--work-dir', tmp_path, '--cfg-options', *options)
    assert (tmp_path / 'epoch_1.pth').is_file()
