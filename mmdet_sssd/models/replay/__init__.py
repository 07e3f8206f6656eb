"""Runs a detector's own loss or prediction on given features, as if they were of the images."""

from .answers import given_answers
from .heads import head_modules, head_parameters
from .replay import Replay, fresh_samples

__all__ = [
    'Replay',
    'fresh_samples',
    'given_answers',
    'head_modules',
    'head_parameters',
]
