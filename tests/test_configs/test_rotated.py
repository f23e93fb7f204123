"""Rotated boxes: the configs for mmrotate on a picture of our own in DOTA's format."""

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml

pytest.importorskip('mmdet')

from mmengine.config import Config  # noqa: E402
from mmengine.hub import get_config  # noqa: E402
from mmengine.registry import MODELS, init_default_scope  # noqa: E402

from mmvmamba.engine.checks.channels import check_feature_maps  # noqa: E402
from mmvmamba.engine.errors import explain  # noqa: E402
from mmvmamba.engine.runner import build_runner  # noqa: E402
from mmvmamba.environment import mmcv_is_compiled  # noqa: E402
from mmvmamba.mmcv_ops import MissingOpError  # noqa: E402

from . import test_recipes  # noqa: E402

pytest.importorskip('mmrotate.evaluation', exc_type=ImportError)  # which needs the forks

FOLDER = Path(__file__).parents[2] / 'configs' / 'rotated'
RETINANET = 'rotated-retinanet-rbox-le90_vmamba-t_fpn_1x_dota.py'
ORIENTED_RCNN = 'oriented-rcnn-le90_vmamba-t_fpn_1x_dota.py'
CONFIGS = [RETINANET, ORIENTED_RCNN]
SIDE = 192
#: Center, size and angle in degrees of the objects, and their classes.
OBJECTS = [
    (((60, 62), (72, 30), 30), 'ship'),
    (((132, 120), (60, 34), -50), 'plane'),
    (((50, 142), (44, 44), 20), 'harbor'),
]


@pytest.fixture(scope='module')
def dota(tmp_path_factory):
    """A folder with one picture of three rotated rectangles and its annotation file."""
    root = tmp_path_factory.mktemp('dota')
    picture = np.random.default_rng(0).integers(0, 60, (SIDE, SIDE, 3), dtype=np.uint8)
    lines = []
    for number, (rectangle, name) in enumerate(OBJECTS):
        corners = cv2.boxPoints(rectangle)
        cv2.fillPoly(
            picture, [corners.astype(np.int32)], [(255, 80, 80)[i - number] for i in range(3)]
        )
        lines.append(' '.join(f'{value:.1f}' for value in corners.ravel()) + f' {name} 0\n')
    for folder in ('images', 'annfiles'):
        (root / 'trainval' / folder).mkdir(parents=True)
    cv2.imwrite(str(root / 'trainval' / 'images' / 'P0000.png'), picture)
    (root / 'trainval' / 'annfiles' / 'P0000.txt').write_text(''.join(lines))
    return root


def thin_runner(name, root, work_dir, steps):
    """Return the runner of a config with few channels and one picture, for some steps."""
    cfg = Config.fromfile(FOLDER / name)
    cfg.work_dir = str(work_dir)
    dims = [16, 24, 32, 48]
    stages = len(cfg.model.neck.in_channels)
    options = {
        'model.backbone': dict(dims=dims, depths=(1, 1, 1, 1), drop_path_rate=0.0, init_cfg=None),
        'model.neck': dict(in_channels=dims[-stages:], out_channels=32),
        'train_cfg': dict(
            type='IterBasedTrainLoop', max_iters=steps, val_interval=steps, _delete_=True
        ),
        'optim_wrapper.optimizer.lr': 2e-3,
        'param_scheduler': [dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=20)],
        'train_dataloader.batch_size': 1,
        'train_dataloader.sampler.type': 'InfiniteSampler',
        'randomness.seed': 0,
        'default_hooks.checkpoint': dict(by_epoch=False, interval=steps),
        'log_processor.by_epoch': False,
    }
    for loader, resize in (('train', 3), ('val', 1)):
        loader = f'{loader}_dataloader'
        options[f'{loader}.dataset.data_root'] = str(root)
        options[f'{loader}.num_workers'] = 0
        options[f'{loader}.persistent_workers'] = False
        options[f'{loader}.dataset.pipeline.{resize}.scale'] = (SIDE, SIDE)
    cfg.merge_from_dict(options)
    cfg.train_dataloader.dataset.pipeline.pop(4)  # RandomFlip
    cfg.test_dataloader = cfg.val_dataloader
    for head in ('bbox_head', 'rpn_head'):
        if head in cfg.model:
            cfg.model[head].update(in_channels=32, feat_channels=32)
    if 'roi_head' in cfg.model:
        cfg.model.roi_head.bbox_roi_extractor.out_channels = 32
        cfg.model.roi_head.bbox_head.update(in_channels=32, fc_out_channels=64)
    return build_runner(cfg)


