"""Runs a detector's loss or prediction on features other than its own."""

from .heads import head_modules, head_parameters
from .replay import Replay, fresh_samples
from .reused_results import reuse_results

__all__ = [
    'Replay',
    'fresh_samples',
    'head_modules',
    'head_parameters',
    'reuse_results',
]
