_base_ = '../sssd/sssd_fcos_r50-caffe_fpn_gn-head_ms-2x_coco.py'

from mmdet_sssd.recipes import lgd

model = lgd.model
default_hooks = dict(distill_coef=lgd.hooks['distill_coef'])
