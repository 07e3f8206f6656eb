# What every SSSD config shares. Inherit it beside a stock config and take up the hooks:
#   model = dict(_delete_=True, type='SSSDDistiller', student=_base_.model)
#   default_hooks = _base_.sssd_hooks
custom_imports = dict(imports=['mmdet_sssd'], allow_failed_imports=False)

sssd_hooks = dict(
    # λ follows the learning rate
    distill_coef=dict(type='AdaptiveDistillCoefHook', policy='step', factor=2.0, max_decays=1),
    # first 1/6: only the adapter learns from it
    detach_student=dict(type='DetachStudentHook', first=1 / 6, last=0.0),
    # first 1/9: a pretrained backbone keeps still
    freeze_backbone=dict(type='FreezeBackboneHook', first=1 / 9),
    # a resumed run draws the same numbers
    random_state=dict(type='RandomStateHook'),
    # wrong labels are found before training
    check_dataset=dict(type='CheckDatasetHook'),
    # a run killed at any moment can be resumed
    checkpoint=dict(type='SafeCheckpointHook'),
    # the last (and best) student, for stock mmdet
    export_student=dict(type='ExportStudentHook'),
)
