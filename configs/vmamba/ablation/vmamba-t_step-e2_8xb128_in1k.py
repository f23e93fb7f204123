_base_ = './vmamba-t_step-e1_8xb128_in1k.py'
model = dict(backbone=dict(d_state=1))
