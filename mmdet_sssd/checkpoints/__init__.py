"""Exports and converts checkpoints."""

from .export import export_student, stock_config
from .lgd import convert_lgd

__all__ = [
    'convert_lgd',
    'export_student',
    'stock_config',
]
