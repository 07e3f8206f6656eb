"""Writes, finds, loads, exports and converts checkpoint files."""

from .atomic_backend import AtomicLocalBackend
from .export import export_student, stock_config
from .finite import check_finite
from .lgd import convert_lgd
from .loading import load_from_local
from .recovery import find_checkpoint_to_resume, is_whole

__all__ = [
    'AtomicLocalBackend',
    'check_finite',
    'convert_lgd',
    'export_student',
    'find_checkpoint_to_resume',
    'is_whole',
    'load_from_local',
    'stock_config',
]
