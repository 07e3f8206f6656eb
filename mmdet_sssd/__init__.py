"""Self-distillation for MMDetection; importing it registers its modules with mmdet."""

import sys

from .version import __version__

# Python imports this file to find `python -m mmdet_sssd`, the command line, which starts without.
if not (sys.argv[0] == '-m' and __name__ in sys.orig_argv):
    from .environment import check_environment

    check_environment()

    from . import checkpoints, checks, hooks, models, optimizers, recipes, runs
    from .errors import ConfigError

__all__ = [
    'ConfigError',
    '__version__',
    'checkpoints',
    'checks',
    'hooks',
    'models',
    'optimizers',
    'recipes',
    'runs',
]
