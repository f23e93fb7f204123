_base_ = './vmamba-t_step-e_8xb128_in1k.py'
model = dict(backbone=dict(conv_kernel=3))