@pytest.mark.parametrize('name', CONFIGS)
def test_what_differs_from_the_stock_config(name):
    cfg = Config.fromfile(FOLDER / name)
    folder = 'oriented_rcnn' if name == ORIENTED_RCNN else 'rotated_retinanet'
    stock = get_config(f'mmrotate::{folder}/{name.replace("vmamba-t", "r50")}')
    assert cfg.model.backbone.type == 'mmvmamba.VMamba'
    dims = [96, 192, 384, 768]
    assert cfg.model.neck.in_channels == [dims[i] for i in cfg.model.backbone.out_indices]
    assert cfg.optim_wrapper.optimizer.type == 'AdamW'
    for part in ('backbone', 'neck'):
        del cfg.model[part], stock.model[part]
    for key in ('model', 'param_scheduler', 'train_dataloader', 'val_dataloader', 'train_cfg'):
        assert test_recipes.without(cfg[key]) == test_recipes.without(stock[key]), key
    assert cfg.optim_wrapper.clip_grad == stock.optim_wrapper.clip_grad


@pytest.mark.parametrize('name', CONFIGS)
def test_recipes_are_safe(name):
    test_recipes.test_every_recipe_scales_its_rate_and_is_safe(FOLDER / name)


@pytest.mark.parametrize('name', CONFIGS)
def test_parameters_of_the_metafile(name):
    models = yaml.safe_load((FOLDER / 'metafile.yml').read_text())['Models']
    (listed,) = (model['Metadata'] for model in models if model['Config'].endswith(name))
    cfg = Config.fromfile(FOLDER / name)
    init_default_scope(cfg.default_scope)
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    check_feature_maps(cfg.model, model)
    count = sum(p.numel() for p in model.parameters()) / 1e6
    assert f'{count:.1f}' == str(listed['Parameters (M)'])
    assert f'| {count:.1f} | none | [config]({name})' in (FOLDER / 'README.md').read_text()


@pytest.mark.parametrize('name', CONFIGS)
def test_without_compiled_ops_the_missing_op_is_named(name, dota, tmp_path):
    if mmcv_is_compiled():
        pytest.skip('mmcv has compiled ops')
    with pytest.raises(MissingOpError) as caught:
        thin_runner(name, dota, tmp_path, steps=2).train()
    message = explain(caught.value)
    words = r'box_iou_rotated needs mmcv with compiled ops\. .* run `make setup MMCV=compiled` .*'
    assert re.fullmatch(words, message)  # one line


@pytest.mark.slow
@pytest.mark.parametrize('name', CONFIGS)
def test_one_picture_is_learned(name, dota, tmp_path, compiled_mmcv):
    """The loss falls, and each object is found with a rotated IoU of more than 0.5."""
    from mmcv.ops import box_iou_rotated

    runner = thin_runner(name, dota, tmp_path, steps=200)
    model = runner.train().eval()
    losses, _ = runner.message_hub.get_scalar('train/loss').data
    assert np.mean(losses[-10:]) < 0.3 * np.mean(losses[:10])
    assert runner.message_hub.get_scalar('val/dota/mAP').current() > 0.99
    (batch,) = runner.val_dataloader
    with torch.no_grad():
        (sample,) = model.test_step(batch)
    found = sample.pred_instances[sample.pred_instances.scores > 0.5]
    classes = runner.val_dataloader.dataset.metainfo['classes']
    truth = [(*center, *size, np.radians(angle)) for (center, size, angle), _ in OBJECTS]
    ious = box_iou_rotated(torch.tensor(truth, dtype=torch.float32), found.bboxes)
    for row, (_, label) in zip(ious, OBJECTS, strict=True):
        best = row.argmax()
        assert row[best] > 0.5 and classes[found.labels[best]] == label
