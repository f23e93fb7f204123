_base_ = [
    'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
    '../_base_/backbones/vmamba-t.py',
    '../_base_/safety.py',
    '../_base_/schedules/adamw_1x.py',
]
# The FPN begins at stride 8; a map of stride 4 would leave its norm without a gradient.
model = dict(
    backbone=dict(_base_.backbone, out_indices=(1, 2, 3)),
    neck=dict(in_channels=[192, 384, 768], start_level=0),
)
optim_wrapper = _base_.adamw
param_scheduler = _base_.schedule
default_hooks = _base_.safety
