import errno
import os
import resource
import signal
from pathlib import Path

import pytest

from mmdet_sssd.checkpoints import AtomicLocalBackend

OLD, NEW = b'old' * 1000, b'new' * 5000


def put_in_a_process(path: Path, most_bytes: int, at_the_limit: signal.Handlers) -> int:
    """Put NEW in a process that the kernel stops at a byte, and give how the process ended."""
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGXFSZ, at_the_limit)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
        try:
            AtomicLocalBackend().put(NEW, path)
        except OSError as error:
            os._exit(error.errno)
        os._exit(0)
    return os.waitpid(pid, 0)[1]


@pytest.fixture
def path(tmp_path):
    """A file that is there already."""
    path = tmp_path / 'folder' / 'a.pth'
    path.parent.mkdir()
    path.write_bytes(OLD)
    return path


def files(folder):
    return {x.name: x.stat().st_size for x in folder.iterdir()}


def test_it_replaces_and_leaves_nothing_else(path):
    AtomicLocalBackend().put(NEW, path)
    assert path.read_bytes() == NEW
    AtomicLocalBackend().put_text('λ', str(path))
    assert path.read_text(encoding='utf-8') == 'λ'
    AtomicLocalBackend().put(NEW, path.parents[1] / 'new folder' / 'b.pth')
    assert files(path.parent) == {'a.pth': 2}


@pytest.mark.parametrize('most_bytes', [0, 1, len(OLD), len(NEW) - 1])
def test_a_process_killed_half_way_leaves_the_old_file_whole(path, most_bytes):
    status = put_in_a_process(path, most_bytes, signal.SIG_DFL)
    assert os.WTERMSIG(status) == signal.SIGXFSZ
    assert path.read_bytes() == OLD
    assert files(path.parent) == {'a.pth': len(OLD), 'a.pth.writing': most_bytes}
    AtomicLocalBackend().put(NEW, path)  # what it left is in nobody's way
    assert path.read_bytes() == NEW
    assert files(path.parent) == {'a.pth': len(NEW)}


@pytest.mark.parametrize('most_bytes', [0, len(NEW) - 1])
def test_a_write_that_fails_half_way_leaves_the_old_file_whole_and_nothing_else(path, most_bytes):
    status = put_in_a_process(path, most_bytes, signal.SIG_IGN)
    assert os.waitstatus_to_exitcode(status) == errno.EFBIG
    assert path.read_bytes() == OLD
    assert files(path.parent) == {'a.pth': len(OLD)}


def test_what_is_written_is_on_the_disk_before_it_takes_the_old_file_s_place(path, monkeypatch):
    steps = []
    for name in ('fsync', 'replace'):
        done = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *x, n=name, f=done: steps.append(n) or f(*x))
    AtomicLocalBackend().put(NEW, path)
    assert steps == ['fsync', 'replace', 'fsync']  # the file, the move, the folder
