_base_ = '../sssd/sssd_mask-rcnn_swin-t-p4-w7_fpn_ms-3x_coco.py'

model = dict(
    teacher=dict(soft_regions=False),
    distill_loss=dict(type='NormedMSELoss'),
)
default_hooks = dict(distill_coef=dict(policy='constant'))
