# VMamba-T, trained for two epochs from random weights for the pictures in docs/analysis.md, which
# lists the options that put each other backbone in its place.
_base_ = './vmamba-demo_demo-64x64.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmvmamba.VMamba',
        arch='tiny',
        out_indices=(3,),
        drop_path_rate=0.0,
    ),
    head=dict(in_channels=768),
)

max_epochs = 2
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
param_scheduler = [
    dict(end=20, **_base_.demo.warmup),
    dict(
        by_epoch=True,
        end=max_epochs,
        T_max=max_epochs,
        convert_to_iter_based=True,
        **_base_.demo.cosine,
    ),
]
default_hooks = dict(checkpoint=dict(interval=max_epochs))
