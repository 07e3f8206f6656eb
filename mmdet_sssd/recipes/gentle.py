"""The default of ``wrap``: costs least; its teacher stops early if it is behind the student."""

from . import run

model = dict(
    type='SSSDDistiller',
    # The teacher's loss does not train the branches that score boxes: its features contain the labels,
    # so that scoring them is too easy. It trains the box branches, except those of two-stage heads
    # and YOLOv3's, which share layers with the scores.
    teacher_head_grad={'cls|centerness|iou|obj|heat|rpn_head|roi_head|semantic_head|convs_pred': 0},
    economy=True,
)
hooks = dict(
    # λ: distilling pulls 1/4 as hard as the detection loss, and 1/2 if the rate drops before half time
    distill_coef=dict(type='AdaptiveDistillCoefHook', ratio=0.25),
    # first 1/6: the student trains as in stock, teacher and adapter by themselves; then, until half of
    # the run, it is distilled, if the teacher's detection loss is below its by then; the rest is stock
    phases=dict(
        type='DistillPhasesHook', detach_student=1 / 6, teacher_must_lead=True, teacher_until=1 / 2
    ),
    **run.hooks,
)
