# What every SSSD config shares. Inherit it beside a stock config and take up the hooks:
#   model = dict(_delete_=True, type='SSSDDistiller', student=_base_.model)
#   default_hooks = _base_.sssd_hooks
custom_imports = dict(imports=['mmdet_sssd'], allow_failed_imports=False)

sssd_hooks = dict(
    distill_coef=dict(type='AdaptiveDistillCoefHook', policy='step', factor=2.0, max_decays=1),
    detach_student=dict(type='DetachStudentHook', first=1 / 6, last=0.0),
    freeze_backbone=dict(type='FreezeBackboneHook', first=1 / 9),
    random_state=dict(type='RandomStateHook'),
    checkpoint=dict(type='SafeCheckpointHook'),
    check_dataset=dict(type='CheckDatasetHook'),
    export_student=dict(type='ExportStudentHook'),
)
