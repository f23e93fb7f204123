_base_ = '../vmamba/vmamba-t_8xb128_in1k.py'
model = dict(backbone=dict(_delete_=True, type='mmvmamba.S4NDConvNeXt', arch='tiny'))
