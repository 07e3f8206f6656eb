_base_ = [
    'mmdet::faster_rcnn/faster-rcnn_r50_fpn_2x_coco.py',
    '../_base_/distiller.py',
    '../_base_/zoo_teachers.py',
]

from mmdet_sssd.recipes import structural_kd as recipe

model = dict(
    recipe.model,
    _delete_=True,
    student=_base_.model,
    teachers=dict(pretrained=_base_.faster_rcnn_r101),
)
default_hooks = recipe.hooks
