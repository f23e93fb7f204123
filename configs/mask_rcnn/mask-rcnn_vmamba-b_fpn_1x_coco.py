_base_ = [
    'mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py',
    '../_base_/backbones/vmamba-b.py',
    '../_base_/safety.py',
]
model = dict(backbone=_base_.backbone, neck=dict(in_channels=[128, 256, 512, 1024]))
default_hooks = _base_.safety
