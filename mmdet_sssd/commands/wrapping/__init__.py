from .options import TwinOptions
from .twin_config import read_config, starts_pretrained, write_twin

__all__ = ['TwinOptions', 'read_config', 'starts_pretrained', 'write_twin']
