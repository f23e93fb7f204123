"""Files in the published naming schemes through tools/train.py and tools/test.py."""

import fractions
import io
import sys
import types
from contextlib import redirect_stdout

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope

from mmvmamba.nn import VMambaNet
from mmvmamba.registry import MODELS

from ..naming_schemes import convolution_weights, january_names
from ..servers import response, serve

pytest.importorskip('mmseg')
THIN = dict(dims=(8, 16, 24, 32), depths=(1, 1, 1, 1))


def old_names(state):
    heads = {k: v for k, v in state.items() if k.startswith(('neck.', 'rpn_head.', 'roi_head.'))}
    return convolution_weights(january_names(state)) | heads


def log_lines(folder):
    text = '\n'.join(path.read_text() for path in folder.glob('**/*.log'))
    return [line for line in text.splitlines() if 'tensors found' in line]


def test_test_of_a_segmentor_by_old_names(segmentation_config, tmp_path, run_here):
    cfg = Config.fromfile(segmentation_config)
    with DefaultScope.overwrite_default_scope('mmseg'):
        state = MODELS.build(cfg.model).state_dict()
    torch.save({'meta': {}, 'state_dict': old_names(state)}, tmp_path / 'old.pth')
    work = ('--work-dir', tmp_path / 'work')
    assert run_here('test.py', segmentation_config, tmp_path / 'old.pth', *work)[0] == 0
    (line,) = log_lines(tmp_path / 'work')
    count = len(state)
    assert f'old.pth: {count} of {count} tensors found; missing: none' in line
    del state['backbone.layers.1.blocks.0.op.Ds']
    torch.save({'meta': {}, 'state_dict': old_names(state)}, tmp_path / 'short.pth')
    status, errors = run_here('test.py', segmentation_config, tmp_path / 'short.pth', *work)
    assert status == 2
    assert 'missing: backbone.layers.1.blocks.0.op.Ds' in errors


THIN_VANILLA = dict(
    d_state=4,
    ssm_ratio=2.0,
    gate='act',
    conv_bias=True,
    mlp_ratio=0.0,
    stem='patch',
    downsample='merging',
)


def stock_inferencer(package, cfg, path):
    """They call MMEngine's loader on the whole model, without the hook of the tools."""
    if package == 'mmdet':
        from mmdet.apis import DetInferencer

        return DetInferencer(cfg, weights=str(path), device='cpu', show_progress=False)
    from mmseg.apis import MMSegInferencer

    return MMSegInferencer(cfg, weights=str(path), device='cpu')


@pytest.mark.parametrize('settings', [{}, THIN_VANILLA], ids=['conv', 'vanilla'])
@pytest.mark.parametrize(('package', 'task'), [('mmdet', 'detection'), ('mmseg', 'segmentation')])
def test_stock_inferencers(package, task, settings, request, tmp_path):
    pytest.importorskip(package)
    cfg = Config.fromfile(request.getfixturevalue(f'{task}_config'))
    cfg.model.backbone.update(settings)
    with DefaultScope.overwrite_default_scope(package):
        state = MODELS.build(cfg.model).state_dict()
    state = {k: torch.randn_like(v) if v.is_floating_point() else v for k, v in state.items()}
    meta = dict(classes=('a', 'b', 'c'), palette=[(1, 2, 3)] * 3)
    file = dict(meta=dict(dataset_meta=meta), state_dict=old_names(state))
    torch.save(file, tmp_path / 'old.pth')
    inferencer = stock_inferencer(package, cfg, tmp_path / 'old.pth')
    loaded = inferencer.model.state_dict()
    assert [key for key in state if not torch.equal(loaded[key], state[key])] == []
    image = torch.randint(0, 256, (64, 64, 3)).byte().numpy()
    assert 'predictions' in inferencer(image)
    wrong = {k: v for k, v in file['state_dict'].items() if 'layers.1.' not in k}
    torch.save(file | {'state_dict': wrong}, tmp_path / 'short.pth')
    with pytest.raises(ValueError, match=r'missing: layers\.1\.blocks\.0\.norm\.weight'):
        stock_inferencer(package, cfg, tmp_path / 'short.pth')
    torch.save({'model': VMambaNet(THIN | settings).state_dict()}, tmp_path / 'classifier.pth')
    with pytest.raises(ValueError, match='no key has the prefix of this backbone'):
        stock_inferencer(package, cfg, tmp_path / 'classifier.pth')


def yacs_node(monkeypatch):
    """A node of yacs as a file of a full training holds it, while yacs is not installed."""

    class CfgNode(dict):
        pass

    CfgNode.__module__, CfgNode.__qualname__ = 'yacs.config', 'CfgNode'
    module = types.ModuleType('yacs.config')
    module.CfgNode = CfgNode
    monkeypatch.setitem(sys.modules, 'yacs', types.ModuleType('yacs'))
    monkeypatch.setitem(sys.modules, 'yacs.config', module)
    return CfgNode(MODEL=CfgNode(NAME='vssm'), AMP=True)


