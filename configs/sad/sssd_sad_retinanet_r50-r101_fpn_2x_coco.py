# SSSD's implicit teacher and, beside it, SAD's pretrained one.
_base_ = ['../sssd/sssd_retinanet_r50_fpn_2x_coco.py', '../_base_/zoo_teachers.py']

from mmdet_sssd.recipes import sad

model = dict(
    teachers=dict(pretrained=_base_.retinanet_r101),
    terms=sad.model['terms'],
)
default_hooks = dict(
    # SSSD's own λ rises at the first decay, SAD's stays
    distill_coef_adl=dict(type='AdaptiveDistillCoefHook', policy='constant', term='adl'),
)
