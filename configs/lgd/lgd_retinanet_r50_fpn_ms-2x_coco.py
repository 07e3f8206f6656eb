_base_ = '../sssd/sssd_retinanet_r50_fpn_ms-2x_coco.py'

from mmdet_sssd.recipes import lgd

model = lgd.model
default_hooks = dict(distill_coef=lgd.hooks['distill_coef'])
