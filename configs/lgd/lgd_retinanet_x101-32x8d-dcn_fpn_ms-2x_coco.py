_base_ = '../sssd/sssd_retinanet_x101-32x8d-dcn_fpn_ms-2x_coco.py'

model = dict(
    teacher=dict(soft_regions=False),
    distill_loss=dict(type='NormedMSELoss'),
)
default_hooks = dict(distill_coef=dict(policy='constant'))
