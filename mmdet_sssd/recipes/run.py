"""Not a recipe: the hooks of every distilled run, whatever is distilled."""

hooks = dict(
    # a resumed run draws the same numbers
    random_state=dict(type='RandomStateHook'),
    # the student's gradients are clipped as without a teacher
    clipping=dict(type='SeparateClippingHook'),
    # finds wrong labels before training
    check_dataset=dict(type='CheckDatasetHook'),
    # a run killed at any moment can be resumed
    checkpoint=dict(type='SafeCheckpointHook'),
    # at a signal, a run saves and ends
    preemption=dict(type='PreemptionHook'),
    # the last (and best) student, for stock mmdet
    export_student=dict(type='ExportStudentHook'),
)
