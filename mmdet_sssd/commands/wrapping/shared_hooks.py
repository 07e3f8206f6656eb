"""The hooks of every wrapped config: those of ``configs/_base_/sssd.py``, with its comments."""

SHARED_HOOKS = {
    'distill_coef': (
        dict(type='AdaptiveDistillCoefHook', max_decays=1),
        'λ follows the learning rate',
    ),
    'detach_student': (
        dict(type='DetachStudentHook'),
        'first 1/6: only the adapter learns from it',
    ),
    'freeze_backbone': (
        dict(type='FreezeBackboneHook'),
        'first 1/9: a pretrained backbone keeps still',
    ),
    'random_state': (dict(type='RandomStateHook'), 'a resumed run draws the same numbers'),
    'check_dataset': (dict(type='CheckDatasetHook'), 'wrong labels are found before training'),
    'checkpoint': (dict(type='SafeCheckpointHook'), 'a run killed at any moment can be resumed'),
    'export_student': (
        dict(type='ExportStudentHook'),
        'the last (and best) student, for stock mmdet',
    ),
}
"""By name: the hook, without what its class has as defaults, and what it is for."""
