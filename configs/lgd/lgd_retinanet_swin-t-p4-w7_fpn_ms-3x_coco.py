_base_ = '../sssd/sssd_retinanet_swin-t-p4-w7_fpn_ms-3x_coco.py'

from mmdet_sssd.recipes import lgd

model = lgd.model
default_hooks = dict(distill_coef=lgd.hooks['distill_coef'])
