# The MLP comes with VMamba-T's arch, as do the stem and the downsampling.
_base_ = '../vmamba-t_8xb128_in1k.py'
model = dict(
    backbone=dict(d_state=16, ssm_ratio=2.0, gate='act', conv_kernel=0, depths=(2, 2, 2, 2)),
)
