"""Whole, resumable, preemptible runs, of any model."""

from .checkpoint_files import AtomicLocalBackend, check_finite, find_checkpoint_to_resume, is_whole
from .loading import load_from_local
from .preemption_hook import PreemptionHook
from .random_state_hook import RandomStateHook, preserved_random_state
from .safe_checkpoint_hook import SafeCheckpointHook

__all__ = [
    'AtomicLocalBackend',
    'PreemptionHook',
    'RandomStateHook',
    'SafeCheckpointHook',
    'check_finite',
    'find_checkpoint_to_resume',
    'is_whole',
    'load_from_local',
    'preserved_random_state',
]
