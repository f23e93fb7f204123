_base_ = '../vmamba-t-s2l5_8xb128_in1k.py'
model = dict(backbone=dict(d_state=8, ssm_ratio=1.5))
