"""Exports checkpoints."""

from .export import export_student, stock_config

__all__ = ['export_student', 'stock_config']
