"""Necks and heads for other channels than the backbone's are named before the first step."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from mmvmamba.engine.checks.channels import (
    check_color_transforms,
    check_feature_maps,
    check_image_channels,
    model_channels,
)
from mmvmamba.engine.checks.report import Report
from mmvmamba.engine.errors import UserError
from mmvmamba.models import VMamba

CONFIGS = Path(__file__).parents[3] / 'configs'
ALL = [96, 192, 384, 768]
FPN = dict(type='mmdet.FPN', in_channels=ALL, out_channels=8, num_outs=5)
BFP = dict(type='BFP', in_channels=8, num_levels=5)
GAP = dict(type='mmpretrain.GlobalAveragePooling')


def linear_head(channels):
    return dict(type='mmpretrain.LinearClsHead', num_classes=3, in_channels=channels)


def check(backbone, scope='mmdet', **parts):
    model = nn.Module()
    with torch.device('meta'):
        model.backbone = VMamba(**backbone)
    with DefaultScope.overwrite_default_scope(scope):
        for name in {'neck', 'head'} & {key for key, part in parts.items() if part}:
            setattr(model, name, MODELS.build(parts[name]))
        state = {key: value.clone() for key, value in model.state_dict().items()}
        check_feature_maps(parts, model)
    assert model.training
    for key, value in model.state_dict().items():
        assert value.is_meta or torch.equal(value, state[key])


@MODELS.register_module()
class Reversed(nn.Module):
    """A neck whose channels are in another order than its maps."""

    def __init__(self, in_channels):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(c, 2, 1) for c in in_channels)

    def forward(self, maps):
        assert len(maps) == len(self.convs)
        return tuple(conv(x) for conv, x in zip(self.convs, reversed(maps), strict=True))


@MODELS.register_module()
class Broken(Reversed):
    """Neck that fails on a CPU, as one for GPUs would."""

    def forward(self, maps):
        raise NotImplementedError


@MODELS.register_module()
class Nested(nn.Module):
    """Neck with a tuple for each map."""

    def forward(self, maps):
        return tuple((x, x.mean()) for x in maps)


@MODELS.register_module()
class Concatenating(nn.Module):
    """A classification head for the features of all stages."""

    def __init__(self, in_channels):
        super().__init__()
        self.fc = nn.Linear(in_channels, 2)

    def forward(self, features):
        return self.fc(torch.cat(features, 1))


@pytest.mark.parametrize(
    ('backbone', 'parts', 'message'),
    [
        (dict(out_indices=(0, 1, 2)), dict(neck=FPN), r'returns 3 map\(s\) with \[96, 192, 384\]'),
        (dict(out_indices=(1, 2)), dict(neck=FPN), r'\(out_indices \(1, 2\)\)'),
        (dict(arch='base'), dict(neck=FPN), r'model.neck.in_channels is \[96, 192, 384, 768\]'),
        (
            dict(),
            dict(
                neck=[
                    dict(FPN, in_channels=[256] * 4),
                    dict(type='BFP', in_channels=8, num_levels=5),
                ]
            ),
            r'neck\[0\].in_channels is',
        ),
        (
            dict(),
            dict(
                neck=dict(
                    type='DilatedEncoder',
                    in_channels=384,
                    out_channels=8,
                    block_mid_channels=4,
                    num_residual_blocks=1,
                    block_dilations=[2],
                )
            ),
            'model.neck.in_channels is 384',
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
            dict(neck=GAP, head=linear_head(768)),
            r'1 map\(s\) with \[1024\].*model.head.in_channels is 768',
        ),
    ],
)
def test_mismatches(backbone, parts, message):
    with pytest.raises(UserError, match=message):
        check(backbone, **parts)


@pytest.mark.parametrize(
    ('backbone', 'parts'),
    [
        (dict(), dict(neck=FPN)),
        (dict(arch='base'), dict(neck=dict(FPN, in_channels=[128, 256, 512, 1024]))),
        (
            dict(out_indices=(-1, 1)),
            dict(neck=dict(type='ChannelMapper', in_channels=[768, 192], out_channels=8)),
        ),
        (
            dict(out_indices=(1, 2, 3)),
            dict(
                neck=dict(
                    type='YOLOV3Neck',
                    num_scales=3,
                    in_channels=[768, 384, 192],
                    out_channels=[8, 8, 8],
                )
            ),
        ),
        (
            dict(),
            dict(
                neck=dict(
                    type='NASFPN',
                    in_channels=[96, 192, 384],
                    out_channels=8,
                    num_outs=5,
                    stack_times=1,
                )
            ),
        ),
        (dict(), dict(neck=dict(type='Reversed', in_channels=ALL[::-1]))),
        (dict(), dict(neck=dict(type='Broken', in_channels=[1]))),
        (dict(), dict(neck=dict(type='Broken', in_channels=[]))),
        (dict(), dict(neck=dict(type='Nested'), head=linear_head(1))),
        (dict(), dict(neck=GAP, head=linear_head(768))),
        (dict(), dict(neck=GAP, head=dict(type='Concatenating', in_channels=sum(ALL)))),
        (dict(), dict(decode_head=dict(in_channels=[], in_index=[]))),
        (dict(), dict(decode_head=dict(in_channels=768))),
        (dict(), dict(decode_head=dict(in_channels=[768, 96], in_index=[3, 0]))),
        (dict(), dict(neck=FPN, decode_head=dict(in_channels=256))),
        (dict(), dict(head=linear_head(1))),
        (dict(), dict()),
    ],
)
def test_matches_and_parts_that_are_not_judged(backbone, parts):
    check(backbone, **parts)


def test_a_neck_given_as_a_class():
    from mmdet.models import FPN as kind

    with pytest.raises(UserError, match='model.neck.in_channels'):
        check(dict(out_indices=(0, 1)), neck=dict(FPN, type=kind))


def test_a_neck_that_the_config_does_not_name():
    model = nn.Module()
    with torch.device('meta'):
        model.backbone = VMamba()
    model.neck, model.head = nn.Identity(), nn.Identity()
    check_feature_maps(dict(head=linear_head(768)), model)
    model.neck = Broken([1])
    check_feature_maps(dict(head=linear_head(768)), model)


@MODELS.register_module()
class Empty(nn.Module):
    def forward(self, maps):
        return ()


def test_a_neck_without_maps():
    check(dict(), neck=dict(type='Empty'), head=linear_head(1))


def test_other_backbones_are_not_judged():
    class OneMore(VMamba):
        def forward(self, x):
            return (*super().forward(x), x)

    model = nn.Module()
    for model.backbone in (nn.Identity(), OneMore(dict(dims=(8,), depths=(1,)), (0,))):
        check_feature_maps(dict(neck=dict(FPN, in_channels=[8, 3])), model)
    check_feature_maps(dict(neck=FPN), nn.Identity())


def test_all_our_configs_match():
    seen = 0
    for path in sorted(CONFIGS.glob('*/*.py')):
        if path.parent.name in ('_base_', 'rotated'):
            continue
        cfg = Config.fromfile(path)
        backbone = dict(cfg.model.backbone)
        if backbone.pop('type') != 'mmvmamba.VMamba':
            continue
        parts = {k: v for k, v in cfg.model.items() if k != 'backbone'}
        check(backbone, cfg.get('default_scope'), **parts)
        seen += 1
    assert seen > 30


@pytest.mark.parametrize(
    ('backbone', 'channels'),
    [
        (dict(type='mmvmamba.VMamba'), 3),
        (dict(type=VMamba, in_channels=12), 12),
        (dict(type='mmvmamba.MM_VSSM', in_chans=4), 4),
        (dict(type='mmdet.ResNet'), None),
        (None, None),
    ],
)
def test_image_channels_in_a_config(backbone, channels):
    assert model_channels(Config(dict(model=dict(backbone=backbone)))) == channels
    for kind in ('mmseg.SegDataPreProcessor', 'mmvmamba.MultispectralPreprocessor'):
        model = dict(backbone=backbone, data_preprocessor=dict(type=kind))
        assert model_channels(Config(dict(model=model))) == channels
    cfg = dict(model=dict(backbone=backbone), data_preprocessor=dict(type='SelectsBands'))
    assert model_channels(Config(cfg)) is None


@pytest.mark.parametrize('count', [1, 3, 12])
def test_image_channels_of_a_model(count):
    model = nn.Module()
    check_image_channels(model)
    model.data_preprocessor = nn.Module()
    with torch.device('meta'):
        model.backbone = VMamba(in_channels=12)
    check_image_channels(model)
    model.data_preprocessor.register_buffer('mean', torch.zeros(count, 1, 1))
    if count == 3:
        words = 'in_channels is 12, but the mean of the data preprocessor has 3 values'
        with pytest.raises(UserError, match=words):
            check_image_channels(model)
    else:
        check_image_channels(model)


def test_bands_that_the_images_lack():
    model = nn.Module()
    with torch.device('meta'):
        model.backbone = VMamba(in_channels=12)
    model.data_preprocessor = nn.Module()
    model.data_preprocessor.mean = torch.zeros(12, 1, 1)
    check_image_channels(model, (3, 2, 11))
    words = r'visualizer.bands must be less than .*in_channels \(12\), but got \(3, 2, 12\)'
    with pytest.raises(UserError, match=words):
        check_image_channels(model, (3, 2, 12))


@pytest.mark.parametrize(('channels', 'count'), [(None, 0), (3, 0), (1, 1), (12, 1)])
def test_transforms_of_colors(channels, count):
    steps = [dict(type='LoadImageFromFile'), dict(type='mmseg.PhotoMetricDistortion')]
    report = Report()
    check_color_transforms(dict(type='BaseSegDataset', pipeline=steps), report, channels)
    found = list(report.groups('error'))
    assert len(found) == count
    for group in found:
        words = f'`PhotoMetricDistortion` needs three channels, but the model takes {channels}'
        assert (group.path, group.kind) == ('BaseSegDataset.pipeline', words)
