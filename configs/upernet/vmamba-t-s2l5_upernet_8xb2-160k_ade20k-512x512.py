_base_ = [
    'mmseg::swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py',
    '../_base_/backbones/vmamba-t-s2l5.py',
    '../_base_/safety.py',
]
model = dict(backbone=_base_.backbone)
# 8 GPUs with 2 images each
auto_scale_lr = dict(enable=False, base_batch_size=16)
default_hooks = _base_.safety
