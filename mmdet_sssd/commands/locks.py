"""Keeps processes, on any machines that share folders, out of each other's way."""

import fcntl
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

POLL = 0.2  # seconds between tries


@contextmanager
def locked(file: Path, wait: float = math.inf) -> Iterator[bool]:
    """Hold the lock of a file, which others may want too.

    It is flock's: it ends with the process that holds it and the workers that this forked, however
    these end.

    Args:
        file: It is made if it is not there, and stays.
        wait: For how many seconds at most.

    Yields:
        Whether the lock is held; if not, another process holds it.
    """
    deadline = time.monotonic() + wait
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, 'ab') as opened:
        while not (is_held := _lock(opened.fileno())) and time.monotonic() < deadline:
            time.sleep(POLL)
        yield is_held


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
