"""Crash-safe files, and the search for the checkpoint to resume from."""

from __future__ import annotations

import contextlib
import glob
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.fileio import LocalBackend, register_backend

from mmvmamba.models.loading import read_checkpoint

from .errors import UserError

#: The name by which MMEngine's ``backend_args`` ask for :class:`AtomicBackend`.
ATOMIC = 'mmvmamba_atomic'
_WRITING = '.writing'


class AtomicBackend(LocalBackend):
    """Local files that appear under their name once all their bytes are on the disk.

    A file is written beside its destination under a hidden name, flushed to the disk and renamed. A
    process that is killed meanwhile leaves the previous file untouched. A failed write, for example
    on a full disk, raises a ``UserError``.
    """

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write bytes to a file and create missing folders."""
        with whole_file(filepath, len(obj)) as part, open(part, 'wb') as file:
            file.write(obj)

    def put_text(self, obj: str, filepath: str | Path, encoding: str = 'utf-8') -> None:
        """Write text; see :meth:`put`."""
        self.put(obj.encode(encoding), filepath)


register_backend(ATOMIC, AtomicBackend, force=True)


@contextlib.contextmanager
def whole_file(filepath: str | Path, size: int | None = None) -> Iterator[str]:
    """Yield the hidden name to write a file to, then move it to its destination.

    Args:
        filepath (str or Path): The destination; missing folders are created.
        size (int, optional): The number of bytes, for the error message. Defaults to None.

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
        _sync_folder(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.remove(part)
        what = repr(os.fspath(filepath)) + ('' if size is None else f' ({size} bytes)')
        raise UserError(
            f'{what} cannot be written: {error.strerror}; what was saved before is kept'
        ) from error


def _sync_folder(folder: str) -> None:
    """Flush the rename itself to the disk, where the system can open folders."""
    if os.name != 'posix':
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_parts(folder: str) -> None:
    """Remove the unfinished checkpoints of a process that was killed while it wrote them."""
    for path in glob.glob(os.path.join(glob.escape(folder), f'.*.pth{_WRITING}')):
        os.remove(path)


def is_whole(path: str) -> bool:
    """Check that a checkpoint file is complete and that its checksums match."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, OSError, EOFError, ValueError):
        return False


def last_whole_checkpoint(folder: str, *others: str) -> str | None:
    """Find the checkpoint from which a run can be resumed.

    It is the one that ``last_checkpoint`` names, unless that file is truncated or missing, or a
    newer one of the same run is complete: a process may be killed between the two writes. A folder,
    which some of MMEngine's strategies write as a checkpoint, is not checked.

    Args:
        folder (str): The work folder.
        *others (str): More folders that hold checkpoints of the run.

    Returns:
        str or None: The path, or None if no complete checkpoint holds the state of a run.
    """
    named = _named_checkpoint(folder, *others)
    if named is not None and os.path.isdir(named):
        return named
    if named is not None and not is_whole(named):
        named = None
    folders = {folder, *others, os.path.dirname(named) if named else folder}
    paths = [p for f in folders for p in glob.glob(os.path.join(glob.escape(f), '*.pth'))]
    done = 0 if named is None else max(_iterations(named), 0)
    for path in sorted(paths, key=os.path.getmtime, reverse=True):
        if named is not None and os.path.getmtime(path) <= os.path.getmtime(named):
            break
        with contextlib.suppress(ValueError):  # an unreadable file is not of this run
            if is_whole(path) and _iterations(path) > done:
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
    """Return the iterations that a run had done, or -1 for a file that holds only weights."""
    content: Any = read_checkpoint(path)
    if not isinstance(content, dict) or not {'meta', 'message_hub'} <= content.keys():
        return -1
    if not {'optimizer', 'param_schedulers'} & content.keys():
        return -1
    return int(content['meta'].get('iter', -1))
