# The same with self-distillation. The backbone starts from random weights, so it is never frozen.
_base_ = ['./retinanet_r18-small_own-data.py', '../_base_/distiller.py']

from mmdet_sssd.recipes import paper

model = dict(paper.model, _delete_=True, student=_base_.model)
default_hooks = dict(
    paper.hooks,
    phases=dict(type='DistillPhasesHook', detach_student=1 / 6),
)
