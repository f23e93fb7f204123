"""Crash-safe files."""

import contextlib
import glob
import os
from collections.abc import Iterator
from pathlib import Path

from mmengine.fileio import LocalBackend, register_backend

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
        with contextlib.suppress(OSError):
            os.remove(part)
        raise UserError(
            f'{os.fspath(filepath)!r} cannot be written: {error.strerror}; earlier files are kept'
        ) from error


def remove_parts(folder: str) -> None:
    """Remove the unfinished checkpoints of a process that was killed while it wrote them."""
    for path in glob.glob(os.path.join(glob.escape(folder), f'.*.pth{_WRITING}')):
        os.remove(path)
