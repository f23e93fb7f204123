_base_ = [
    'mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_ms-crop-3x_coco.py',
    '../_base_/backbones/vmamba-t.py',
    '../_base_/safety.py',
]
model = dict(backbone=_base_.backbone)
default_hooks = _base_.safety
