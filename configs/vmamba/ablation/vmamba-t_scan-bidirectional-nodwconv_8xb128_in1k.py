_base_ = './vmamba-t_scan-bidirectional_8xb128_in1k.py'
model = dict(backbone=dict(conv_kernel=0))
