# The paper's recipe: that of Swin, with 128 images on each of 8 GPUs, fp16 and a moving average.
_base_ = [
    'mmpretrain::_base_/models/swin_transformer/tiny_224.py',
    'mmpretrain::_base_/datasets/imagenet_bs64_swin_224.py',
    'mmpretrain::_base_/schedules/imagenet_bs1024_adamw_swin.py',
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/safety.py',
]

# The drop-path rate is the architecture's. The norm of the last stage is the classifier's.
model = dict(
    backbone=dict(_delete_=True, type='mmvmamba.VMamba', arch='tiny_s1l8', out_indices=(3,)),
)
train_dataloader = dict(batch_size=128)
val_dataloader = dict(batch_size=128)
test_dataloader = val_dataloader
optim_wrapper = dict(
    type='AmpOptimWrapper',
    dtype='float16',
    loss_scale='dynamic',
    clip_grad=dict(max_norm=5.0),
)
custom_hooks = [dict(type='EMAHook', momentum=1e-4, priority='ABOVE_NORMAL')]
default_hooks = _base_.safety
