# The shared part of all SSSD configs. Inherit it beside a stock config and use its hooks:
#   model = dict(_delete_=True, type='SSSDDistiller', student=_base_.model)
#   default_hooks = _base_.sssd_hooks
_base_ = './distiller.py'

sssd_hooks = dict(
    # λ follows the learning rate
    distill_coef=dict(type='AdaptiveDistillCoefHook', policy='step', factor=2.0, max_decays=1),
    # first 1/6: distilling trains only the adapter
    detach_student=dict(type='DetachStudentHook', first=1 / 6, last=0.0),
    # first 1/9: freezes a pretrained backbone
    freeze_backbone=dict(type='FreezeBackboneHook', first=1 / 9),
    **_base_.distiller_hooks,
)
