# The same with self-distillation.
_base_ = ['./retinanet_r18-small_own-data.py', '../_base_/sssd.py']

model = dict(_delete_=True, type='SSSDDistiller', student=_base_.model)
default_hooks = _base_.sssd_hooks