def test_training_from_a_full_training_file(segmentation_config, tmp_path, run_here, monkeypatch):
    net = VMambaNet(THIN)
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.randn(1, 3, 32, 32)).sum().backward()
    optimizer.step()
    content = dict(model=old_names(net.state_dict()), optimizer=optimizer.state_dict(), epoch=3)
    with monkeypatch.context() as patch:
        torch.save(content | {'config': yacs_node(patch)}, tmp_path / 'full.pth')
    options = ['--cfg-options', f'load_from={tmp_path / "full.pth"}', 'train_cfg.max_iters=1']
    work = ('--work-dir', tmp_path / 'work')
    assert run_here('train.py', segmentation_config, '--no-validate', *work, *options)[0] == 0
    (line,) = log_lines(tmp_path / 'work')
    assert 'full.pth: ' in line
    assert 'backbone.outnorm0.weight' in line
    trained = torch.load(tmp_path / 'work' / 'iter_1.pth', weights_only=False)['state_dict']
    # One step of the warm-up moves nothing far.
    for key in ('layers.2.blocks.0.op.A_logs', 'layers.3.blocks.0.op.in_proj.weight'):
        torch.testing.assert_close(trained[f'backbone.{key}'], net.state_dict()[key])


def test_a_foreign_class_is_refused(segmentation_config, tmp_path, run_here):
    content = {'model': VMambaNet(THIN).state_dict(), 'extra': fractions.Fraction(1, 2)}
    torch.save(content, tmp_path / 'foreign.pth')
    options = ['--cfg-options', f'load_from={tmp_path / "foreign.pth"}']
    work = ('--work-dir', tmp_path / 'work')
    status, errors = run_here('train.py', segmentation_config, *work, *options)
    assert status == 2
    assert 'needs fractions.Fraction' in errors
    assert 'torch.serialization.add_safe_globals' in errors


def test_no_output_has_the_secrets_of_a_url(segmentation_config, tmp_path, run_here, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    cfg = Config.fromfile(segmentation_config)
    with DefaultScope.overwrite_default_scope('mmseg'):
        torch.save(MODELS.build(cfg.model).state_dict(), tmp_path / 'x.pth')
    out, config, work = io.StringIO(), tmp_path / 'config.py', ('--work-dir', tmp_path / 'work')
    with serve(response((tmp_path / 'x.pth').read_bytes())) as server, redirect_stdout(out):
        url = f'http://user:pa55@{server.address}/x.pth?token=pa55'
        config.write_text(
            f'_base_ = {str(segmentation_config)!r}\nload_from = {url!r}\n'
            "init_cfg = dict(type='Pretrained', _delete_=True, checkpoint=load_from)\n"
            'model = dict(backbone=dict(init_cfg=init_cfg))\ntrain_cfg = dict(max_iters=1)\n'
        )
        status, errors = run_here('train.py', config, '--no-validate', *work)
        assert status == 0, errors
        assert run_here('test.py', config, url, *work)[0] == 0
        config.write_text(config.read_text() + "model['backbone']['depths'] = (2, 1, 1, 1)\n")
        status, errors = run_here('train.py', config, '--no-validate', *work)
    assert len(server.requests) == 1
    assert status == 2
    text = out.getvalue() + ''.join(path.read_text() for path in tmp_path.rglob('*.log'))
    shown = f'http://{server.address}/x.pth?...'
    for line in ('Load checkpoint from {}', 'from path: {}', "load_from = '{}'", '{}: '):
        assert line.format(shown) in text, line
    assert f"checkpoint '{shown}' does not match" in errors
    assert 'pa55' not in text + errors


@pytest.mark.parametrize('way', ['init_cfg', 'load_from', 'resume', 'test'])
def test_the_weights_of_a_diverged_run_are_refused(way, segmentation_config, tmp_path, run_here):
    cfg = Config.fromfile(segmentation_config)
    with DefaultScope.overwrite_default_scope('mmseg'):
        state = MODELS.build(cfg.model).state_dict()
    key = 'backbone.layers.1.blocks.0.op.Ds' if way == 'init_cfg' else 'decode_head.conv_seg.bias'
    state[key] = torch.full_like(state[key], float('nan'))
    path = tmp_path / 'diverged.pth'
    torch.save({'meta': {}, 'message_hub': {}, 'state_dict': state}, path)
    init_cfg = dict(_delete_=True, type='Pretrained', checkpoint=str(path))
    config = f'_base_ = [{str(segmentation_config)!r}]\n'
    if way == 'init_cfg':
        config += f'model = dict(backbone=dict(init_cfg={init_cfg}))\n'
    (tmp_path / 'config.py').write_text(config)
    options = {
        'init_cfg': [],
        'load_from': ['--cfg-options', f'load_from={path}'],
        'resume': ['--resume', path],
        'test': [path],
    }
    tool = 'test.py' if way == 'test' else 'train.py'
    work = ('--work-dir', tmp_path / 'work')
    status, errors = run_here(tool, tmp_path / 'config.py', *options[way], *work)
    assert status == 2
    name = key.removeprefix('backbone.')
    assert f"' contains NaN or Inf for {'VMamba' if way == 'init_cfg' else ''}" in errors
    assert f'{name} (' in errors
    assert 'The run that saved it has probably diverged' in errors
    assert not list(tmp_path.glob('work/*.pth'))
