_base_ = [
    'mmseg::mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py',
    '../_base_/backbones/vmamba-t.py',
    '../_base_/safety.py',
]
model = dict(backbone=_base_.backbone, decode_head=dict(in_channels=[96, 192, 384, 768]))
default_hooks = _base_.safety
