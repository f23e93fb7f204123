"""Model cards: metadata that the Hub reads, numbers marked as others', and code that runs."""

import re

import numpy as np
import pytest
import torch

yaml = pytest.importorskip('yaml')

from mmvmamba.checkpoint.released import RELEASED_URLS  # noqa: E402
from mmvmamba.hub import REPORTED, model_card  # noqa: E402
from mmvmamba.nn import VMambaNet  # noqa: E402

THIN = dict(dims=(8, 16, 24, 32), depths=(1, 1, 1, 1))


def parts(card):
    """The metadata, the text and the blocks of Python by library."""
    _, metadata, text = card.split('---\n', 2)
    blocks = re.findall(r'^With (\w+):\n\n```python\n(.*?)```$', text, re.MULTILINE | re.DOTALL)
    return yaml.safe_load(metadata), text, dict(blocks)


@pytest.mark.parametrize('arch', REPORTED)
def test_released(arch):
    with torch.device('meta'):
        net = VMambaNet(arch)
    metadata, text, _ = parts(model_card(net, released=arch))
    assert metadata['license'] == 'mit' and metadata['datasets'] == ['imagenet-1k']
    assert metadata['pipeline_tag'] == 'image-classification'
    assert f'{REPORTED[arch].top1:.2f}%, as reported by the paper and its authors (not mea' in text
    assert RELEASED_URLS[arch] in text
    count = float(re.search(r'\| parameters \| ([\d.]+) M \|', text)[1])
    assert count == pytest.approx(sum(p.numel() for p in net.parameters()) / 1e6, abs=0.051)
    assert 'title={{VMamba}: Visual State Space Model}' in text


def test_others():
    net = VMambaNet('tiny', **THIN)
    metadata, text, _ = parts(model_card(net, license='cc-by-4.0', notes='Trained on birds.'))
    assert metadata['license'] == 'cc-by-4.0' and 'datasets' not in metadata
    assert 'Trained on birds.' in text and 'top-1' not in text and 'MIT' not in text
    assert 'license' not in parts(model_card(net))[0]
    backbone = VMambaNet('tiny', **THIN, out_indices=(2, 1))
    metadata, text, _ = parts(model_card(backbone))
    assert metadata['pipeline_tag'] == 'image-feature-extraction'
    assert '| maps | 24 channels at stride 16, 16 channels at stride 8 |' in text


def test_an_unknown_release():
    with pytest.raises(ValueError, match="released must be one of .*, but got 'foo'"):
        model_card(VMambaNet('tiny', **THIN), released='foo')


@pytest.mark.parametrize('library', ['mmvmamba', 'timm', 'transformers'])
@pytest.mark.parametrize('kind', ['classifier', 'backbone'])
@pytest.mark.parametrize('channels', [3, 5])
def test_code_runs(library, kind, channels, tmp_path, monkeypatch, capsys):
    pytest.importorskip('huggingface_hub')
    pytest.importorskip('timm')
    if library == 'transformers':
        pytest.importorskip('transformers')
        if kind == 'classifier' and channels != 3:
            pytest.skip('a pipeline reads images of three channels')
    indices = None if kind == 'classifier' else (1, 3)
    net = VMambaNet('tiny', channels, num_classes=3, out_indices=indices, **THIN)
    net.save_pretrained(tmp_path)
    _, _, blocks = parts((tmp_path / 'README.md').read_text())
    code = blocks[library].replace('FOLDER', str(tmp_path))
    assert len(code.splitlines()) == 4
    image = pytest.importorskip('PIL.Image').fromarray(np.zeros((50, 60, 3), np.uint8))
    image.save(tmp_path / 'image.jpg')
    monkeypatch.chdir(tmp_path)
    variables = {}
    exec(code, variables)
    if kind == 'backbone':
        assert [y.shape[1] for y in variables['maps']] == [16, 32]
    elif library == 'transformers':
        assert "'label': 'LABEL_0'" in capsys.readouterr().out
    else:
        assert variables['scores'].shape == (1, 3)
