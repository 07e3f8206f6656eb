# The small RetinaNet distilled from a pretrained one by Structural KD; see _base_/own_teacher.py.
_base_ = [
    './retinanet_r18-small_own-data.py',
    '../_base_/distiller.py',
    '../_base_/own_teacher.py',
]

from mmdet_sssd.recipes import structural_kd as recipe

model = dict(
    recipe.model,
    _delete_=True,
    student=_base_.model,
    teachers=dict(pretrained=_base_.own_teacher),
)
default_hooks = recipe.hooks
