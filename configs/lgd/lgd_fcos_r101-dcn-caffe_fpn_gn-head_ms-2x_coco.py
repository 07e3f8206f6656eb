_base_ = '../sssd/sssd_fcos_r101-dcn-caffe_fpn_gn-head_ms-2x_coco.py'

model = dict(distill_loss=dict(type='NormedMSELoss'))
default_hooks = dict(distill_coef=dict(policy='constant'))
