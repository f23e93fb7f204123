"""Photographs to class names, in Python and by ``python -m mmvmamba.predict``."""

import csv
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import mmvmamba
from mmvmamba import predict, progress
from mmvmamba.nn import ARCHS, Arch, factory

PIL = pytest.importorskip('PIL.Image')
pytest.importorskip('torchvision')
THIN = dict(dims=(8, 16, 24, 32), depths=(1, 1, 2, 1))
CLASSES = ('cat', 'dog', 'ox')


def pixels(height=300, width=400, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def photo(**kwargs):
    return PIL.fromarray(pixels(**kwargs))


def thin(**kwargs):
    torch.manual_seed(0)
    return mmvmamba.create_model('vmamba_tiny', **THIN, **kwargs)


def expected(image, size):
    """The authors' test transform for an image in RGB, with Pillow and NumPy alone."""
    short = int(size / 0.875)
    width, height = image.size
    scale = short / min(width, height)
    sides = [short if side == min(image.size) else int(side * scale) for side in image.size]
    left, top = ((side - size) // 2 for side in sides)
    image = image.resize(sides, PIL.Resampling.BICUBIC)
    values = np.asarray(image.crop((left, top, left + size, top + size))) / 255.0
    values = (values - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    return torch.from_numpy(values.transpose(2, 0, 1)).float()


@pytest.mark.parametrize('size', [224, 64])
@pytest.mark.parametrize('shape', [(300, 400), (400, 300), (100, 100), (1, 1), (2, 200)])
def test_preprocessing(shape, size):
    image = photo(height=shape[0], width=shape[1])
    torch.testing.assert_close(predict.preprocess(image, size), expected(image, size))


def test_forms_of_an_image(tmp_path):
    """A file, an image and a tensor mean the same, and so do folders in any form."""
    image = photo()
    image.save(tmp_path / 'x.png')
    want = predict.preprocess(image)
    tensor = torch.from_numpy(pixels()).permute(2, 0, 1)
    for form in (tmp_path / 'x.png', str(tmp_path / 'x.png'), tensor):
        assert torch.equal(predict.preprocess(form), want)


@pytest.mark.parametrize('mode', ['L', '1', 'LA', 'RGBA', 'CMYK', 'P', 'YCbCr'])
def test_other_modes(mode):
    image = photo().convert(mode)
    assert torch.equal(predict.preprocess(image), predict.preprocess(image.convert('RGB')))


@pytest.mark.parametrize('suffix', ['png', 'tif'])
def test_16_bits(suffix, tmp_path):
    gray = pixels()[..., 0]
    values = (gray.astype(np.uint16) << 8) + 17
    PIL.fromarray(values).save(tmp_path / f'x.{suffix}')
    want = predict.preprocess(PIL.fromarray(gray))
    assert torch.equal(predict.preprocess(tmp_path / f'x.{suffix}'), want)


def test_orientation(tmp_path):
    image, exif = photo(), PIL.Exif()
    exif[0x0112] = 6  # the camera was turned by a quarter
    image.save(tmp_path / 'x.png', exif=exif)
    want = predict.preprocess(image.transpose(PIL.Transpose.ROTATE_270))
    assert torch.equal(predict.preprocess(tmp_path / 'x.png'), want)


def test_classify():
    net = thin(num_classes=3)
    net.class_names = CLASSES
    assert net.training
    images = [photo(seed=seed) for seed in range(2)]
    results = mmvmamba.classify(net, images, size=64)
    assert net.training and [dict(result).keys() for result in results] == [set(CLASSES)] * 2
    batch = torch.stack([expected(image, 64) for image in images])
    with torch.no_grad():
        wanted = net.eval()(batch).softmax(1)
    for image, result, want in zip(images, results, wanted, strict=True):
        for name, p in result:
            assert p == pytest.approx(float(want[CLASSES.index(name)]), abs=1e-5)
        assert [p for _, p in result] == sorted((p for _, p in result), reverse=True)
        ((name, p),) = mmvmamba.classify(net, image, topk=1, size=64)
        assert name == result[0][0] and p == pytest.approx(result[0][1], abs=1e-5)
    assert not net.training and mmvmamba.classify(net, []) == []


def test_names():
    assert predict.class_names(thin(num_classes=3), 3) == ['0', '1', '2']
    names = predict.class_names(thin(), 1000)
    assert (len(names), names[0], names[207], names[999]) == (
        *(1000, 'tench', 'golden retriever'),
        'toilet tissue',
    )
    net = thin(num_classes=3)
    net.class_names = ('a', 'b')
    assert predict.class_names(net, 3) == ['0', '1', '2']


def test_any_classifier_and_dtype():
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4)).bfloat16()
    assert len(mmvmamba.classify(net, photo())) == 4


def test_modes_of_modules_are_kept():
    net = thin(num_classes=3).train()
    net.classifier.eval()
    before = {name: module.training for name, module in net.named_modules()}
    for _ in range(2):
        mmvmamba.classify(net, photo(), size=64)
        assert {name: module.training for name, module in net.named_modules()} == before
        net.eval()
        before = dict.fromkeys(before, False)


def test_without_parameters():
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert len(mmvmamba.classify(net, photo())) == 3


def test_a_dict_is_no_scores():
    class Wrapped(nn.Module):
        def forward(self, x):
            return {'logits': x}

    words = r'model must return scores \(N, classes\), but this Wrapped returned dict'
    with pytest.raises(ValueError, match=words):
        mmvmamba.classify(Wrapped(), photo())


@pytest.mark.parametrize(
    ('image', 'error', 'words'),
    [
        ('nowhere.jpg', FileNotFoundError, "image 'nowhere.jpg' does not exist"),
        ('.', FileNotFoundError, r"image '\.' does not exist or is not a file"),
        (b'x', TypeError, 'image must be a path, a PIL image, .* got bytes'),
        (None, TypeError, 'got NoneType'),
        (torch.zeros(3, 8, 8), ValueError, r'uint8 image \(3, H, W\), but got .*float32'),
        (torch.zeros(8, 8, 3, dtype=torch.uint8), ValueError, r'but got shape \(8, 8, 3\)'),
        (torch.zeros(3, 0, 8, dtype=torch.uint8), ValueError, 'the tensor cannot be read: '),
        (PIL.new('RGB', (1, 101)), ValueError, 'factor of at most 100, but are 1 x 101 pixels'),
        (PIL.new('F', (8, 8)), ValueError, "must have 8 or 16 bits, but have 32 .mode 'F'"),
        (PIL.new('I', (8, 8)), ValueError, "the image cannot be read: .*mode 'I'"),
    ],
    ids=range(10),  # a picture has no name that is the same in each process
)
def test_bad_images(image, error, words):
    with pytest.raises(error, match=words):
        mmvmamba.classify(thin(num_classes=3), image)


def damaged(folder):
    """Write files that are no images."""
    photo().save(folder / 'truncated.jpg')
    data = (folder / 'truncated.jpg').read_bytes()
    (folder / 'truncated.jpg').write_bytes(data[: len(data) // 2])
    (folder / 'empty.png').touch()
    (folder / 'text.JPG').write_text('text')
    return ['empty.png', 'text.JPG', 'truncated.jpg']


def test_damaged_files(tmp_path):
    for name in damaged(tmp_path):
        with pytest.raises(ValueError, match=rf"image '.*{name}' cannot be read: "):
            predict.preprocess(tmp_path / name)


@pytest.mark.parametrize(
    ('kwargs', 'error', 'words'),
    [
        (dict(topk=0), ValueError, 'topk must be at least 1, but got 0'),
        (dict(topk='5'), TypeError, "topk must be an int, but got '5'"),
        (dict(size=1.5), TypeError, 'size must be an int, but got 1.5'),
        (dict(model='vmamba_tiny'), TypeError, 'model must be a torch.nn.Module, but got str'),
        (dict(features_only=True), ValueError, 'but this VMambaNet returned tuple'),
        (dict(num_classes=0), ValueError, 'this VMambaNet returned pooled features'),
        (dict(model=nn.Identity()), ValueError, r'Identity returned shape \(1, 3, 224, 224\)'),
        (dict(in_chans=1), ValueError, r'must have shape \(N, 1, H, W\)'),
    ],
    ids=str,
)
def test_bad_arguments(kwargs, error, words):
    settings = {
        k: kwargs.pop(k) for k in ('features_only', 'num_classes', 'in_chans') & kwargs.keys()
    }
    model = kwargs.pop('model', None) or thin(**settings)
    with pytest.raises(error, match=words):
        mmvmamba.classify(model, photo(), **kwargs)


@pytest.fixture
def weights(monkeypatch, tmp_path):
    """A model that the command knows by name, and a file of a training for it."""
    monkeypatch.setitem(ARCHS, 'thin', Arch(**THIN))
    monkeypatch.setitem(factory.MODEL_NAMES, 'vmamba_thin', 'thin')
    monkeypatch.chdir(tmp_path)
    meta = {'dataset_meta': {'classes': CLASSES}}
    torch.save({'state_dict': thin(num_classes=3).state_dict(), 'meta': meta}, 'weights.pth')
    return '--model', 'vmamba_thin', '--pretrained', 'weights.pth', '--device', 'cpu'


def rows(path='predictions.csv'):
    with open(path, newline='', encoding='utf-8') as file:
        return list(csv.DictReader(file))


def test_command(weights, tmp_path, capsys, caplog, monkeypatch):
    monkeypatch.setattr(progress, '_SHORT', 0.0)
    folder = tmp_path / 'photos' / 'sub folder'
    folder.mkdir(parents=True)
    images = {f'photos/{name}.png': photo(seed=i) for i, name in enumerate('ba')}
    images['photos/sub folder/ä, "c".jpg'] = photo(seed=2)
    for name, image in images.items():
        image.save(name)
    (folder / 'notes.txt').write_text('not an image')
    (folder / 'folder.jpg').mkdir()
    options = ('--topk', '2', '--batch-size', '2', '--size', '64')
    assert predict.main(['photos', *weights, *options]) == 0
    assert capsys.readouterr().out == 'predictions.csv: 3 images\n'
    progress_lines = [text for text in caplog.messages if text.startswith('classifying 3 images')]
    assert [line.split()[3] for line in progress_lines] == ['33%,', '67%,']
    found = rows()
    assert [row['file'] for row in found] == sorted(images)
    assert [*found[0]] == ['file', 'label1', 'probability1', 'label2', 'probability2', 'error']
    net = thin(pretrained='weights.pth')
    for row in found:
        want = mmvmamba.classify(net, row['file'], topk=2, size=64)
        assert [row['label1'], row['label2']] == [name for name, _ in want]
        for i, (_, p) in enumerate(want, 1):
            assert float(row[f'probability{i}']) == pytest.approx(p, abs=2e-6)


def test_other_files_of_a_folder_are_counted(tmp_path, caplog):
    (tmp_path / 'sub').mkdir()
    for name in ('a.png', 'sub/b.JPG', 'notes.txt', 'sub/c.gif'):
        (tmp_path / name).touch()
    with caplog.at_level('INFO', 'mmvmamba.predict'):
        files = predict.find_images([str(tmp_path)])
    assert files == [str(tmp_path / 'a.png'), str(tmp_path / 'sub/b.JPG')]
    assert caplog.messages == [f'{tmp_path}: skipped 2 files without an image suffix']


def test_damaged_files_of_a_folder(weights, tmp_path, capsys):
    """Each has a row with the reason, and the exit status says so."""
    (tmp_path / 'photos').mkdir()
    names = damaged(tmp_path / 'photos')
    os.symlink('nowhere', tmp_path / 'photos' / 'broken.png')
    photo().save('photos/x.png')
    assert predict.main(['photos', *weights, '--size', '64', '--out', 'out.csv']) == 1
    out, err = capsys.readouterr()
    assert out == 'out.csv: 5 images, 4 of which cannot be read\n'
    *bad, good = rows('out.csv')
    assert [row['file'] for row in bad] == [f'photos/{n}' for n in sorted([*names, 'broken.png'])]
    for row in bad:
        assert row['file'] in row['error'] and row['error'] in err and not row['label1']
    assert good['label1'] in CLASSES and not good['error']
    # All images of a batch may be damaged.
    assert predict.main(['photos', *weights, '--size', '64', '--batch-size', '1']) == 1


def test_commands_of_the_docs(weights, tmp_path, monkeypatch):
    text = (Path(__file__).parents[1] / 'docs' / 'timm.md').read_text()
    commands = re.findall(r'^python -m mmvmamba\.predict (.*)$', text, re.MULTILINE)
    assert len(commands) == 2
    monkeypatch.setitem(ARCHS, 'tiny', Arch(**THIN))
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    for folder in ('photos', 'work_dirs/mine', 'hub/checkpoints'):
        (tmp_path / folder).mkdir(parents=True)
    for name in ('a.jpg', 'photos/b.jpg'):
        photo().save(name)
    shutil.copy('weights.pth', 'work_dirs/mine/best.pth')
    torch.save(thin().state_dict(), 'hub/checkpoints/vssm1_tiny_0230s_ckpt_epoch_264.pth')
    found = []
    for command in commands:
        assert predict.main(shlex.split(command)) == 0
        found.append(rows())
    assert [len(found[0]), len(found[1])] == [1, 2]
    assert len(found[0][0]) == 12 and found[0][0]['label5'] in predict.class_names(thin(), 1000)
    assert [len(row) for row in found[1]] == [4, 4] and found[1][1]['label1'] in CLASSES


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (('nowhere',), "'nowhere' does not exist"),
        (('.',), "folder '.' contains no images"),
        (('x.ppm', '--model', 'vmamba_tin'), "'vmamba_tin'; did you mean vmamba_tiny"),
        (('x.ppm', '--pretrained', 'no.pth'), "checkpoint 'no.pth' does not exist"),
        (('x.ppm', '--pretrained', 'x.ppm'), "checkpoint 'x.ppm' cannot be read"),
        (('x.ppm', '--pretrained', 'http://127.0.0.1:1/x.pth'), 'cannot be downloaded'),
        (('x.ppm', '--device', 'tpu'), '--device tpu cannot be used: '),
        (('x.ppm', '--out', 'no/x.csv'), "No such file or directory: 'no/x.csv'"),
        (('x.ppm', '--topk', '0'), "--topk: must be an integer of at least 1, but got '0'"),
    ],
    ids=str,
)
def test_mistakes(arguments, words, weights, monkeypatch, capsys):
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    if arguments[0] == 'x.ppm':
        photo().save('x.ppm')
    with pytest.raises(SystemExit) as stop:
        predict.main([arguments[0], *weights, *arguments[1:]])
    assert stop.value.code == 2
    assert words in capsys.readouterr().err


def test_without_torchvision(tmp_path):
    code = """
import sys
sys.modules['torchvision'] = None
import mmvmamba
from mmvmamba import *
from mmvmamba import predict, progress
for call in (lambda: classify(mmvmamba.create_model('vmamba_tiny'), 'x.jpg'),
             lambda: predict.main(['x.jpg'])):
    try:
        call()
    except (ImportError, SystemExit) as error:
        print(error)
"""
    result = subprocess.run(
        [sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True, timeout=600
    )
    words = '; mmvmamba.predict requires it: pip install torchvision'
    assert words in result.stdout and words in result.stderr, result.stdout + result.stderr
