"""Choice of a model's exported part, without weights."""

import pytest
import torch
from mmengine.config import Config
from torch import nn

from mmvmamba.engine.errors import UserError
from mmvmamba.export.parts import ExportedModel, choose_part


class Segmentor(nn.Module):
    """A stand-in for a segmentor whose logits have half the size of the images."""

    align_corners = False

    def __init__(self):
        super().__init__()
        self.backbone = nn.AvgPool2d(2)
        self.decode_head = nn.Identity()

    def forward(self, images, mode):
        assert mode == 'tensor'
        return self.decode_head(self.backbone(images))


def choose(task, part, model=None):
    return choose_part(Config(dict(default_scope=task, model={})), model or Segmentor(), part)


def test_default_parts():
    assert choose('mmseg', None) == 'whole'
    detector = nn.Module()
    detector.neck = nn.Identity()
    assert choose('mmdet', None, detector) == 'neck'


@pytest.mark.parametrize(
    ('task', 'part', 'message'),
    [
        ('mmpose', None, "default_scope must be one of .*but got 'mmpose'"),
        ('mmdet', 'whole', 'only the backbone and neck of a detector'),
        ('mmseg', 'neck', 'Segmentor has no neck'),
    ],
)
def test_parts_that_cannot_be_exported(task, part, message):
    with pytest.raises(UserError, match=message):
        choose(task, part)


def test_a_head_that_needs_samples_is_refused():
    model = Segmentor()
    model.decode_head.pixel_decoder = nn.Identity()
    with pytest.raises(UserError, match='Identity needs data samples; use --part backbone'):
        choose('mmseg', None, model)


def test_logits_have_the_size_of_the_images():
    images = torch.randn(1, 3, 6, 8)
    (logits,) = ExportedModel(Segmentor(), 'whole')(images)
    assert logits.shape == images.shape
