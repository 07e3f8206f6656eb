from .options import WrappingOptions
from .wrapped_config import read_config, starts_pretrained, write_wrapped_config

__all__ = ['WrappingOptions', 'read_config', 'starts_pretrained', 'write_wrapped_config']
