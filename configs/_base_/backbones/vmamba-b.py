# A config that lists this file among its bases writes `model = dict(backbone=_base_.backbone)`.
backbone = dict(
    _delete_=True,
    type='mmvmamba.VMamba',
    arch='base',
    out_indices=(0, 1, 2, 3),
    drop_path_rate=0.6,
    init_cfg=dict(
        type='Pretrained',
        checkpoint='https://github.com/MzeroMiko/VMamba/releases/download/%23v2cls/vssm_base_0229_ckpt_epoch_237.pth',  # noqa: E501
    ),
)
