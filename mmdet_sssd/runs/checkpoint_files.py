"""Writes checkpoint files whole, tells whether they are, and finds the one to resume from."""

import os
import os.path as osp
import re
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.logging import print_log
from mmengine.utils import mkdir_or_exist
from torch import Tensor

from ..errors import ConfigError, warn

ADVICE = (
    'Train again with a lower optim_wrapper.optimizer.lr, or with gradients clipped '
    '(optim_wrapper.clip_grad)'
)


PREEMPTED = 'preempted.pth'  # by PreemptionHook; outdated by any later checkpoint
NONE_YET = 'none yet'  # in the last_checkpoint of a run whose folder has an earlier one's


@register_backend('atomic_local')
class AtomicLocalBackend(LocalBackend):
    """The local file system with atomic writes: ``backend_args=dict(backend='atomic_local')``.

    Data is written to a temporary file in the same folder, flushed to disk and moved into place. If
    the process is killed or the power fails, the path holds the old file or the new one. A process
    killed while writing leaves its temporary file, PATH + ``SUFFIX``.
    """

    SUFFIX = '.writing'

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write bytes to a file, creating its folder if needed.

        Raises:
            OSError: with the file's name, if writing fails; the old file is then unchanged.
        """
        folder, temporary = osp.dirname(osp.abspath(filepath)), f'{filepath}{self.SUFFIX}'
        mkdir_or_exist(folder)
        try:
            with open(temporary, 'wb') as file:
                file.write(obj)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, filepath)
        except OSError as error:
            with suppress(OSError):
                os.remove(temporary)
            raise OSError(error.errno, error.strerror, str(filepath)) from error
        descriptor = os.open(folder, os.O_DIRECTORY)  # so that the move survives a power failure
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def put_text(self, obj: str, filepath: str | Path, encoding: str = 'utf-8') -> None:
        """Write text to a file; see :meth:`put`."""
        self.put(obj.encode(encoding), filepath)


def check_finite(weights: Mapping[str, Tensor]) -> None:
    """Refuse the weights of a run that has diverged.

    Raises:
        ConfigError: if any of the weights, which come by name, is infinite or not a number.
    """
    broken = [key for key, value in weights.items() if not value.isfinite().all()]
    if broken:
        raise ConfigError(
            f'{len(broken)} of {len(weights)} weights are not finite, the first is {broken[0]}: the '
            f'run diverged. {ADVICE}'
        )


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


def find_checkpoint_to_resume(work_dir: str, folder: str, filename_tmpl: str) -> str | None:
    """Find the checkpoint in ``last_checkpoint`` or, if lost or broken, the newest whole one.

    None is taken if those in the folder are of an earlier run, as :func:`forget_earlier_run` noted. The
    choice is logged. On several processes the first chooses for all: folders may differ, on separate
    disks or while files arrive over a network.

    Args:
        work_dir: The run's folder, which contains ``last_checkpoint``.
        folder: Local folder of the run's checkpoints.
        filename_tmpl: Their names, with ``{}`` for the epoch or iteration.

    Returns:
        Path of a whole checkpoint; None without any of this run.

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


def _find(work_dir: str, folder: str, filename_tmpl: str) -> str | None:
    names = osp.join(work_dir, 'last_checkpoint')
    named = Path(names).read_text('utf-8', 'replace').strip() if osp.isfile(names) else ''
    if is_whole(named):
        print_log(f'Resuming from {named}.', logger='current')
        return named
    if named == NONE_YET:
        warn(
            f'--resume: the last run in {work_dir} ended before its first checkpoint; those in '
            f'{folder} are of an earlier one (--resume FILE takes one). Training starts from the '
            'beginning.'
        )
        return None
    problem = f'{names} names {named!r}, which is missing or not whole' if named else f'no {names}'
    moved = osp.join(folder, osp.basename(named))  # with the folder
    candidates = [moved] if named and osp.exists(moved) else []
    candidates += [x for x in _checkpoints(folder, filename_tmpl) if x not in candidates]
    if found := next(filter(is_whole, candidates), None):
        broken = candidates[: candidates.index(found)]
        also = f' ({", ".join(broken)}: not whole)' if broken else ''
        warn(f'{problem}. Resuming from {found}, the newest whole checkpoint in {folder}{also}.')
        return found
    if broken := [path for path in dict.fromkeys((named, *candidates)) if osp.exists(path)]:
        raise ConfigError(
            f'--resume: {problem}, and there is no whole checkpoint in {folder}; not whole: '
            f'{", ".join(broken)}. Give a whole one (--resume FILE), or remove these to train from '
            'the beginning'
        )
    warn(
        f'--resume: {problem}, and no {filename_tmpl.format("*")} in {folder}. Training starts from '
        'the beginning.'
    )
    return None


def forget_earlier_run(work_dir: str, folder: str, filename_tmpl: str) -> None:
    """Note in ``last_checkpoint`` that a new run has none yet, if there are checkpoints already.

    The arguments are those of :func:`find_checkpoint_to_resume`.
    """
    pointer = Path(work_dir, 'last_checkpoint')
    if pointer.exists() or _checkpoints(folder, filename_tmpl):
        AtomicLocalBackend().put_text(NONE_YET, str(pointer))


def _checkpoints(folder: str, filename_tmpl: str) -> list[str]:
    """List the checkpoints in a folder, newest first, from the one of a preempted run on."""
    pattern = re.compile(re.sub(r'\\\{.*?\\\}', r'(\\d+)', re.escape(filename_tmpl)))
    names = os.listdir(folder) if osp.isdir(folder) else []
    matches = [match for match in map(pattern.fullmatch, names) if match]
    matches.sort(key=lambda match: int(match[1]), reverse=True)
    first = [PREEMPTED] if PREEMPTED in names else []
    return [osp.join(folder, name) for name in (*first, *(match[0] for match in matches))]
