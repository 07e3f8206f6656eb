"""Keeps processes, on any machines that share folders, out of each other's way."""

import errno
import fcntl
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import ConfigError

POLL = 0.2  # seconds between tries
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def locked(file: Path, wait: float = math.inf, needed: bool = True) -> Iterator[bool]:
    """Hold the lock of a file, which others may want too.

    It is flock's: it ends with the process that holds it and the workers that this forked, however
    these end.

    Args:
        file: It is made if it is not there, and stays.
        wait: For how many seconds at most.
        needed: Whether a file system without locks is refused.

    Yields:
        Whether the lock is held, or could not be; if not, another process holds it.

    Raises:
        ConfigError: if a lock is needed on a file system without locks.
    """
    deadline = time.monotonic() + wait
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, 'ab') as opened:
        try:
            while not (is_held := _lock(opened.fileno())) and time.monotonic() < deadline:
                time.sleep(POLL)
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                raise
            if needed:
                raise ConfigError(
                    f'{file.parent} is on a file system without locks (flock), by which processes keep '
                    "out of each other's way; give another folder, or mount it with them"
                ) from error
            is_held = True
        yield is_held


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
