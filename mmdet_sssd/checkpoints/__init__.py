"""Exports and converts checkpoints."""

from ..runs import (  # noqa: F401  (where they were; they move to mmdet_sssd.runs)
    AtomicLocalBackend,
    check_finite,
    find_checkpoint_to_resume,
    is_whole,
    load_from_local,
)
from .export import export_student, stock_config
from .lgd import convert_lgd

__all__ = [
    'convert_lgd',
    'export_student',
    'stock_config',
]
