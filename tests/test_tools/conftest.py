"""Fixtures: tiny datasets for the three tasks, and thin configs for them."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mmengine.runner import checkpoint
from mmengine.runner.checkpoint import CheckpointLoader
from PIL import Image

from ..conftest import GLOBALS

ROOT = Path(__file__).parents[2]
CLASSES = ('box', 'bar')

DETECTION = """
_base_ = 'mmvmamba::mask_rcnn/mask-rcnn_vmamba-t_fpn_1x_coco.py'
classes = dict(classes={classes})
model = dict(
    backbone=dict(dims=(8, 16, 24, 32), depths=(1, 1, 1, 1), init_cfg=None),
    neck=dict(in_channels=[8, 16, 24, 32], out_channels=16),
    rpn_head=dict(in_channels=16, feat_channels=16),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=16),
        bbox_head=dict(in_channels=16, fc_out_channels=16, num_classes=2),
        mask_roi_extractor=dict(out_channels=16),
        mask_head=dict(in_channels=16, conv_out_channels=16, num_classes=2),
    ),
    train_cfg=dict(rpn_proposal=dict(nms_pre=50, max_per_img=20), rcnn=dict(sampler=dict(num=16))),
    test_cfg=dict(
        rpn=dict(nms_pre=50, max_per_img=20), rcnn=dict(score_thr=0.0, max_per_img=3)
    ),
)
loader = dict(num_workers=0, persistent_workers=False)
val_dataset = dict(
    data_root={root!r},
    metainfo=classes,
    ann_file='instances.json',
    data_prefix=dict(img='images/'),
)
train_dataloader = dict(**loader, dataset=dict(**val_dataset))
val_dataloader = dict(**loader, dataset=dict(**val_dataset))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file={root!r} + '/instances.json')
test_evaluator = val_evaluator
train_cfg = dict(max_epochs=1)
default_hooks = dict(logger=dict(interval=1))
"""

SEGMENTATION = """
_base_ = 'mmvmamba::upernet/vmamba-t_upernet_8xb2-160k_ade20k-512x512.py'
crop_size = (64, 64)
model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(dims=(8, 16, 24, 32), depths=(1, 1, 1, 1), init_cfg=None),
    decode_head=dict(in_channels=[8, 16, 24, 32], channels=16, num_classes=3),
    auxiliary_head=dict(in_channels=24, channels=16, num_classes=3),
)
sizes = dict(
    RandomResize=dict(scale=(64, 64)),
    RandomCrop=dict(crop_size=crop_size),
    Resize=dict(scale=(64, 64)),
)
train_pipeline = [dict(t, **sizes.get(t['type'], {{}})) for t in _base_.train_pipeline]
test_pipeline = [dict(t, **sizes.get(t['type'], {{}})) for t in _base_.test_pipeline]
loader = dict(num_workers=0, persistent_workers=False)
dataset = dict(
    data_root={root!r},
    data_prefix=dict(img_path='images', seg_map_path='labels'),
    metainfo=dict(classes=('a', 'b', 'c'), palette=[[255, 0, 0], [0, 255, 0], [0, 0, 255]]),
    img_suffix='.png',
    type='BaseSegDataset',
    reduce_zero_label=True,
)
train_dataloader = dict(**loader, dataset=dict(pipeline=train_pipeline, **dataset))
val_dataloader = dict(**loader, dataset=dict(pipeline=test_pipeline, **dataset))
test_dataloader = val_dataloader
train_cfg = dict(max_iters=2, val_interval=2)
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=2))
"""

# The loss is a mean and nothing is random, so a batch can be split.
CLASSIFICATION = """
_base_ = ['mmpretrain::_base_/default_runtime.py']
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='mmvmamba.VMamba',
        arch=dict(dims=(8, 8, 16, 16), depths=(1, 1, 1, 1), drop_path_rate=0.0),
        out_indices=(3,),
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=2,
        in_channels=16,
        topk=(1,),
        loss=dict(type='CrossEntropyLoss'),
    ),
)
data_preprocessor = dict(num_classes=2, mean=[120] * 3, std=[60] * 3, to_rgb=True)
pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    persistent_workers=False,
    collate_fn=dict(type='default_collate'),
    dataset=dict(type='CustomDataset', data_root={root!r}, pipeline=pipeline),
    sampler=dict(type='DefaultSampler', shuffle=True),
)
val_dataloader = dict(train_dataloader, sampler=dict(type='DefaultSampler', shuffle=False))
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=(1,))
test_evaluator = val_evaluator
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.05, momentum=0.9, weight_decay=0.01))
train_cfg = dict(by_epoch=True, max_epochs=1, val_interval=1)
val_cfg = dict()
test_cfg = dict()
randomness = dict(seed=3)
"""


@pytest.fixture(scope='session')
def data_root(tmp_path_factory):
    """Four images of 64x64 with two rectangles each, for both tasks."""
    root = tmp_path_factory.mktemp('data')
    for folder in ('images', 'labels'):
        (root / folder).mkdir()
    rng = np.random.default_rng(0)
    coco = dict(images=[], annotations=[], categories=[])
    coco['categories'] = [dict(id=i + 1, name=name) for i, name in enumerate(CLASSES)]
    for image_id in range(4):
        image = rng.integers(0, 60, (64, 64, 3), dtype=np.uint8)
        labels = np.ones((64, 64), dtype=np.uint8)
        for category, (width, height) in enumerate(((24, 20), (40, 12)), start=1):
            x, y = rng.integers(0, 16), rng.integers(0, 8) + 30 * (category - 1)
            image[y : y + height, x : x + width] = (80 * category, 200, 90)
            labels[y : y + height, x : x + width] = category + 1
            left, top, right, bottom = (float(v) for v in (x, y, x + width, y + height))
            coco['annotations'].append(
                dict(
                    id=len(coco['annotations']) + 1,
                    image_id=image_id,
                    category_id=category,
                    bbox=[left, top, float(width), float(height)],
                    area=float(width * height),
                    iscrowd=0,
                    segmentation=[[left, top, right, top, right, bottom, left, bottom]],
                )
            )
        name = f'{image_id}.png'
        Image.fromarray(image).save(root / 'images' / name)
        Image.fromarray(labels).save(root / 'labels' / name)
        coco['images'].append(dict(id=image_id, file_name=name, width=64, height=64))
    (root / 'instances.json').write_text(json.dumps(coco))
    return root


@pytest.fixture(scope='session')
def detection_config(data_root, tmp_path_factory):
    path = tmp_path_factory.mktemp('configs') / 'detection.py'
    text = DETECTION.format(root=str(data_root), classes=CLASSES)
    for loader, step in (('train', 2), ('val', 1)):
        text += f'{loader}_steps = [dict(t) for t in _base_.{loader}_dataloader.dataset.pipeline]\n'
        text += f"{loader}_steps[{step}]['scale'] = (64, 64)\n"
        text += f"{loader}_dataloader['dataset']['pipeline'] = {loader}_steps\n"
    path.write_text(text)
    return path


@pytest.fixture(scope='session')
def segmentation_config(data_root, tmp_path_factory):
    path = tmp_path_factory.mktemp('configs') / 'segmentation.py'
    path.write_text(SEGMENTATION.format(root=str(data_root)))
    return path


@pytest.fixture(scope='session')
def classification_config(tmp_path_factory):
    """Eight images of 32x32 of two classes, and a config for them."""
    root = tmp_path_factory.mktemp('crops')
    rng = np.random.default_rng(0)
    for name, low in (('dark', 0), ('light', 100)):
        (root / name).mkdir()
        for i in range(4):
            image = rng.integers(low, low + 150, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(image).save(root / name / f'{i}.png')
    path = tmp_path_factory.mktemp('configs') / 'classification.py'
    path.write_text(CLASSIFICATION.format(root=str(root)))
    return path


@pytest.fixture(scope='session')
def run_script():
    """Run a script by path in its own process, from a folder outside the repository."""

    def run(script, *args, cwd, check=True, launcher=()):
        # One thread: several test processes share the cores.
        env = dict(os.environ, CUDA_VISIBLE_DEVICES='', OMP_NUM_THREADS='1')
        command = [sys.executable, *launcher, str(script), *map(str, args)]
        result = subprocess.run(
            command, cwd=cwd, env=env, capture_output=True, text=True, timeout=1800, check=False
        )
        if check:
            assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
        return result

    return run


@pytest.fixture
def run_here(monkeypatch, tmp_path, capfd):
    """Run a tool in this process, which is faster; return its exit status and stderr."""

    def run(name, *args):
        # As in a new process: two runs of the same second would have a logger in common.
        for cls in GLOBALS:
            cls._instance_dict.clear()
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, 'argv', [name, *map(str, args)])
        script = ROOT / 'tools' / name
        monkeypatch.syspath_prepend(str(script.parent))
        # Tools replace MMEngine's loader for their process.
        monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))
        monkeypatch.setattr(checkpoint, 'print_log', checkpoint.print_log)
        monkeypatch.setattr(sys, 'unraisablehook', sys.unraisablehook)
        try:
            runpy.run_path(str(script), run_name='__main__')
        except SystemExit as stop:
            return stop.code, capfd.readouterr().err
        raise AssertionError(f'{name} did not exit')

    return run
