"""SSSD (https://arxiv.org/abs/2303.05015), for a pretrained backbone.

As in its paper, but for the teacher, which has the two changes that `LabelEncoderTeacher` tells of:
``soft_regions`` and ``class_vectors``. With both False it is the paper's.
"""

from . import run

model = dict(type='SSSDDistiller')
hooks = dict(
    # λ doubles at the first drop of the learning rate
    distill_coef=dict(type='AdaptiveDistillCoefHook', policy='step', factor=2.0),
    # first 1/6: the distillation loss trains only the adapter; first 1/9: the backbone is frozen
    phases=dict(type='DistillPhasesHook', detach_student=1 / 6, freeze_backbone=1 / 9),
    **run.hooks,
)
