"""SAD (https://arxiv.org/abs/1901.00366): class logits of a trained detector, ``TEACHER``."""

from . import run

TEACHER = 'pretrained'

model = dict(type='Distiller', terms=dict(adl=dict(type='LogitTerm', teacher=TEACHER)))
hooks = run.hooks
