"""Files in the published spellings through tools/train.py and tools/test.py."""

import fractions
import re
import sys
import types

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope

from mmvmamba.nn import VMambaNet
from mmvmamba.registry import MODELS

pytest.importorskip('mmseg')
THIN = dict(dims=(8, 16, 24, 32), depths=(1, 1, 1, 1))


def old_names(state):
    """The January 2024 names, and linear weights as 1x1 convolutions."""
    renamed = {}
    for key, value in state.items():
        key = key.replace('patch_embed.0.', 'patch_embed.proj.').replace('.op.', '.self_attention.')
        key = re.sub(r'(blocks\.\d+)\.norm\.', r'\1.ln_1.', key)
        linear = value.dim() == 2 and key.endswith('proj.weight')
        renamed[key] = value[:, :, None, None] if linear else value
    return renamed


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
    assert f'old.pth: {count} of {count} tensors found; missing none' in line
    del state['backbone.layers.1.blocks.0.op.Ds']
    torch.save({'meta': {}, 'state_dict': old_names(state)}, tmp_path / 'short.pth')
    status, errors = run_here('test.py', segmentation_config, tmp_path / 'short.pth', *work)
    assert status == 2
    assert 'missing backbone.layers.1.blocks.0.op.Ds' in errors


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
