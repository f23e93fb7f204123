"""The commands and the code of docs/huggingface.md, run in their order with a thin model."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmvmamba.nn import ARCHS, Arch, VMambaNet

TEXT = (Path(__file__).parents[2] / 'docs' / 'huggingface.md').read_text()
COMMANDS = re.findall(r'^python tools/(.*)$', TEXT, re.MULTILINE)
CODE = re.findall(r'```python\n(.*?)```', TEXT, re.DOTALL)


def test_page(tmp_path, run_here, monkeypatch, capfd):
    for name in ('huggingface_hub', 'safetensors', 'timm', 'transformers'):
        pytest.importorskip(name)
    monkeypatch.setitem(ARCHS, 'tiny', Arch(dims=(8, 16, 384, 32), depths=(1, 1, 1, 1)))
    monkeypatch.setitem(ARCHS, 'tiny_s1l8', ARCHS['tiny'])
    state = VMambaNet('tiny').state_dict()
    torch.save({'model': state}, tmp_path / 'vssm1_tiny_0230s_ckpt_epoch_264.pth')
    Image.fromarray(np.zeros((90, 120, 3), np.uint8)).save(tmp_path / 'photo.jpg')
    assert len(COMMANDS) == 2 and len(CODE) == 5
    for command in COMMANDS:  # ```bash
        assert run_here(*shlex.split(command))[0] == 0
    names = {}
    for code in CODE:
        if 'push_to_hub' not in code:  # tests/test_hub/test_mixin.py
            exec(code.replace('224', '64'), names)
    out = capfd.readouterr().out.splitlines()
    assert len(out) == 3 and "'label': " in out[-1]
    assert [y.shape[1] for y in names['maps']] == [8, 16, 384, 32]
    assert type(names['model']) is VMambaNet and names['model'].num_classes == 10
    mine = VMambaNet.from_pretrained('mine')
    assert mine.class_names == ('cat', 'dog')
    # The segmentor needs the folders no more.
    (tmp_path / 'vmamba-tiny-maps').rename(tmp_path / 'gone')
    again = type(names['segmentor']).from_pretrained('segmentor')
    for key, value in names['segmentor'].state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key
