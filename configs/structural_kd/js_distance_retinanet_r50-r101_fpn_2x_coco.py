# SSSD's distance and stepwise coefficient, from a pretrained teacher.
_base_ = './structural_kd_retinanet_r50-r101_fpn_2x_coco.py'

model = dict(
    terms=dict(
        _delete_=True,
        js=dict(type='FeatureTerm', distill_loss=dict(type='JSDistanceLoss'), normalize=True),
    )
)
default_hooks = dict(
    # λ follows the learning rate
    distill_coef=dict(type='AdaptiveDistillCoefHook', policy='step', factor=2.0, term='js'),
)
