# The same as LGD has it: its regions, its loss, a constant coefficient.
_base_ = './sssd_retinanet_r18-small_own-data.py'

model = dict(
    teacher=dict(soft_regions=False),
    distill_loss=dict(type='NormedMSELoss'),
)
default_hooks = dict(distill_coef=dict(policy='constant'))
