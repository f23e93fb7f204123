# A small Mask R-CNN for the demo data: 160 x 160 photographs, trained from random weights on a CPU.
_base_ = [
    './_base_/demo.py',
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    'mmdet::_base_/datasets/coco_instance.py',
    'mmdet::_base_/default_runtime.py',
]

demo = _base_.demo
mean = demo.mean
std = demo.std
num_classes = len(demo.things)
channels = 64
model = dict(
    data_preprocessor=dict(mean=mean, std=std),
    backbone=dict(_delete_=True, **demo.backbone),
    neck=dict(
        in_channels=[32, 64, 128, 256], out_channels=channels, norm_cfg=dict(type='BN'), num_outs=4
    ),
    # The objects' sides are between 32 and 136 pixels.
    rpn_head=dict(
        in_channels=channels,
        feat_channels=channels,
        anchor_generator=dict(scales=[6], strides=[4, 8, 16, 32]),
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(
            roi_layer=dict(sampling_ratio=1), out_channels=channels, finest_scale=28
        ),
        bbox_head=dict(in_channels=channels, fc_out_channels=256, num_classes=num_classes),
        mask_roi_extractor=dict(
            roi_layer=dict(sampling_ratio=1), out_channels=channels, finest_scale=28
        ),
        mask_head=dict(
            num_convs=2,
            in_channels=channels,
            conv_out_channels=channels,
            num_classes=num_classes,
            norm_cfg=dict(type='BN'),
        ),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=128)),
        rpn_proposal=dict(nms_pre=300, max_per_img=100),
        rcnn=dict(sampler=dict(num=64)),
    ),
    test_cfg=dict(
        rpn=dict(nms_pre=300, max_per_img=100),
        rcnn=dict(max_per_img=20),
    ),
)

data_root = demo.data_root
metainfo = dict(classes=demo.things, palette=demo.things_palette)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True, poly2mask=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(160, 160), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
train_dataloader = dict(
    batch_size=4,
    **demo.loader,
    dataset=dict(
        data_root=data_root,
        metainfo=metainfo,
        ann_file='annotations/instances_train.json',
        data_prefix=dict(img='images/train/'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=8,
    **demo.loader,
    dataset=dict(
        data_root=data_root,
        metainfo=metainfo,
        ann_file='annotations/instances_val.json',
        data_prefix=dict(img='images/val/'),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val.json')
test_evaluator = val_evaluator

max_epochs = 16
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=max_epochs)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(lr=1e-3, **demo.optimizer),
    paramwise_cfg=demo.paramwise_cfg,
    clip_grad=demo.clip_grad,
)
param_scheduler = [
    dict(end=200, **demo.warmup),
    dict(
        by_epoch=True,
        end=max_epochs,
        T_max=max_epochs,
        convert_to_iter_based=True,
        **demo.cosine,
    ),
]
default_hooks = dict(logger=demo.logger, checkpoint=dict(interval=max_epochs, **demo.checkpoint))
randomness = demo.randomness
