# A small classifier for the crops of the demo data, trained from random weights on a CPU.
_base_ = ['mmpretrain::_base_/default_runtime.py']

classes = ('cat', 'coin', 'cup', 'motorcycle', 'person', 'rocket')
size = 64
# The statistics of the demo data's training images (RGB).
data_preprocessor = dict(
    num_classes=len(classes), mean=[121.8, 101.6, 89.8], std=[65.3, 54.2, 54.1], to_rgb=True
)
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='mmvmamba.VMamba',
        arch=dict(dims=(32, 64, 128, 256), depths=(1, 1, 2, 1), drop_path_rate=0.0),
        out_indices=(3,),
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=len(classes),
        in_channels=256,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
    ),
)

dataset = dict(
    type='CustomDataset',
    data_root='data/demo/',
    data_prefix='crops/train',
    classes=classes,
    pipeline=[
        dict(type='LoadImageFromFile'),
        dict(type='Resize', scale=(size, size), interpolation='bicubic', backend='pillow'),
        dict(type='RandomFlip', prob=0.5, direction='horizontal'),
        dict(type='PackInputs'),
    ],
)
train_dataloader = dict(
    batch_size=16,
    num_workers=0,
    persistent_workers=False,
    dataset=dataset,
    sampler=dict(type='DefaultSampler', shuffle=True),
)
val_dataloader = dict(
    batch_size=32,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        type='CustomDataset',
        data_root='data/demo/',
        data_prefix='crops/val',
        classes=classes,
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='Resize', scale=(size, size), interpolation='bicubic', backend='pillow'),
            dict(type='PackInputs'),
        ],
    ),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=(1,))
test_evaluator = val_evaluator

max_epochs = 10
train_cfg = dict(by_epoch=True, max_epochs=max_epochs, val_interval=max_epochs)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0, flat_decay_mult=0.0),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=50),
    dict(
        type='CosineAnnealingLR',
        by_epoch=True,
        begin=0,
        end=max_epochs,
        T_max=max_epochs,
        eta_min_ratio=0.01,
        convert_to_iter_based=True,
    ),
]
default_hooks = dict(
    logger=dict(interval=50), checkpoint=dict(interval=max_epochs, save_optimizer=False)
)
randomness = dict(seed=0)
