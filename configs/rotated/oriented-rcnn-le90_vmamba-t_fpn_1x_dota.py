_base_ = [
    'mmrotate::oriented_rcnn/oriented-rcnn-le90_r50_fpn_1x_dota.py',
    '../_base_/backbones/vmamba-t.py',
    '../_base_/safety.py',
    '../_base_/schedules/adamw_1x.py',
]
model = dict(backbone=_base_.backbone, neck=dict(in_channels=[96, 192, 384, 768]))
# The stock schedule and clipping stay; the optimizer is that of mmrotate's Swin-T config.
adamw = _base_.adamw
optim_wrapper = dict(
    optimizer=dict(_delete_=True, **adamw.optimizer), paramwise_cfg=adamw.paramwise_cfg
)
auto_scale_lr = dict(enable=False, base_batch_size=2)
default_hooks = _base_.safety
