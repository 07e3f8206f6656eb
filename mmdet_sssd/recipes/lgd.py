"""LGD (https://arxiv.org/abs/2109.11496): its teacher and loss, a constant λ, and its phases."""

from . import paper

model = dict(
    type='SSSDDistiller',
    teacher=dict(soft_regions=False, class_vectors=False),
    distill_loss=dict(type='NormedMSELoss'),
)
hooks = dict(
    paper.hooks,
    distill_coef=dict(type='AdaptiveDistillCoefHook', policy='constant'),
)
