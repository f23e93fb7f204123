"""The accuracy of a classifier at other sizes."""

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from PIL import Image
from torch import nn

from mmvmamba.engine.errors import UserError

from ...analysis_tools import load

accuracy, analysis_model = load('accuracy'), load('analysis_model')
load_model = analysis_model.load_model
CPU = torch.device('cpu')
#: Of the colors (R, G, B) the class of a picture is its brightest.
COLOURS = ('a_red', 'b_green', 'c_blue')

CONFIG = """
_base_ = ['mmpretrain::_base_/default_runtime.py']
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='mmvmamba.VMamba', arch=dict(dims=(8, 8), depths=(1, 1)), out_indices=(1,)
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=3, in_channels=8, topk=(1,)),
)
data_preprocessor = dict(num_classes=3, mean=[90, 80, 70], std=[60, 50, 40], to_rgb=True)
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=37, edge='short', backend='cv2', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=32),
    dict(type='PackInputs'),
]
test_dataloader = dict(
    batch_size=5,
    num_workers=0,
    persistent_workers=False,
    collate_fn=dict(type='default_collate'),
    dataset=dict(type='CustomDataset', data_root={root!r}, pipeline=pipeline),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
test_evaluator = dict(type='Accuracy', topk=(1,))
test_cfg = dict()
work_dir = {work_dir!r}
randomness = dict(seed=3)
"""


class Brightest(nn.Module):
    """Scores are the mean of R, G and B; remembers the sizes that it saw."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def forward(self, images):
        self.seen.add(tuple(images.shape[2:]))
        return images.mean((2, 3))


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    """Noisy pictures of a color: four of red, green and blue, one of them in the wrong folder."""
    root, rng = tmp_path_factory.mktemp('colors'), np.random.default_rng(0)
    for channel, name in enumerate(COLOURS):
        (root / name).mkdir()
        for i in range(4):
            picture = rng.integers(0, 100, (50, 70, 3), dtype=np.uint8)
            wrong = (channel, i) == (0, 0)
            picture[..., (channel + wrong) % 3] += 100
            Image.fromarray(picture).save(root / name / f'{i}.png')
    return root


def wrapped(net):
    return analysis_model.AnalysisModel('net', net, net, mean=(0, 0, 0), std=(1, 1, 1))


def top1(model, root, side=32, batch_size=5):
    return accuracy.top1_accuracy(model, str(root), side, batch_size, CPU)


def test_accuracy_of_a_folder(root):
    net = Brightest()
    for side in (32, 48):
        assert top1(wrapped(net), root, side) == pytest.approx(100 * 11 / 12)
    assert net.seen == {(32, 32), (48, 48)}


def test_accuracy_is_that_of_the_runner(root, tmp_path):
    """With the same pipeline in a config."""
    path = tmp_path / 'colors.py'
    path.write_text(CONFIG.format(root=str(root), work_dir=str(tmp_path)))
    torch.manual_seed(0)
    model = load_model(str(path))
    with torch.no_grad():
        model.net.head.fc.weight.normal_()
    weights = tmp_path / 'weights.pth'
    torch.save(dict(state_dict=model.net.state_dict()), weights)
    cfg = Config.fromfile(path)
    cfg.load_from = str(weights)
    expected = Runner.from_cfg(cfg).test()['accuracy/top1']
    found = top1(load_model(str(path), str(weights)), root, batch_size=4)
    assert found == pytest.approx(expected) and 0 < found < 100


def test_accuracy_refuses(root):
    with pytest.raises(UserError, match='must be a classifier'):
        top1(wrapped(nn.Identity()), root)
    small = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    with pytest.raises(UserError, match='has 2 classes, but the data has a label 2'):
        top1(wrapped(small), root, batch_size=12)
