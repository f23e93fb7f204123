# A small classifier for the crops of the demo data, trained from random weights on a CPU.
_base_ = ['./_base_/demo.py', 'mmpretrain::_base_/default_runtime.py']

demo = _base_.demo
classes = demo.things
size = 64
data_preprocessor = dict(num_classes=len(classes), mean=demo.mean, std=demo.std, to_rgb=True)
model = dict(
    type='ImageClassifier',
    backbone=dict(out_indices=(3,), **demo.backbone),
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
    data_root=demo.data_root,
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
    **demo.loader,
    dataset=dataset,
    sampler=dict(type='DefaultSampler', shuffle=True),
)
val_dataloader = dict(
    batch_size=32,
    **demo.loader,
    dataset=dict(
        type='CustomDataset',
        data_root=demo.data_root,
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
    optimizer=dict(lr=1e-3, **demo.optimizer),
    paramwise_cfg=dict(flat_decay_mult=0.0, **demo.paramwise_cfg),
    clip_grad=demo.clip_grad,
)
param_scheduler = [
    dict(end=50, **demo.warmup),
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
