"""The command line, ``mmdet-sssd``.

It is not part of :mod:`mmdet_sssd`, whose import takes seconds and needs a complete environment:
help, completion and ``setup-check`` must work at once and anywhere. Commands import it when they run.
"""

import sys
from typing import NoReturn

from .commands import command_line


def main(command: str | None = None) -> NoReturn:
    """Run the command line, or one command of it, with this process's arguments.

    Args:
        command: The command's name; None takes it from the first argument.
    """
    command_line.main([*([command] if command else []), *sys.argv[1:]])
