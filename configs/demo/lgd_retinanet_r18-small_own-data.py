# The same as LGD has it: its regions, its loss, a constant coefficient.
_base_ = './sssd_retinanet_r18-small_own-data.py'

from mmdet_sssd.recipes import lgd

model = lgd.model
default_hooks = dict(distill_coef=lgd.hooks['distill_coef'])
