# The same with self-distillation. The backbone starts from random weights, so it trains from the
# first iteration.
_base_ = ['./retinanet_r18-small_own-data.py', '../_base_/sssd.py']

model = dict(_delete_=True, type='SSSDDistiller', student=_base_.model)
_base_.sssd_hooks.pop('freeze_backbone')
default_hooks = _base_.sssd_hooks
