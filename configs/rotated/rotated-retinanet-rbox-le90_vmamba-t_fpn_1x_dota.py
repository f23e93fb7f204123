_base_ = [
    'mmrotate::rotated_retinanet/rotated-retinanet-rbox-le90_r50_fpn_1x_dota.py',
    '../_base_/backbones/vmamba-t.py',
    '../_base_/safety.py',
    '../_base_/schedules/adamw_1x.py',
]
# The FPN begins at stride 8; a map of stride 4 would leave its norm without a gradient.
model = dict(
    backbone=dict(_base_.backbone, out_indices=(1, 2, 3)),
    neck=dict(in_channels=[192, 384, 768], start_level=0),
)
# The stock schedule and clipping stay; the optimizer is that of mmrotate's Swin-T config.
adamw = _base_.adamw
optim_wrapper = dict(
    optimizer=dict(_delete_=True, **adamw.optimizer), paramwise_cfg=adamw.paramwise_cfg
)
auto_scale_lr = dict(enable=False, base_batch_size=2)
default_hooks = _base_.safety
