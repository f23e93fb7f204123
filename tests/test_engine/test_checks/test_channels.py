"""A neck or a head that does not take the backbone's maps is named before the first step."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from torch import nn

from mmvmamba.engine.checks.channels import check_feature_maps
from mmvmamba.engine.errors import UserError
from mmvmamba.models import VMamba

CONFIGS = Path(__file__).parents[3] / 'configs'
ALL = [96, 192, 384, 768]
FPN = dict(type='FPN', in_channels=ALL)


def check(backbone, **parts):
    model = nn.Module()
    with torch.device('meta'):
        model.backbone = VMamba(**backbone)
    check_feature_maps(parts, model)


@pytest.mark.parametrize(
    ('backbone', 'parts', 'message'),
    [
        (dict(out_indices=(0, 1, 2)), dict(neck=FPN), r'gives 3 maps of \[96, 192, 384\]'),
        (dict(out_indices=(1, 2)), dict(neck=FPN), r'\(out_indices \(1, 2\)\)'),
        (dict(arch='base'), dict(neck=FPN), r'model.neck.in_channels is \[96, 192, 384, 768\]'),
        (
            dict(),
            dict(neck=[dict(type='mmdet.FPN', in_channels=[256] * 4), {}]),
            r'neck\[0\].in_channels is',
        ),
        (dict(), dict(panoptic_head=dict(in_channels=[96, 192, 384])), 'panoptic_head.in_channels'),
        (dict(), dict(decode_head=dict(in_channels=384)), 'model.decode_head.in_channels is 384'),
        (
            dict(out_indices=(0, 1)),
            dict(decode_head=dict(in_channels=ALL, in_index=[0, 1, 2, 3])),
            r'but model.decode_head.in_index is \[0, 1, 2, 3\]',
        ),
        (
            dict(),
            dict(auxiliary_head=[dict(in_channels=384, in_index=1)]),
            r'auxiliary_head\[0\].in_channels is 384',
        ),
        (
            dict(arch='base', out_indices=(3,)),
            dict(neck=dict(type='GlobalAveragePooling'), head=dict(in_channels=768)),
            r'1 maps of \[1024\].*model.head.in_channels is 768',
        ),
    ],
)
def test_parts_that_do_not_fit(backbone, parts, message):
    with pytest.raises(UserError, match=message):
        check(backbone, **parts)


@pytest.mark.parametrize(
    ('backbone', 'parts'),
    [
        (dict(), dict(neck=FPN)),
        (dict(arch='base'), dict(neck=dict(FPN, in_channels=(128, 256, 512, 1024)))),
        (dict(out_indices=(-1, 1)), dict(neck=dict(type='ChannelMapper', in_channels=[192, 768]))),
        (dict(), dict(neck=dict(type='YOLOV3Neck', in_channels=[768, 384, 192]))),
        (dict(), dict(neck=dict(type='NASFPN', in_channels=[96, 192, 384]))),
        (dict(), dict(neck=dict(type='OwnPooling', out_channels=2), head=dict(in_channels=2))),
        (dict(), dict(decode_head=dict(in_channels=96, in_index='first'))),
        (dict(), dict(decode_head=dict(in_channels=[], in_index=[]))),
        (dict(), dict(decode_head=dict(in_channels=768))),
        (dict(), dict(decode_head=dict(in_channels=[768, 96], in_index=[3, 0]))),
        (dict(), dict(neck=dict(type='Feature2Pyramid'), decode_head=dict(in_channels=1))),
        (dict(), dict(neck=FPN, decode_head=dict(in_channels=256))),
        (dict(), dict(head=dict(in_channels=1))),
        (dict(), dict()),
    ],
)
def test_parts_that_fit_or_are_not_judged(backbone, parts):
    check(backbone, **parts)


def test_a_neck_given_as_a_class():
    from mmdet.models import FPN as kind

    with pytest.raises(UserError, match='model.neck.in_channels'):
        check(dict(out_indices=(0, 1)), neck=dict(type=kind, in_channels=ALL))


def test_other_backbones_are_not_judged():
    class OneMore(VMamba):
        def forward(self, x):
            return (*super().forward(x), x)

    model = nn.Module()
    for model.backbone in (nn.Identity(), OneMore(dict(dims=(8,), depths=(1,)), (0,))):
        check_feature_maps(dict(neck=dict(FPN, in_channels=[8, 3])), model)
    check_feature_maps(dict(neck=FPN), nn.Identity())


def test_all_our_configs_fit():
    seen = 0
    for path in sorted(CONFIGS.glob('*/*.py')):
        if path.parent.name == '_base_':
            continue
        cfg = Config.fromfile(path)
        backbone = dict(cfg.model.backbone)
        if backbone.pop('type') != 'mmvmamba.VMamba':
            continue
        check(backbone, **{k: v for k, v in cfg.model.items() if k != 'backbone'})
        seen += 1
    assert seen > 30
