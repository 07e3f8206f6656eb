"""The command line, ``mmdet-sssd``.

It lies beside :mod:`mmdet_sssd`, whose import takes seconds and needs a whole environment: help,
completion and ``setup-check`` need neither. A command imports what it runs when it runs.
"""

import sys
from typing import NoReturn

from .commands import command_line


def main(command: str | None = None) -> NoReturn:
    """Run the command line, or one command of it, with this process's arguments.

    Args:
        command: The command's name; None if it is the first argument.
    """
    command_line.main([*([command] if command else []), *sys.argv[1:]])
