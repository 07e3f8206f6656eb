from .distiller import Distiller
from .sssd_distiller import SSSDDistiller

__all__ = ['Distiller', 'SSSDDistiller']
