import errno
import os
import resource
import signal
from pathlib import Path

import pytest
import torch

from mmdet_sssd import ConfigError
from mmdet_sssd.checks.dry_run import warnings_listed
from mmdet_sssd.runs import AtomicLocalBackend, find_checkpoint_to_resume, is_whole

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


def test_writing_replaces_a_file_and_leaves_nothing_else(path):
    AtomicLocalBackend().put(NEW, path)
    assert path.read_bytes() == NEW
    AtomicLocalBackend().put_text('λ', str(path))
    assert path.read_text(encoding='utf-8') == 'λ'
    AtomicLocalBackend().put(NEW, path.parents[1] / 'new folder' / 'b.pth')
    assert files(path.parent) == {'a.pth': 2}


@pytest.mark.parametrize('most_bytes', [0, len(NEW) - 1])
@pytest.mark.parametrize('is_killed', [True, False])
def test_a_write_that_ends_half_way_leaves_the_old_file_whole(path, most_bytes, is_killed):
    at_the_limit = signal.SIG_DFL if is_killed else signal.SIG_IGN
    status = put_in_a_process(path, most_bytes, at_the_limit)
    assert status == (signal.SIGXFSZ if is_killed else errno.EFBIG << 8)
    assert path.read_bytes() == OLD
    left = {'a.pth.writing': most_bytes} if is_killed else {}
    assert files(path.parent) == {'a.pth': len(OLD), **left}
    AtomicLocalBackend().put(NEW, path)  # what is left is in nobody's way
    assert path.read_bytes() == NEW
    assert files(path.parent) == {'a.pth': len(NEW)}


def test_what_is_written_is_on_the_disk_before_it_takes_the_old_file_s_place(path, monkeypatch):
    steps = []
    monkeypatch.setattr(os, 'fsync', lambda number: steps.append(os.fstat(number)))
    monkeypatch.setattr(os, 'replace', lambda *paths: steps.append(os.rename(*paths)))
    AtomicLocalBackend().put(b'new', path)  # so few bytes stay in Python's buffer
    file, move, folder = steps
    assert (file.st_size, move) == (3, None)
    assert folder.st_ino == path.parent.stat().st_ino


@pytest.fixture
def warnings():
    """The warnings of the search for a checkpoint."""
    with warnings_listed() as warnings:
        yield warnings


def save(path):
    torch.save({'weights': torch.arange(1000.0)}, path)
    return path


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def find(folder, filename_tmpl='epoch_{}.pth'):
    return find_checkpoint_to_resume(str(folder), str(folder), filename_tmpl)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The folder of a run with three checkpoints, of which last_checkpoint names the latest."""
    found = os.listdir  # below, with 9 first
    monkeypatch.setattr(os, 'listdir', lambda folder: sorted(found(folder), reverse=True))
    for epoch in (8, 9, 10):
        save(tmp_path / f'epoch_{epoch}.pth')
    for name in ('best_bbox_mAP_epoch_11', 'epoch_12.pth.writing', 'iter_99', 'epoch_x'):
        save(tmp_path / f'{name}.pth'.replace('.writing.pth', '.writing'))
    (tmp_path / 'last_checkpoint').write_text(f'{tmp_path}/epoch_10.pth\n')
    return tmp_path


def test_last_checkpoint_is_believed(run, warnings):
    assert find(run) == f'{run}/epoch_10.pth'
    (run / 'last_checkpoint').write_text(f'{run}/epoch_8.pth')  # as after going back in time
    assert find(run) == f'{run}/epoch_8.pth'
    assert warnings == []


@pytest.mark.parametrize(
    'content',
    [None, b'', b' \n', b'/gone/epoch_3.pth', b'\0\0\xff'],
    ids=['missing', 'empty', 'blank', 'dangling', 'garbage'],
)
def test_without_a_usable_last_checkpoint_the_newest_is_taken(run, warnings, content):
    (run / 'last_checkpoint').unlink()
    if content is not None:
        (run / 'last_checkpoint').write_bytes(content)
    assert find(run) == f'{run}/epoch_10.pth'
    assert f'{run}/epoch_10.pth' in warnings[0]


def test_broken_checkpoints_are_passed_over_and_named(run, warnings):
    cut(run / 'epoch_10.pth')
    cut(run / 'epoch_9.pth')
    assert find(run) == f'{run}/epoch_8.pth'
    for epoch in (8, 9, 10):
        assert f'epoch_{epoch}.pth' in warnings[0]


def test_a_run_with_broken_checkpoints_only_is_refused(run, warnings):
    elsewhere = run / 'elsewhere.pth'
    for path in [run / f'epoch_{epoch}.pth' for epoch in (8, 9, 10)] + [save(elsewhere)]:
        cut(path)
    (run / 'last_checkpoint').write_text(str(elsewhere))
    with pytest.raises(ConfigError) as error:
        find(run)
    for name in ('elsewhere', 'epoch_8', 'epoch_9', 'epoch_10'):
        assert f'{name}.pth' in str(error.value)


def test_without_any_checkpoint_training_starts_anew(tmp_path, warnings):
    (tmp_path / 'last_checkpoint').write_text('/gone/epoch_3.pth')
    assert find(tmp_path) is None
    assert find_checkpoint_to_resume(str(tmp_path), f'{tmp_path}/none', 'epoch_{}.pth') is None
    assert len(warnings) == 2


@pytest.mark.parametrize('template', ['iter_{}.pth', 'run{:04d}(x).pth'])
def test_names_follow_the_template(tmp_path, warnings, template):
    for step in (70, 1200):
        save(tmp_path / template.format(step))
    save(tmp_path / 'epoch_5000.pth')
    assert find(tmp_path, template) == str(tmp_path / template.format(1200))


def test_damage_anywhere_is_noticed(tmp_path):
    path = save(tmp_path / 'a.pth')
    assert is_whole(str(path))
    whole = path.read_bytes()
    unnoticed = []
    for start in range(0, len(whole), 256):  # blocks of zeros, as a power failure leaves them
        damaged = (whole[:start] + bytes(256) + whole[start + 256 :])[: len(whole)]
        path.write_bytes(damaged)
        if damaged != whole and is_whole(str(path)):
            unnoticed.append(start)
            assert torch.equal(torch.load(path)['weights'], torch.arange(1000.0))
    assert len(unnoticed) <= 1  # a block of padding
    for length in range(0, len(whole), 99):
        path.write_bytes(whole[:length])
        assert not is_whole(str(path))
    assert not is_whole(str(tmp_path / 'missing.pth'))
    assert is_whole(str(tmp_path))  # DeepSpeed's are folders
