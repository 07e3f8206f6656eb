# The same with LGD's loss and a constant coefficient.
_base_ = './sssd_retinanet_r18-small_own-data.py'

model = dict(distill_loss=dict(type='NormedMSELoss'))
default_hooks = dict(distill_coef=dict(policy='constant'))
