import logging
import re

import pytest
import torch

from mmdet_sssd import ConfigError
from mmdet_sssd.checkpoints import find_checkpoint_to_resume, is_whole


@pytest.fixture
def logged(monkeypatch):
    """What was logged: (level, message)."""
    logged = []

    def note(message, logger=None, level=logging.INFO):
        logged.append((level, message))

    monkeypatch.setattr('mmdet_sssd.checkpoints.recovery.print_log', note)
    return logged


def save(path):
    torch.save({'weights': torch.arange(1000.0)}, path)
    return path


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def find(folder, filename_tmpl='epoch_{}.pth'):
    return find_checkpoint_to_resume(str(folder), str(folder), filename_tmpl)


@pytest.fixture
def run(tmp_path):
    """The folder of a run with three checkpoints, of which last_checkpoint names the latest."""
    for epoch in (8, 9, 10):
        last = save(tmp_path / f'epoch_{epoch}.pth')
    for name in (
        'best_bbox_mAP_epoch_11.pth',
        'epoch_12.pth.writing',
        'iter_99.pth',
        'epoch_x.pth',
    ):
        save(tmp_path / name)
    (tmp_path / 'last_checkpoint').write_text(f'{last}\n')
    return tmp_path


def test_last_checkpoint_is_believed(run, logged):
    assert find(run) == f'{run}/epoch_10.pth'
    (run / 'last_checkpoint').write_text(f'{run}/epoch_8.pth')  # as after going back in time
    assert find(run) == f'{run}/epoch_8.pth'
    assert [level for level, _ in logged] == [logging.INFO] * 2
    assert 'epoch_8.pth' in logged[1][1]


@pytest.mark.parametrize(
    ('content', 'problem'),
    [
        (None, 'There is no {run}/last_checkpoint'),
        (b'', '{run}/last_checkpoint is empty'),
        (b' \n', '{run}/last_checkpoint is empty'),
        (
            b'/gone/epoch_3.pth',
            "{run}/last_checkpoint names '/gone/epoch_3.pth', which does not exist",
        ),
        (b'\0\0\xff', "{run}/last_checkpoint names '\\x00\\x00�', which does not exist"),
    ],
    ids=['missing', 'empty', 'blank', 'dangling', 'garbage'],
)
def test_without_a_usable_last_checkpoint_the_newest_is_taken(run, logged, content, problem):
    (run / 'last_checkpoint').unlink()
    if content is not None:
        (run / 'last_checkpoint').write_bytes(content)
    assert find(run) == f'{run}/epoch_10.pth'
    (message,) = [message for level, message in logged if level == logging.WARNING]
    assert message.startswith(problem.format(run=run))
    assert f'Resuming from {run}/epoch_10.pth, the newest whole checkpoint' in message


def test_broken_ones_are_passed_over_and_named(run, logged):
    cut(run / 'epoch_10.pth')
    assert find(run) == f'{run}/epoch_9.pth'
    assert 'epoch_10.pth, which is not a whole checkpoint. Resuming from' in logged[-1][1]
    (run / 'last_checkpoint').unlink()
    cut(run / 'epoch_9.pth')
    assert find(run) == f'{run}/epoch_8.pth'
    warnings = '\n'.join(message for _, message in logged[-3:])
    for name in ('epoch_10.pth is not a whole', 'epoch_9.pth is not a whole', 'from.*epoch_8.pth'):
        assert re.search(name, warnings)


def test_a_run_with_broken_checkpoints_only_is_refused(run, logged):
    for epoch in (8, 9, 10):
        cut(run / f'epoch_{epoch}.pth')
    with pytest.raises(ConfigError) as error:
        find(run)
    for part in ('--resume', 'epoch_8.pth', 'epoch_9.pth', 'epoch_10.pth', 'from the beginning'):
        assert part in str(error.value)


def test_a_broken_checkpoint_elsewhere_is_not_forgotten(tmp_path, logged):
    elsewhere = tmp_path / 'elsewhere.pth'
    cut(save(elsewhere))
    (tmp_path / 'last_checkpoint').write_text(str(elsewhere))
    with pytest.raises(ConfigError, match=r'not whole: .*elsewhere\.pth'):
        find(tmp_path)


@pytest.mark.parametrize('last_checkpoint', [None, '', '/gone/epoch_3.pth'])
def test_without_any_checkpoint_it_says_that_training_starts_anew(
    tmp_path, logged, last_checkpoint
):
    if last_checkpoint is not None:
        (tmp_path / 'last_checkpoint').write_text(last_checkpoint)
    assert find(tmp_path) is None
    assert find_checkpoint_to_resume(str(tmp_path), f'{tmp_path}/none', 'epoch_{}.pth') is None
    for level, message in logged:
        assert level == logging.WARNING
        assert message.endswith('Training starts from the beginning.')


@pytest.mark.parametrize('template', ['iter_{}.pth', 'run{:04d}(x).pth'])
def test_names_follow_the_template(tmp_path, logged, template):
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
