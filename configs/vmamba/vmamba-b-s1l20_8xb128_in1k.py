_base_ = './vmamba-t_8xb128_in1k.py'
model = dict(backbone=dict(arch='base_s1l20'), head=dict(in_channels=1024))
