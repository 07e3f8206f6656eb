"""Keeps processes, on any machines that share folders, out of each other's way."""

import fcntl
import math
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

POLL = 0.2  # seconds between tries


@contextmanager
def locked(*files: Path, wait: float = math.inf) -> Iterator[bool]:
    """Hold the locks of files, which others may want too.

    They are flock's: they end with the processes that hold them, however these end. Processes that
    are started with ``close_fds=False`` hold them too, and may outlive this one.

    Args:
        files: They are made if they are not there, and stay.
        wait: For how many seconds at most.

    Yields:
        Whether the locks are held; if not, another process holds one of them.
    """
    deadline = time.monotonic() + wait
    with ExitStack() as stack:
        for path in dict.fromkeys(file.absolute() for file in files):
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = stack.enter_context(open(path, 'ab')).fileno()
            os.set_inheritable(descriptor, True)
            while not _lock(descriptor):
                if time.monotonic() >= deadline:
                    yield False
                    return
                time.sleep(POLL)
        yield True


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
