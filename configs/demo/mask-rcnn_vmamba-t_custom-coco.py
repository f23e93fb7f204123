# Fine-tune a published Mask R-CNN on your own dataset in COCO format, on one GPU.
# Copy this file and edit the settings above the line. docs/custom_data.md explains each of them.
_base_ = 'mmvmamba::mask_rcnn/mask-rcnn_vmamba-t_fpn_1x_coco.py'

# Class names from `categories` in the annotation files, in the same order.
classes = ('cat', 'coin', 'cup', 'motorcycle', 'person', 'rocket')
data_root = 'data/demo/'
train_annotations, train_images = 'annotations/instances_train.json', 'images/train/'
val_annotations, val_images = 'annotations/instances_val.json', 'images/val/'
# Images are resized to fit into these longest and shortest sides, in training and in testing.
image_size = (1333, 800)
batch_size = 2  # per GPU
max_epochs = 12
warmup_iters = 100  # steps over which the learning rate rises; a small part of the run
# A detector with the same backbone, trained on COCO: a file, or a URL that is downloaded once.
load_from = 'https://github.com/MzeroMiko/VMamba/releases/download/%23v2det/mask_rcnn_vssm_fpn_coco_tiny_s_epoch_12.pth'  # noqa: E501

# --------------------------------------------------------------------------------------------------

num_classes = len(classes)
model = dict(
    backbone=dict(init_cfg=None),  # load_from has its weights
    # The last layers have a different shape than those for COCO and start from random weights.
    roi_head=dict(bbox_head=dict(num_classes=num_classes), mask_head=dict(num_classes=num_classes)),
)
metainfo = dict(classes=classes)
resize = dict(Resize=dict(scale=image_size))
train_pipeline = [dict(step, **resize.get(step['type'], {})) for step in _base_.train_pipeline]
test_pipeline = [dict(step, **resize.get(step['type'], {})) for step in _base_.test_pipeline]
train_dataloader = dict(
    batch_size=batch_size,
    dataset=dict(
        data_root=data_root,
        metainfo=metainfo,
        ann_file=train_annotations,
        data_prefix=dict(img=train_images),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        metainfo=metainfo,
        ann_file=val_annotations,
        data_prefix=dict(img=val_images),
        pipeline=test_pipeline,
    )
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + val_annotations, classwise=True)
test_evaluator = val_evaluator

train_cfg = dict(max_epochs=max_epochs)
# The learning rate of the recipe, 1e-4, is for 16 images per step. Scale it to this run's batch.
auto_scale_lr = dict(enable=True, base_batch_size=16)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=warmup_iters),
    dict(
        type='MultiStepLR',
        begin=0,
        end=max_epochs,
        by_epoch=True,
        milestones=[max_epochs * 2 // 3, max_epochs * 11 // 12],
        gamma=0.1,
    ),
]
# Keep the last two checkpoints and the best one on the validation data.
default_hooks = dict(
    checkpoint=dict(max_keep_ckpts=2, save_best='coco/segm_mAP', rule='greater'),
    logger=dict(interval=10),
)
