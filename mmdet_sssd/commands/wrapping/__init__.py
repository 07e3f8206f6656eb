from .options import WrappingOptions
from .wrapped_config import distilled_config, read_config, write_wrapped_config

__all__ = ['WrappingOptions', 'distilled_config', 'read_config', 'write_wrapped_config']
