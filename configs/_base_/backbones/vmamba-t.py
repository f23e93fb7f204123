# A config that lists this file among its bases writes `model = dict(backbone=_base_.backbone)`.
backbone = dict(
    _delete_=True,
    type='mmvmamba.VMamba',
    arch='tiny',
    out_indices=(0, 1, 2, 3),
    drop_path_rate=0.2,
    init_cfg=dict(
        type='Pretrained',
        checkpoint='https://github.com/MzeroMiko/VMamba/releases/download/%23v2cls/vssm1_tiny_0230s_ckpt_epoch_264.pth',  # noqa: E501
    ),
)
