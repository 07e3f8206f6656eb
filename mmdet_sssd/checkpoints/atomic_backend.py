import os
import os.path as osp
from contextlib import suppress
from pathlib import Path

from mmengine.fileio import LocalBackend, register_backend
from mmengine.utils import mkdir_or_exist


@register_backend('atomic_local')
class AtomicLocalBackend(LocalBackend):
    """The local file system, with files that appear whole or not at all.

    What is put is written to a temporary file in the same folder, flushed to the disk and moved into
    place. Whenever the process is killed or the power fails, the path holds the old file or the new
    one. A process that is killed while it writes leaves its temporary file, PATH + ``SUFFIX``, behind.

    Chosen by ``backend_args=dict(backend='atomic_local')``.
    """

    SUFFIX = '.writing'

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write bytes to a file; its folder is made if it is not there.

        Raises:
            OSError: if they cannot be written; the old file is then as it was.
        """
        folder = osp.dirname(osp.abspath(filepath))
        mkdir_or_exist(folder)
        temporary = f'{filepath}{self.SUFFIX}'
        try:
            with open(temporary, 'wb') as file:
                file.write(obj)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, filepath)
        except OSError:
            with suppress(OSError):
                os.remove(temporary)
            raise
        _flush_folder(folder)

    def put_text(self, obj: str, filepath: str | Path, encoding: str = 'utf-8') -> None:
        """Write text to a file, as :meth:`put` does."""
        self.put(obj.encode(encoding), filepath)


def _flush_folder(folder: str) -> None:
    """Make a move in a folder outlast a power failure, where folders can be flushed."""
    if hasattr(os, 'O_DIRECTORY'):
        descriptor = os.open(folder, os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
