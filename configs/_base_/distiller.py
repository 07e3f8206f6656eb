# The shared part of all configs with a distiller. Inherit it beside a stock config and use its hooks:
#   model = dict(_delete_=True, type='Distiller', student=_base_.model, teachers=…, terms=…)
#   default_hooks = _base_.distiller_hooks
custom_imports = dict(imports=['mmdet_sssd'], allow_failed_imports=False)

distiller_hooks = dict(
    # a resumed run draws the same numbers
    random_state=dict(type='RandomStateHook'),
    # finds wrong labels before training
    check_dataset=dict(type='CheckDatasetHook'),
    # a run killed at any moment can be resumed
    checkpoint=dict(type='SafeCheckpointHook'),
    # at a signal, a run saves and ends
    preemption=dict(type='PreemptionHook'),
    # the last (and best) student, for stock mmdet
    export_student=dict(type='ExportStudentHook'),
)
