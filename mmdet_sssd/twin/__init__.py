from .options import TwinOptions
from .twin_config import write_twin

__all__ = ['TwinOptions', 'write_twin']
