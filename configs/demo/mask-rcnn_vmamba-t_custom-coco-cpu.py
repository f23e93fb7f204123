# The template for a first result on a CPU: small images and 100 steps. It inherits from the copy of
# the template in the same folder.
_base_ = './mask-rcnn_vmamba-t_custom-coco.py'

image_size = (256, 256)
max_iters = 100

# --------------------------------------------------------------------------------------------------

resize = dict(Resize=dict(scale=image_size))
train_pipeline = [dict(step, **resize.get(step['type'], {})) for step in _base_.train_pipeline]
test_pipeline = [dict(step, **resize.get(step['type'], {})) for step in _base_.test_pipeline]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
# The heads take most of the time for a small image, so they get fewer regions.
model = dict(
    train_cfg=dict(rpn_proposal=dict(max_per_img=200), rcnn=dict(sampler=dict(num=32))),
    test_cfg=dict(rpn=dict(max_per_img=100), rcnn=dict(max_per_img=10)),
)
train_cfg = dict(
    _delete_=True, type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters
)
# So few steps need the full learning rate.
auto_scale_lr = dict(enable=False, base_batch_size=_base_.batch_size)
param_scheduler = [dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=10)]
default_hooks = dict(
    checkpoint=dict(by_epoch=False, interval=max_iters), logger=dict(log_metric_by_epoch=False)
)
log_processor = dict(by_epoch=False)
