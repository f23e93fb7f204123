_base_ = './vmamba-t_step-d2_8xb128_in1k.py'
model = dict(backbone=dict(gate='none'))
