# A small UperNet for the demo data: 160 x 160 photographs, trained from random weights on a CPU.
_base_ = [
    'mmseg::_base_/models/upernet_swin.py',
    'mmseg::_base_/datasets/ade20k.py',
    'mmseg::_base_/default_runtime.py',
    'mmseg::_base_/schedules/schedule_20k.py',
]

# The statistics of the demo data's training images (RGB).
mean = [121.8, 101.6, 89.8]
std = [65.3, 54.2, 54.1]
crop_size = (160, 160)
num_classes = 11
channels = 48
norm_cfg = dict(type='BN', requires_grad=True)
data_preprocessor = dict(mean=mean, std=std, size=crop_size)
model = dict(
    data_preprocessor=data_preprocessor,
    backbone=dict(
        _delete_=True,
        type='mmvmamba.VMamba',
        arch=dict(dims=(32, 64, 128, 256), depths=(1, 1, 2, 1), drop_path_rate=0.0),
    ),
    decode_head=dict(
        in_channels=[32, 64, 128, 256],
        channels=channels,
        num_classes=num_classes,
        norm_cfg=norm_cfg,
    ),
    auxiliary_head=dict(
        in_channels=128, channels=channels, num_classes=num_classes, norm_cfg=norm_cfg
    ),
)

dataset_type = 'BaseSegDataset'
data_root = 'data/demo/'
metainfo = dict(
    classes=(
        'cat',
        'coin',
        'cup',
        'motorcycle',
        'person',
        'rocket',
        'brick',
        'grass',
        'gravel',
        'space',
        'wood',
    ),
    palette=[
        [220, 140, 60],
        [250, 220, 60],
        [150, 60, 30],
        [220, 30, 40],
        [240, 130, 180],
        [60, 160, 240],
        [130, 90, 90],
        [70, 170, 70],
        [140, 140, 150],
        [50, 40, 120],
        [190, 150, 100],
    ],
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='RandomFlip', prob=0.5),
    dict(
        type='PhotoMetricDistortion',
        brightness_delta=16,
        contrast_range=(0.85, 1.15),
        saturation_range=(0.8, 1.2),
        hue_delta=4,
    ),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        type=dataset_type,
        reduce_zero_label=True,
        data_root=data_root,
        metainfo=metainfo,
        data_prefix=dict(img_path='images/train', seg_map_path='annotations/train'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        type=dataset_type,
        reduce_zero_label=True,
        data_root=data_root,
        metainfo=metainfo,
        data_prefix=dict(img_path='images/val', seg_map_path='annotations/val'),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader

max_iters = 1400
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=100),
    dict(
        type='CosineAnnealingLR',
        by_epoch=False,
        begin=0,
        end=max_iters,
        T_max=max_iters,
        eta_min_ratio=0.01,
    ),
]
default_hooks = dict(
    logger=dict(interval=50), checkpoint=dict(interval=max_iters, save_optimizer=False)
)
randomness = dict(seed=0)
