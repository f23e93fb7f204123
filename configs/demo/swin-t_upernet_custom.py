# The template with Swin-T as the backbone and the same data and schedule, for a comparison with
# VMamba-T. It inherits from the copy of the template in the same folder.
_base_ = './vmamba-t_upernet_custom.py'

# mmseg's segmentor with this backbone, trained on ADE20K with the same recipe.
load_from = 'https://mmassets.onedl.ai/mmsegmentation/v0.5/swin/upernet_swin_tiny_patch4_window7_512x512_160k_ade20k_pretrain_224x224_1K/upernet_swin_tiny_patch4_window7_512x512_160k_ade20k_pretrain_224x224_1K_20210531_112542-e380ad3e.pth'  # noqa: E501

# --------------------------------------------------------------------------------------------------

model = dict(backbone=dict(_delete_=True, type='SwinTransformer', drop_path_rate=0.3))
