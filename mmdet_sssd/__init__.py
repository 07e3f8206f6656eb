"""Self-distillation for MMDetection; importing it registers its modules with mmdet."""

from .environment import check_environment
from .version import __version__

check_environment()

from . import checkpoints, hooks, models, optimizers  # noqa: E402
from .errors import ConfigError  # noqa: E402

__all__ = [
    'ConfigError',
    '__version__',
    'checkpoints',
    'hooks',
    'models',
    'optimizers',
]
