_base_ = './vmamba-t_step-d1_8xb128_in1k.py'
model = dict(backbone=dict(depths=(2, 2, 5, 2)))
