# What the demo's models share. One name, so that none is a name of the stock configs beside it.
demo = dict(
    data_root='data/demo/',
    # The statistics of the training images (RGB).
    mean=[121.8, 101.6, 89.8],
    std=[65.3, 54.2, 54.1],
    things=('cat', 'coin', 'cup', 'motorcycle', 'person', 'rocket'),
    stuff=('brick', 'grass', 'gravel', 'space', 'wood'),
    things_palette=[
        (255, 140, 40),
        (250, 220, 60),
        (30, 190, 170),
        (230, 40, 60),
        (245, 110, 190),
        (60, 150, 250),
    ],
    stuff_palette=[(150, 90, 160), (100, 180, 60), (120, 150, 180), (70, 60, 180), (190, 140, 80)],
    backbone=dict(
        type='mmvmamba.VMamba',
        arch=dict(dims=(32, 64, 128, 256), depths=(1, 1, 2, 1), drop_path_rate=0.0),
    ),
    loader=dict(num_workers=0, persistent_workers=False),
    # AdamW from random weights: a short warm-up, then cosine to a hundredth.
    optimizer=dict(type='AdamW', weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
    clip_grad=dict(max_norm=5.0),
    warmup=dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0),
    cosine=dict(type='CosineAnnealingLR', begin=0, eta_min_ratio=0.01),
    logger=dict(interval=50),
    checkpoint=dict(save_optimizer=False),
    randomness=dict(seed=0),
)
