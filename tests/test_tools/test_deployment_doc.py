"""The commands and the code of docs/deployment.md, run with thin models."""

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
import torch

from mmvmamba.nn import ARCHS, Arch, VMambaNet
from mmvmamba.ops import extension_error

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / 'docs' / 'deployment.md').read_text()
COMMANDS = [
    command
    for block in re.findall(r'```bash\n(.*?)```', TEXT, re.DOTALL)
    for command in block.splitlines()
    if 'export_onnx.py' in command  # test_quantize.py runs the others
]
CODE = re.findall(r'```python\n(.*?)```', TEXT, re.DOTALL)
FOLDERS = {'vmamba': 'classification', 'upernet': 'segmentation', 'mask_rcnn': 'detection'}


def run_tool(arguments, monkeypatch):
    tool = ROOT / 'tools' / 'deployment' / 'export_onnx.py'
    monkeypatch.setattr(sys, 'argv', [str(tool), *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(tool), run_name='__main__')
    return stop.value.code


def needs_onnx():
    for name in ('mmengine', 'onnx', 'onnxruntime', 'onnxscript'):
        pytest.importorskip(name)
    if extension_error() is not None:
        pytest.skip('the native op is missing')


@pytest.mark.slow
@pytest.mark.parametrize('command', COMMANDS)
def test_command(command, request, monkeypatch, tmp_path):
    needs_onnx()
    from mmengine.config import Config
    from mmengine.registry import MODELS, DefaultScope

    config, _, out, *options = shlex.split(command)[2:]
    if config == 'vmamba_tiny':
        monkeypatch.setitem(ARCHS, 'tiny', Arch(dims=(8, 16, 24, 32), depths=(1, 1, 1, 1)))
        state = VMambaNet('tiny').state_dict()
    else:
        config = request.getfixturevalue(f'{FOLDERS[Path(config).parts[1]]}_config')
        cfg = Config.fromfile(config)
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            state = MODELS.build(cfg.model).state_dict()
    torch.save({'state_dict': state}, tmp_path / 'weights.pth')
    monkeypatch.chdir(tmp_path)
    assert run_tool([config, 'weights.pth', out, *options], monkeypatch) == 0
    assert (tmp_path / out).stat().st_size > 10000


@pytest.mark.slow
def test_code(monkeypatch, tmp_path):
    """Run the blocks one after the other."""
    needs_onnx()
    pytest.importorskip('torchao')
    monkeypatch.chdir(tmp_path)
    thin = 'dict(dims=(8, 16), depths=(1, 1)), num_classes=5'
    names = {}
    for block in CODE:
        exec(block.replace("'tiny'", thin), names)
    images = torch.randn(1, 3, 96, 160)
    with torch.no_grad():
        expected = names['model'](images)
    torch.testing.assert_close(names['scores'].shape, expected.shape)
    for name in ('vmamba.pt2', 'vmamba_aoti.pt2', 'vmamba.onnx', 'int8.pt2'):
        assert (tmp_path / name).is_file(), name
    import onnxruntime

    session = onnxruntime.InferenceSession('vmamba.onnx', providers=['CPUExecutionProvider'])
    (got,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    torch.testing.assert_close(torch.from_numpy(got), expected, rtol=1e-4, atol=1e-5)
