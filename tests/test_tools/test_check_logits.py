"""tools/model_converters/check_logits.py on a network with seeded weights."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

import mmvmamba
from mmvmamba.nn import ARCHS, Arch, VMambaNet

from ..servers import response, serve

TOOL = Path(__file__).parents[2] / 'tools' / 'model_converters' / 'check_logits.py'
THIN = dict(dims=(8, 16, 24, 32), depths=(1, 1, 1, 1))
NAME = 'vssm1_tiny_0230s_ckpt_epoch_264.pth'


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """A thin network under the name of the released one."""
    monkeypatch.setitem(ARCHS, 'tiny', Arch(**THIN))
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    net = VMambaNet(**THIN)
    torch.save({'model': net.state_dict()}, 'weights.pth')
    return net.eval()


@pytest.fixture
def run_tool(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, 'argv', [str(TOOL), *arguments, '--values', 'values.json'])
        code = 0
        try:
            runpy.run_path(str(TOOL), run_name='__main__')
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return run


def test_record_and_compare(weights, run_tool, tmp_path):
    code, out, _ = run_tool('vmamba_tiny', 'weights.pth', '--record')
    assert code == 0 and f'recorded the values of weights.pth as the reference for {NAME}' in out
    recorded = json.loads(Path('values.json').read_text())[NAME]
    with torch.no_grad():
        logits = weights(runpy.run_path(str(TOOL))['image']())[0]
    assert recorded['classes'] == 1000 and len(recorded['logits']) >= 40
    for i, value in recorded['logits'].items():
        assert value == pytest.approx(float(logits[int(i)]), abs=1e-5)
    assert str(int(logits.argmax())) in recorded['logits']
    # The alias is the same file, and so is the one in torch.hub's folder.
    Path('hub/checkpoints').mkdir(parents=True)
    Path('weights.pth').rename(Path('hub/checkpoints') / NAME)
    code, out, _ = run_tool('vmamba_tiny')
    assert code == 0 and 'logits match the reference: largest difference' in out
    assert 'SHA-256' not in out


@pytest.mark.parametrize(('change', 'same'), [(1e-6, True), (0.1, False)])
def test_other_weights(change, same, weights, run_tool):
    run_tool('vmamba_tiny', 'weights.pth', '--record')
    state = weights.state_dict()
    head = state['classifier.head.weight']
    head += change * head.std() * torch.randn_like(head)
    torch.save({'model': state}, 'other.pth')
    code, out, _ = run_tool('vmamba_tiny', 'other.pth')
    text = out if same else code
    assert ('logits match the reference' in out) == same
    assert same or 'logits differ from the reference: largest difference' in code
    assert text.strip().endswith("the file's SHA-256 differs from that of the reference")


def test_nothing_is_recorded(weights, run_tool):
    code, _, _ = run_tool('vmamba_tiny', 'weights.pth')
    assert f'values.json has no reference values for {NAME}; run with --record to add them' in code
    assert not Path('values.json').exists()


def test_url(weights, run_tool, monkeypatch):
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    run_tool('vmamba_tiny', 'weights.pth', '--record')
    with serve(response(Path('weights.pth').read_bytes())) as server:
        code, out, _ = run_tool('vmamba_tiny', f'http://user:secret@{server.address}/x.pth')
    assert code == 0 and 'logits match the reference' in out and 'SHA-256' not in out


def test_picture():
    """Integers define it: its bytes are the same everywhere."""
    tool = runpy.run_path(str(TOOL))
    mean, std = (
        torch.tensor(tool[name]).view(3, 1, 1) for name in ('IMAGENET_MEAN', 'IMAGENET_STD')
    )
    pixels = ((tool['image']()[0] * std + mean) * 255).round().long()
    assert pixels.shape == (3, 224, 224) and 0 <= pixels.min() and pixels.max() <= 255
    assert [int(channel.sum()) for channel in pixels] == [4846958, 7426342, 4603648]


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (('vmamba_tin',), "argument model: invalid choice: 'vmamba_tin'"),
        (('vmamba_tiny', 'no.pth'), "checkpoint 'no.pth' does not exist"),
        (('vmamba_tiny', 'two.pth'), 'got 2 logits, but 1000 are recorded'),
    ],
)
def test_mistakes(arguments, words, weights, run_tool):
    torch.save(mmvmamba.create_model('vmamba_tiny', num_classes=2).state_dict(), 'two.pth')
    run_tool('vmamba_tiny', 'weights.pth', '--record')
    code, _, err = run_tool(*arguments)
    assert code == 2 and words in err
