"""The examples of docs/timm.md, in their order, with a smaller network by the same name."""

import re
from pathlib import Path

import pytest
import torch

timm = pytest.importorskip('timm')

import mmvmamba.timm  # noqa: E402, F401  (registers the models)
from mmvmamba.nn import ARCHS, Arch, VMambaNet  # noqa: E402

TEXT = (Path(__file__).parents[2] / 'docs' / 'timm.md').read_text()


def test_examples(tmp_path, monkeypatch, capsys):
    blocks = re.findall(r'^```python\n(.*?)^```', TEXT, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 6
    thin = Arch(dims=(8, 16, 24, 32), depths=(1, 1, 2, 1))
    monkeypatch.setitem(ARCHS, 'tiny', thin)
    monkeypatch.chdir(tmp_path)
    state = VMambaNet('tiny').state_dict()
    torch.save({'model': state}, 'vssm1_tiny_0230s_ckpt_epoch_264.pth')
    names = {'loader': [(torch.randn(2, 3, 32, 32), torch.tensor([0, 9]))]}
    for block in blocks:
        if 'for batch, labels in loader' in block:
            before = {key: p.detach().clone() for key, p in names['model'].named_parameters()}
        exec(block, names)
        if block is blocks[0]:
            assert names['scores'].shape == (2, 10)
            assert [y.shape for y in names['maps']] == [(2, 16, 8, 12), (2, 32, 2, 3)]
        elif block is blocks[1]:
            loaded = names['model'].state_dict(), names['backbone'].state_dict()
            for key in ('patch_embed.0.weight', 'layers.3.blocks.0.op.Ds'):
                assert all(torch.equal(some[key], state[key]) for some in loaded)
    assert '0.875' in capsys.readouterr().out
    assert names['features'].shape == (2, 2, 3, 32) and names['pooled'].shape == (2, 32)
    assert names['logits'].shape == (2, 4, 64, 96)
    change = {
        key: (p.detach() - before[key]).abs().max() for key, p in names['model'].named_parameters()
    }
    # Adam's first step is the learning rate, which falls from layer to layer.
    assert change['classifier.head.weight'].item() == pytest.approx(1e-4, rel=0.05)
    assert change['patch_embed.0.weight'].item() == pytest.approx(1e-4 * 0.75**6, rel=0.05)
