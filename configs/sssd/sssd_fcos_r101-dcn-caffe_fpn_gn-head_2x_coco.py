_base_ = './sssd_fcos_r101-caffe_fpn_gn-head_2x_coco.py'

model = dict(student=dict(backbone=_base_.dcn))
default_hooks = dict(phases=dict(detach_last=50 / 180))
