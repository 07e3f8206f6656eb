_base_ = '../sssd/sssd_fcos_r101-caffe_fpn_gn-head_ms-2x_coco.py'

model = dict(
    teacher=dict(soft_regions=False),
    distill_loss=dict(type='NormedMSELoss'),
)
default_hooks = dict(distill_coef=dict(policy='constant'))
