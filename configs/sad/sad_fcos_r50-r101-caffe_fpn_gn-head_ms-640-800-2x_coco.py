_base_ = [
    'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_ms-640-800-2x_coco.py',
    '../_base_/distiller.py',
    '../_base_/zoo_teachers.py',
]

from mmdet_sssd.recipes import sad as recipe

model = dict(
    recipe.model,
    _delete_=True,
    student=_base_.model,
    teachers=dict(pretrained=_base_.fcos_r101),
)
default_hooks = recipe.hooks
