_base_ = './vmamba-t_step-d_8xb128_in1k.py'
model = dict(backbone=dict(ssm_ratio=1.0))
