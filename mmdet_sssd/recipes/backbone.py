"""Features of a fixed image backbone, ``TEACHER``, as in RT-DETRv4 (https://arxiv.org/abs/2510.25257)."""

from . import run

TEACHER = 'backbone'

model = dict(
    type='Distiller',
    terms=dict(
        cosine=dict(type='FeatureTerm', teacher=TEACHER, distill_loss=dict(type='CosineLoss'))
    ),
)
hooks = dict(
    # λ: distilling pulls 1/4 as hard as the detection loss, and 1/2 after the rate's first drop
    distill_coef_cosine=dict(type='AdaptiveDistillCoefHook', ratio=0.25, term='cosine'),
    **run.hooks,
)
