# The template for a first result on a CPU: small images and 100 steps. It inherits from the copy of
# the template in the same folder.
_base_ = './vmamba-t_upernet_custom.py'

image_size = 128
batch_size = 2
max_iters = 100

# --------------------------------------------------------------------------------------------------

crop_size = (image_size, image_size)
own = dict(
    RandomResize=dict(scale=(4 * image_size, image_size)),
    RandomCrop=dict(crop_size=crop_size),
    Resize=dict(scale=(4 * image_size, image_size)),
)
train_pipeline = [dict(step, **own.get(step['type'], {})) for step in _base_.train_pipeline]
test_pipeline = [dict(step, **own.get(step['type'], {})) for step in _base_.test_pipeline]
model = dict(data_preprocessor=dict(size=crop_size))
train_dataloader = dict(batch_size=batch_size, num_workers=2, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(num_workers=2, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
# So few steps need the full learning rate.
auto_scale_lr = dict(enable=False, base_batch_size=batch_size)
param_scheduler = [dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=10)]
default_hooks = dict(checkpoint=dict(interval=max_iters))
