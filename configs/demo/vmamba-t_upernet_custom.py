# Fine-tune a published UperNet on your own segmentation dataset, on one GPU.
# Copy this file and edit the settings above the line. docs/custom_data.md explains each of them.
_base_ = 'mmvmamba::upernet/vmamba-t_upernet_8xb2-160k_ade20k-512x512.py'

classes = (
    'cat',
    'coin',
    'cup',
    'motorcycle',
    'person',
    'rocket',
    'brick',
    'grass',
    'gravel',
    'space',
    'wood',
)
# An RGB color for each class, used in visualizations.
palette = [
    [255, 140, 40],
    [250, 220, 60],
    [30, 190, 170],
    [230, 40, 60],
    [245, 110, 190],
    [60, 150, 250],
    [150, 90, 160],
    [100, 180, 60],
    [120, 150, 180],
    [70, 60, 180],
    [190, 140, 80],
]
data_root = 'data/demo/'
train_images, train_labels = 'images/train', 'annotations/train'
val_images, val_labels = 'images/val', 'annotations/val'
img_suffix, seg_map_suffix = '.jpg', '.png'
# True: in label maps, 0 means "no label" and 1 is the first class.
# False: 0 is the first class and 255 means "no label".
reduce_zero_label = True
# Images are resized to this shortest side, in training and in testing. Training crops are squares
# of this side. The published model was trained with 512.
image_size = 160
batch_size = 4  # per GPU
max_iters = 4000
# A segmentor with the same backbone, trained on ADE20K: a file, or a URL that is downloaded once.
load_from = 'https://github.com/MzeroMiko/VMamba/releases/download/%23v2seg/upernet_vssm_4xb4-160k_ade20k-512x512_tiny_s_iter_160000.pth'  # noqa: E501

# --------------------------------------------------------------------------------------------------

num_classes = len(classes)
crop_size = (image_size, image_size)
scale = (4 * image_size, image_size)  # the longest side is limited too
model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(init_cfg=None),  # load_from has its weights
    # The last layers have a different shape than those for ADE20K and start from random weights.
    decode_head=dict(num_classes=num_classes),
    auxiliary_head=dict(num_classes=num_classes),
)
metainfo = dict(classes=classes, palette=palette)
own = dict(
    LoadAnnotations=dict(reduce_zero_label=reduce_zero_label),
    RandomResize=dict(scale=scale),
    RandomCrop=dict(crop_size=crop_size),
    Resize=dict(scale=scale),
)
train_pipeline = [dict(step, **own.get(step['type'], {})) for step in _base_.train_pipeline]
test_pipeline = [dict(step, **own.get(step['type'], {})) for step in _base_.test_pipeline]
dataset = dict(
    type='BaseSegDataset',
    data_root=data_root,
    metainfo=metainfo,
    img_suffix=img_suffix,
    seg_map_suffix=seg_map_suffix,
    reduce_zero_label=reduce_zero_label,
)
train_dataloader = dict(
    batch_size=batch_size,
    dataset=dict(
        data_prefix=dict(img_path=train_images, seg_map_path=train_labels),
        pipeline=train_pipeline,
        **dataset,
    ),
)
val_dataloader = dict(
    dataset=dict(
        data_prefix=dict(img_path=val_images, seg_map_path=val_labels),
        pipeline=test_pipeline,
        **dataset,
    )
)
test_dataloader = val_dataloader

val_interval = max(1, max_iters // 10)
train_cfg = dict(max_iters=max_iters, val_interval=val_interval)
# The learning rate of the recipe, 6e-5, is for 16 images per step. Scale it to this run's batch.
auto_scale_lr = dict(enable=True, base_batch_size=16)
warmup_iters = min(100, max(2, max_iters // 10), max_iters - 1)  # LinearLR needs 2 steps
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=warmup_iters),
    dict(type='PolyLR', eta_min=0.0, power=1.0, begin=warmup_iters, end=max_iters, by_epoch=False),
]
# Keep the last two checkpoints and the best one on the validation data.
default_hooks = dict(
    checkpoint=dict(interval=val_interval, max_keep_ckpts=2, save_best='mIoU', rule='greater'),
    logger=dict(interval=10),
)
