# A small UperNet for the demo data: 160 x 160 photographs, trained from random weights on a CPU.
_base_ = [
    './_base_/demo.py',
    'mmseg::_base_/models/upernet_swin.py',
    'mmseg::_base_/datasets/ade20k.py',
    'mmseg::_base_/default_runtime.py',
    'mmseg::_base_/schedules/schedule_20k.py',
]

demo = _base_.demo
mean = demo.mean
std = demo.std
crop_size = (160, 160)
num_classes = len(demo.things) + len(demo.stuff)
channels = 48
norm_cfg = dict(type='BN', requires_grad=True)
data_preprocessor = dict(mean=mean, std=std, size=crop_size)
model = dict(
    data_preprocessor=data_preprocessor,
    backbone=dict(_delete_=True, **demo.backbone),
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
data_root = demo.data_root
metainfo = dict(
    classes=(*demo.things, *demo.stuff),
    palette=[list(color) for color in (*demo.things_palette, *demo.stuff_palette)],
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
    **demo.loader,
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
    **demo.loader,
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
    optimizer=dict(lr=2e-3, **demo.optimizer),
    paramwise_cfg=demo.paramwise_cfg,
    clip_grad=demo.clip_grad,
)
param_scheduler = [
    dict(end=100, **demo.warmup),
    dict(by_epoch=False, end=max_iters, T_max=max_iters, **demo.cosine),
]
default_hooks = dict(logger=demo.logger, checkpoint=dict(interval=max_iters, **demo.checkpoint))
randomness = demo.randomness
