from .distiller import Distiller
from .semi_distiller import SemiDistiller
from .sssd_distiller import SSSDDistiller

__all__ = ['Distiller', 'SSSDDistiller', 'SemiDistiller']
