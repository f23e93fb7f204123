"""demo/inference.py for the three tasks."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from PIL import Image

import mmvmamba.registry  # noqa: F401  (resolves mmvmamba::)

ROOT = Path(__file__).parents[2]
TASKS = ('detection', 'segmentation', 'classification')


@pytest.fixture
def predict(monkeypatch, capfd, tmp_path):
    """Run the script in this process, outside the repository; return its status and output."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, 'argv', ['inference.py', *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(ROOT / 'demo' / 'inference.py'), run_name='__main__')
        return stop.value.code, *capfd.readouterr()

    return run


@pytest.fixture
def photographs(tmp_path):
    """Two images of different sizes in a folder, and a file that is not an image."""
    folder = tmp_path / 'my photographs'
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, size in (('a.png', (64, 48)), ('b.jpg', (40, 56))):
        Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(folder / name)
    (folder / 'notes.txt').write_text('none')
    return folder


def weights(config, path, **content):
    cfg = Config.fromfile(config)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
    model.init_weights()
    torch.save({'state_dict': model.state_dict(), **content}, path)
    return path


def wrapped(config, path):
    """Write a config whose test data is inside a wrapper."""
    cfg = Config.fromfile(config)
    cfg.test_dataloader.dataset = dict(type='ConcatDataset', datasets=[cfg.test_dataloader.dataset])
    cfg.dump(path)
    return path


@pytest.mark.parametrize('task', TASKS)
def test_pictures_of_photographs(task, request, predict, photographs, tmp_path):
    """The checkpoint has no class names, so those of the config are used."""
    config = wrapped(request.getfixturevalue(f'{task}_config'), tmp_path / 'wrapped.py')
    if task == 'classification':  # the config has no class names, so the checkpoint must
        meta = dict(meta=dict(dataset_meta=dict(classes=('night', 'day'))))
        checkpoint = weights(config, tmp_path / 'weights.pth', **meta)
    else:
        checkpoint = weights(config, tmp_path / 'weights.pth')
    code, out, err = predict(photographs, config, checkpoint, '--out-dir', 'my pictures')
    assert code == 0, err
    pictures = {path.stem: path for path in (tmp_path / 'my pictures' / 'vis').iterdir()}
    assert sorted(pictures) == ['a', 'b']
    for name, photograph in (('a', 'a.png'), ('b', 'b.jpg')):
        with Image.open(pictures[name]) as picture, Image.open(photographs / photograph) as image:
            factor = 12 if name == 'b' else 10
            width, height = (factor * side for side in image.size)
            # Class and score of a classifier are above the image.
            assert picture.width == width and (picture.height > height) == (task == TASKS[2])
            # Something is drawn, on an image that can still be recognized.
            drawn = picture.crop((0, picture.height - height, width, picture.height)).convert('RGB')
            difference = np.subtract(drawn, image.convert('RGB').resize(drawn.size), dtype=float)
            assert np.abs(difference).mean() > 1
    assert 'wrote 2 images to my pictures/vis' in out
    if task == 'classification':
        assert 'a.png: night (' in out or 'a.png: day (' in out


@pytest.mark.parametrize(
    ('make', 'words'),
    [
        (lambda p: ['nowhere.jpg'], "image 'nowhere.jpg' does not exist"),
        (lambda p: [p.parent / 'empty'], "empty' is not an image"),
        (lambda p: [p, p.parent / 'twin'], 'images must have different file names without suffix'),
        (lambda p: [p.parent / 'no_image.pth'], "no_image.pth' is not an image"),
    ],
)
def test_wrong_images(make, words, predict, photographs, detection_config, tmp_path):
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'twin').mkdir()
    Image.new('RGB', (8, 8)).save(tmp_path / 'twin' / 'a.png')
    (tmp_path / 'no_image.pth').write_bytes(bytes(100))
    code, _, err = predict(*make(photographs), detection_config, 'weights.pth')
    assert code == 2
    assert 'inference.py: error: ' in err and words in err


def test_weights_that_do_not_fit(predict, photographs, detection_config, tmp_path):
    code, _, err = predict(photographs, detection_config, 'no.pth')
    assert code == 2 and "checkpoint 'no.pth' does not exist" in err
    checkpoint = torch.load(weights(detection_config, tmp_path / 'part.pth'), weights_only=False)
    state = {k: v for k, v in checkpoint['state_dict'].items() if 'neck' not in k}
    torch.save({'state_dict': state}, tmp_path / 'part.pth')
    code, _, err = predict(photographs, detection_config, 'part.pth')
    assert code == 2 and 'missing: neck.' in err
