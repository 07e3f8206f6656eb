import os
import os.path as osp
from contextlib import suppress
from pathlib import Path

from mmengine.fileio import LocalBackend, register_backend
from mmengine.utils import mkdir_or_exist


@register_backend('atomic_local')
class AtomicLocalBackend(LocalBackend):
    """The local file system with atomic writes.

    Data is written to a temporary file in the same folder, flushed to disk and moved into place. If
    the process is killed or the power fails, the path holds the old file or the new one. A process
    killed while writing leaves its temporary file, PATH + ``SUFFIX``.

    Selected by ``backend_args=dict(backend='atomic_local')``.
    """

    SUFFIX = '.writing'

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write bytes to a file, creating its folder if needed.

        Raises:
            OSError: with the file's name, if writing fails; the old file is then unchanged.
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
        except OSError as error:
            with suppress(OSError):
                os.remove(temporary)
            raise OSError(error.errno, error.strerror, str(filepath)) from error
        _flush_folder(folder)

    def put_text(self, obj: str, filepath: str | Path, encoding: str = 'utf-8') -> None:
        """Write text to a file; see :meth:`put`."""
        self.put(obj.encode(encoding), filepath)


def _flush_folder(folder: str) -> None:
    """Flush a folder to disk, where supported, so that a move survives a power failure."""
    if hasattr(os, 'O_DIRECTORY'):
        descriptor = os.open(folder, os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
