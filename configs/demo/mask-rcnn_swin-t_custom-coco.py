# The template with Swin-T as the backbone and the same data and schedule, for a comparison with
# VMamba-T. It inherits from the copy of the template in the same folder.
_base_ = './mask-rcnn_vmamba-t_custom-coco.py'

# mmdet's detector with this backbone, trained on COCO with the same recipe.
load_from = 'https://download.openmmlab.com/mmdetection/v2.0/swin/mask_rcnn_swin-t-p4-w7_fpn_1x_coco/mask_rcnn_swin-t-p4-w7_fpn_1x_coco_20210902_120937-9d6b7cfa.pth'  # noqa: E501

# --------------------------------------------------------------------------------------------------

model = dict(backbone=dict(_delete_=True, type='SwinTransformer', drop_path_rate=0.2))
