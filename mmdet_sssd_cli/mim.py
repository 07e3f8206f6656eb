"""Lets runs that mim starts end properly."""

import os
import signal
from pathlib import Path


def is_child_of_mim() -> bool:
    """Tell whether mim started this process; False without /proc."""
    try:
        command = Path(f'/proc/{os.getppid()}/cmdline').read_bytes().split(b'\0')
    except OSError:
        return False
    return any(os.path.basename(part) == b'mim' for part in command[:2])


def go_on_in_child() -> None:
    """Go on in a child process; this process passes signals on to it and returns its exit code.

    At Ctrl-C, mim gives the process that it started a quarter of a second, not enough to save.
    """
    if (child := os.fork()) == 0:
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to the child too
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda number, frame: os.kill(child, number))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os._exit(code if code >= 0 else 128 - code)
