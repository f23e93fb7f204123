_base_ = [
    'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py',
    '../_base_/backbones/vmamba-t.py',
    '../_base_/safety.py',
]
model = dict(
    backbone=dict(_base_.backbone, out_indices=(1, 2, 3)),
    neck=dict(in_channels=[192, 384, 768]),
)
default_hooks = _base_.safety
