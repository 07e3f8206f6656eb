_base_ = [
    'mmdet::retinanet/retinanet_r50_fpn_2x_coco.py',
    '../_base_/distiller.py',
    '../_base_/zoo_teachers.py',
]

from mmdet_sssd.recipes import run

model = dict(
    _delete_=True,
    type='Distiller',
    student=_base_.model,
    teachers=dict(pretrained=_base_.retinanet_r101),
    terms=dict(ssim=dict(type='FeatureTerm', distill_loss=dict(type='SSIMLoss'))),
)
default_hooks = run.hooks
