"""Finds the checkpoint to resume a run from, whatever its state."""

import logging
import os
import os.path as osp
import re
import zipfile

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.logging import print_log

from ..errors import ConfigError


def find_checkpoint_to_resume(work_dir: str, folder: str, filename_tmpl: str) -> str | None:
    """Find the checkpoint in ``last_checkpoint`` or, if lost or broken, the newest whole one.

    The choice is logged. On several processes the first chooses for all: folders may differ, on
    separate disks or while files arrive over a network.

    Args:
        work_dir: The run's folder, which contains ``last_checkpoint``.
        folder: Local folder of the run's checkpoints.
        filename_tmpl: Their file names, with ``{}`` for the epoch or iteration; the highest is the
            newest.

    Returns:
        Path of a whole checkpoint; None without any checkpoint.

    Raises:
        ConfigError: on every process, if there are checkpoints but none is whole.
    """
    found: list = [None]
    if is_main_process():
        try:
            found = [_find(work_dir, folder, filename_tmpl)]
        except Exception as error:  # the others would wait for an answer
            found = [error]
    broadcast_object_list(found)
    if isinstance(found[0], Exception):
        raise found[0]
    return found[0]


def is_whole(path: str) -> bool:
    """Tell whether a checkpoint is complete and undamaged.

    torch writes a zip archive with checksums, which are compared; nothing is run or unpickled. A
    folder (DeepSpeed) counts as whole.
    """
    if osp.isdir(path):
        return True
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except Exception:  # zipfile has many ways to fail on a broken file
        return False


def _find(work_dir: str, folder: str, filename_tmpl: str) -> str | None:
    named, problem = _read_last_checkpoint(osp.join(work_dir, 'last_checkpoint'))
    if not problem:
        print_log(f'Resuming from {named}.', logger='current')
        return named
    broken = [named] if osp.exists(named) else []
    for path in _checkpoints(folder, filename_tmpl):
        if path in broken:
            continue
        if is_whole(path):
            _warn(f'{problem}. Resuming from {path}, the newest whole checkpoint in {folder}.')
            return path
        _warn(f'{path} is not a whole checkpoint.')
        broken.append(path)
    if broken:
        raise ConfigError(
            f'--resume: {problem}, and there is no whole checkpoint in {folder}; not whole: '
            f'{", ".join(broken)}. Give a whole one (--resume FILE), or remove these to train from '
            'the beginning'
        )
    _warn(
        f'--resume: {problem}, and there is no {filename_tmpl.format("*")} in {folder}. Training '
        'starts from the beginning.'
    )
    return None


def _read_last_checkpoint(path: str) -> tuple[str, str]:
    """Read the checkpoint's path from ``last_checkpoint``, and describe the problem, if any."""
    if not osp.isfile(path):
        return '', f'there is no {path}'
    with open(path, encoding='utf-8', errors='replace') as file:
        named = file.read().strip()
    if not named:
        return '', f'{path} is empty'
    if not osp.exists(named):
        return named, f'{path} names {named!r}, which does not exist'
    if not is_whole(named):
        return named, f'{path} names {named}, which is not a whole checkpoint'
    return named, ''


def _checkpoints(folder: str, filename_tmpl: str) -> list[str]:
    """List the checkpoints in a folder, newest first."""
    pattern = re.compile(re.sub(r'\\\{.*?\\\}', r'(\\d+)', re.escape(filename_tmpl)))
    names = os.listdir(folder) if osp.isdir(folder) else []
    matches = [match for match in map(pattern.fullmatch, names) if match]
    matches.sort(key=lambda match: int(match[1]), reverse=True)
    return [osp.join(folder, match[0]) for match in matches]


def _warn(message: str) -> None:
    print_log(message[0].upper() + message[1:], logger='current', level=logging.WARNING)
