_base_ = ['../mask_rcnn/mask-rcnn_vmamba-b_fpn_1x_coco.py', '../_base_/fsdp.py']
