"""The default of ``wrap``: costs least, and hurt nowhere (docs/benchmarks.md)."""

from . import run

model = dict(
    type='SSSDDistiller',
    # What ranks boxes learns from the student's own features alone, since the teacher sees the labels.
    # In two-stage heads and YOLOv3's it shares layers with the box branches.
    teacher_head_grad={'cls|centerness|iou|obj|heat|rpn_head|roi_head|convs_pred': 0},
    economy=True,
)
hooks = dict(
    # distilling pulls 1/4 as hard as the detection loss
    distill_coef=dict(type='AdaptiveDistillCoefHook', ratio=0.25),
    # first 1/6: distilling trains only the adapter; second half: stock training
    phases=dict(type='DistillPhasesHook', detach_student=1 / 6, teacher_until=1 / 2),
    **run.hooks,
)
