"""A trained detector, ``TEACHER``, labels images without labels; the data set is the config's."""

from . import run

TEACHER = 'pretrained'

model = dict(type='SemiDistiller')
hooks = run.hooks
