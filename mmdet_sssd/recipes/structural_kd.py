"""Structural KD (https://arxiv.org/abs/2211.13133): features of a trained detector, ``TEACHER``."""

from . import run

TEACHER = 'pretrained'

model = dict(
    type='Distiller',
    terms=dict(ssim=dict(type='FeatureTerm', teacher=TEACHER, distill_loss=dict(type='SSIMLoss'))),
)
hooks = run.hooks
