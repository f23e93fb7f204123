"""Crash-safe files, and the search for the checkpoint to resume from."""

import contextlib
import glob
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

from mmengine.fileio import LocalBackend, register_backend

from mmvmamba.models.loading import read_checkpoint

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


def is_complete(path: str) -> bool:
    """Check that a checkpoint file is complete and that its checksums match."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, OSError, EOFError, ValueError):
        return False


def last_complete_checkpoint(folder: str, *others: str) -> str | None:
    """Return the checkpoint in the work folder or others to resume a run from, or None.

    It is the one that ``last_checkpoint`` names, unless that file is truncated or missing, or a
    newer one of the same run is complete: a process may be killed between the two writes. A folder,
    which some of MMEngine's strategies write as a checkpoint, is not checked.
    """
    named = _named_checkpoint(folder, *others)
    if named is not None and os.path.isdir(named):
        return named
    if named is not None and not is_complete(named):
        named = None
    folders = {folder, *others, os.path.dirname(named) if named else folder}
    paths = [p for f in folders for p in glob.glob(os.path.join(glob.escape(f), '*.pth'))]
    done = 0 if named is None else _iterations(named)
    for path in sorted(paths, key=os.path.getmtime, reverse=True):
        if named is not None and os.path.getmtime(path) <= os.path.getmtime(named):
            break
        with contextlib.suppress(ValueError):  # an unreadable file is not of this run
            if is_complete(path) and _iterations(path) > done:
                return path
    return named


def _named_checkpoint(*folders: str) -> str | None:
    """Return the file that the first folder's ``last_checkpoint`` names, even if it was moved."""
    pointer = Path(folders[0], 'last_checkpoint')
    path = pointer.read_text().strip() if pointer.is_file() else ''
    if not path:
        return None
    moved = [os.path.join(folder, os.path.basename(path)) for folder in folders]
    return next((p for p in (path, *moved) if os.path.exists(p)), None)


def _iterations(path: str) -> int:
    """Return the iterations that a run had done, or 0 for a file that holds only weights."""
    content = read_checkpoint(path)
    keys = content.keys() if isinstance(content, dict) else set()
    if {'meta', 'message_hub'} <= keys and {'optimizer', 'param_schedulers'} & keys:
        return int(content['meta'].get('iter', 0))
    return 0
