# The class token, in the middle of the sequence, goes to the head as it is.
_base_ = '../vmamba/vmamba-t_8xb128_in1k.py'
model = dict(
    backbone=dict(_delete_=True, type='mmvmamba.Vim', arch='small', out_type='cls_token'),
    neck=None,
    head=dict(in_channels=384),
)
