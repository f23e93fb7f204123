_base_ = [
    'mmdet::cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py',
    '../_base_/backbones/vmamba-t.py',
    '../_base_/safety.py',
    '../_base_/schedules/adamw_1x.py',
]
model = dict(backbone=_base_.backbone, neck=dict(in_channels=[96, 192, 384, 768]))
optim_wrapper = _base_.adamw
param_scheduler = _base_.schedule
default_hooks = _base_.safety
