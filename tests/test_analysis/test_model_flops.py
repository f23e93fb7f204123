"""Parameters and multiply-adds of whole models against those of the paper and its repository."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config

import mmvmamba.registry  # noqa: F401  (resolves mmseg:: and mmvmamba::)
from mmvmamba.analysis.flops import count_multiply_adds
from mmvmamba.analysis.model_flops import count_config
from mmvmamba.models import VMamba

ROOT = Path(__file__).parents[2]
MASK_RCNN = 'configs/mask_rcnn/mask-rcnn_vmamba-{}_fpn_1x_coco.py'
UPERNET = 'configs/upernet/vmamba-{}_upernet_8xb2-160k_ade20k-{}.py'
slow = pytest.mark.slow


def count(path, shape=None):
    return count_config(Config.fromfile(ROOT / path), shape)


@pytest.mark.parametrize(
    'name, params, flops',
    [
        ('t-s2l5', '50.212', '270.186'),
        pytest.param('t', '49.755', '271.163', marks=slow),
        pytest.param('s', '69.654', '348.922', marks=slow),
        pytest.param('b', '108', '485.496', marks=slow),
    ],
)
def test_detectors(name, params, flops):
    result = count(MASK_RCNN.format(name))
    assert result.shape == (800, 1280)
    assert f'{result.params / 1e6:.{len(params.partition(".")[2])}f}' == params
    assert f'{result.published / 1e9:.3f}' == flops


@slow
@pytest.mark.parametrize(
    'arch, flops', [('tiny', '285.883'), ('small', '400.260'), ('base', '539.797')]
)
def test_vanilla_detectors(arch, flops):
    name = 'b' if arch == 'base' else 't'
    cfg = Config.fromfile(ROOT / MASK_RCNN.format(name))
    cfg.model.backbone.arch = f'vanilla_{arch}'
    assert f'{count_config(cfg).published / 1e9:.3f}' == flops


@pytest.mark.parametrize(
    'name, params, flops',
    [
        ('t', 61_902_572, '948.780'),
        pytest.param('t-s2l5', 62_359_340, '947.780', marks=slow),
        pytest.param('s', 81_801_260, '1028.405', marks=slow),
        pytest.param('b', 122_069_292, '1170.344', marks=slow),
    ],
)
def test_segmentors(name, params, flops):
    result = count(UPERNET.format(name, '512x512'))
    assert (result.shape, result.params) == ((512, 2048), params)
    assert f'{result.published / 1e9:.3f}' == flops


@slow
def test_segmentor_of_crop_640():
    result = count(UPERNET.format('s', '640x640'), (640, 2560))
    assert f'{result.published / 1e9:.2f}' == '1606.87'


@pytest.mark.parametrize(
    'name',
    [
        'dino/dino-4scale_vmamba-t_8xb2-12e_coco',
        'mask2former/mask2former_vmamba-t_8xb2-160k_ade20k-512x512',
    ],
)
def test_heads_that_depend_on_values_are_counted_on_the_cpu(name):
    cfg = Config.fromfile(ROOT / f'configs/{name}.py')
    cfg.model.backbone.update(depths=(1, 1, 1, 1), init_cfg=None)
    if 'num_queries' in cfg.model:
        cfg.model.num_queries = (
            20  # so small an image has fewer positions than the 900 of the recipe
        )
    result = count_config(cfg, (64, 64))
    backbone = VMamba(depths=(1, 1, 1, 1), out_indices=cfg.model.backbone.out_indices)
    alone = count_multiply_adds(backbone.to('meta'), torch.zeros(1, 3, 64, 64, device='meta'))
    assert result.by_op['ss2d_scan'] == alone.counts['ss2d_scan']
    assert result.flops > 2 * alone.total


def test_shapes_are_checked_and_padded():
    cfg = Config.fromfile(ROOT / MASK_RCNN.format('t'))
    cfg.model.backbone.update(depths=(1, 1, 1, 1))
    assert count_config(cfg, (65, 100)).shape == (96, 128)
    for shape in ((224,), (0, 32)):
        with pytest.raises(ValueError, match='height and a width'):
            count_config(cfg, shape)
    cfg.default_scope = 'other'
    with pytest.raises(ValueError, match="default_scope is 'other'"):
        count_config(cfg)
