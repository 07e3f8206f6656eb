# The small RetinaNet distilled from a pretrained one by Structural KD; see _base_/own_teacher.py.
_base_ = [
    './retinanet_r18-small_own-data.py',
    '../_base_/distiller.py',
    '../_base_/own_teacher.py',
]

from mmdet_sssd.recipes import run

model = dict(
    _delete_=True,
    type='Distiller',
    student=_base_.model,
    teachers=dict(pretrained=_base_.own_teacher),
    terms=dict(ssim=dict(type='FeatureTerm', distill_loss=dict(type='SSIMLoss'))),
)
default_hooks = run.hooks
