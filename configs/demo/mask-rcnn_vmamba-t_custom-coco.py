# A template: fine-tunes a published Mask R-CNN on your own data set in COCO's format, on one
# GPU. Copy it, and change what stands above the line; docs/custom_data.md walks through it.
_base_ = 'mmvmamba::mask_rcnn/mask-rcnn_vmamba-t_fpn_1x_coco.py'

# The names in the `categories` of the annotation files, in their order.
classes = ('cat', 'coin', 'cup', 'motorcycle', 'person', 'rocket')
data_root = 'data/demo/'
train_annotations, train_images = 'annotations/instances_train.json', 'images/train/'
val_annotations, val_images = 'annotations/instances_val.json', 'images/val/'
batch_size = 2  # what the GPU's memory holds
max_epochs = 12
warmup_iters = 100  # steps in which the learning rate rises: a small part of all
# A COCO model of the same backbone: a file, or a URL that is downloaded once.
load_from = 'https://github.com/MzeroMiko/VMamba/releases/download/%23v2det/mask_rcnn_vssm_fpn_coco_tiny_s_epoch_12.pth'  # noqa: E501

# --------------------------------------------------------------------------------------------------

num_classes = len(classes)
model = dict(
    backbone=dict(init_cfg=None),  # its weights are in load_from
    # The last layers have other sizes than COCO's, and start from random weights.
    roi_head=dict(bbox_head=dict(num_classes=num_classes), mask_head=dict(num_classes=num_classes)),
)
metainfo = dict(classes=classes)
train_dataloader = dict(
    batch_size=batch_size,
    dataset=dict(
        data_root=data_root,
        metainfo=metainfo,
        ann_file=train_annotations,
        data_prefix=dict(img=train_images),
    ),
)
val_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        metainfo=metainfo,
        ann_file=val_annotations,
        data_prefix=dict(img=val_images),
    )
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + val_annotations)
test_evaluator = val_evaluator

train_cfg = dict(max_epochs=max_epochs)
# The rate of the recipe, 1e-4, is for 16 images a step; it is scaled to the batch of this run.
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
# The best model on the validation data is kept beside the last two.
default_hooks = dict(
    checkpoint=dict(max_keep_ckpts=2, save_best='coco/segm_mAP', rule='greater'),
    logger=dict(interval=10),
)
