_base_ = './vmamba-s_upernet_8xb2-160k_ade20k-512x512.py'
crop_size = (640, 640)
data_preprocessor = dict(size=crop_size)
model = dict(data_preprocessor=data_preprocessor)
# The pipelines of mmseg's _base_/datasets/ade20k_640x640.py, which cannot be a second base beside
# one that has a dataset already.
sizes = dict(
    RandomResize=dict(scale=(2560, 640)),
    RandomCrop=dict(crop_size=crop_size),
    Resize=dict(scale=(2560, 640)),
)
train_pipeline = [dict(t, **sizes.get(t['type'], {})) for t in _base_.train_pipeline]
test_pipeline = [dict(t, **sizes.get(t['type'], {})) for t in _base_.test_pipeline]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
