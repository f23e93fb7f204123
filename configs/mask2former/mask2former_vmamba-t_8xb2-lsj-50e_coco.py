_base_ = [
    'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py',
    '../_base_/backbones/vmamba-t.py',
    '../_base_/safety.py',
]
model = dict(
    backbone=_base_.backbone,
    panoptic_head=dict(in_channels=[96, 192, 384, 768]),
)
default_hooks = _base_.safety
