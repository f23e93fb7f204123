"""Crash-safe files."""

import contextlib
import glob
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from mmengine.fileio import LocalBackend, register_backend
from mmengine.logging import print_log

from .errors import UserError

#: The name by which MMEngine's ``backend_args`` ask for :class:`AtomicBackend`.
ATOMIC = 'mmvmamba_atomic'
_WRITING = '.writing'


class AtomicBackend(LocalBackend):
    """Local storage whose files appear under their names only when they are complete.

    A file is written beside its destination under a hidden name, flushed to the disk and renamed. A
    process that is killed meanwhile leaves the previous file untouched. A failed write, for example
    on a full disk, raises a ``UserError``.
    """

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write bytes to a file and create missing folders."""
        with atomic_write(filepath) as part, open(part, 'wb') as file:
            file.write(obj)

    def put_text(self, obj: str, filepath: str | Path, encoding: str = 'utf-8') -> None:
        """Write text; see :meth:`put`."""
        self.put(obj.encode(encoding), filepath)


register_backend(ATOMIC, AtomicBackend, force=True)


@contextlib.contextmanager
def atomic_write(filepath: str | Path) -> Iterator[str]:
    """Yield a temporary path, which becomes ``filepath`` when the block succeeds.

    Missing folders are created.

    Raises:
        UserError: If the file cannot be written, for example on a full disk.
    """
    folder, name = os.path.split(os.path.abspath(filepath))
    part = os.path.join(folder, f'.{name}{_WRITING}')
    try:
        os.makedirs(folder, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.remove(part)
        open(part, 'xb').close()  # follows no link, and opens no pipe
        yield part
        with open(part, 'rb+') as file:
            os.fsync(file.fileno())
        os.replace(part, filepath)
        if os.name == 'posix':  # flush the rename itself; elsewhere folders cannot be opened
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    except OSError as error:
        reason = f'{part!r} is a folder' if os.path.isdir(part) else error.strerror or error
        with contextlib.suppress(OSError):
            os.remove(part)
        raise UserError(
            f'{os.fspath(filepath)!r} cannot be written: {reason}; earlier files are kept'
        ) from error


def remove_parts(folder: str) -> None:
    """Remove the unfinished files of a process that was killed while it wrote a checkpoint."""
    for pattern in (f'.*.pth{_WRITING}', f'.last_checkpoint{_WRITING}'):
        for path in glob.glob(os.path.join(glob.escape(folder), pattern)):
            try:
                os.remove(path)
            except OSError as error:  # such as a folder
                message = f'{path!r} cannot be removed: {error.strerror}'
                print_log(message, 'current', logging.WARNING)
