_base_ = '../vmamba-t_8xb128_in1k.py'
model = dict(backbone=dict(mlp_ratio=2.0, ssm_ratio=2.5))
