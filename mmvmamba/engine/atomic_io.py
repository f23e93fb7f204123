"""Checkpoint files that are whole or not there, and the one to resume from."""

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
    """Local files that appear under their name when all their bytes are on the disk.

    A file is written beside its place under a hidden name, flushed to the disk and renamed. Whoever
    is killed meanwhile leaves what was there before.
    """

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Writes bytes.

        Args:
            obj (bytes): The content.
            filepath (str or Path): The file; missing folders are made.

        Raises:
            UserError: If it cannot be written, on a full disk for example.
        """
        with whole_file(filepath, len(obj)) as part, open(part, 'wb') as file:
            file.write(obj)

    def put_text(self, obj: str, filepath: str | Path, encoding: str = 'utf-8') -> None:
        """Writes text; see :meth:`put`."""
        self.put(obj.encode(encoding), filepath)


@contextlib.contextmanager
def whole_file(filepath: str | Path, size: int | None = None) -> Iterator[str]:
    """Gives the hidden name under which a file is to be written; then puts it to its place.

    Args:
        filepath (str or Path): The place; missing folders are made.
        size (int, optional): The bytes that will be written, for the message. Defaults to None.

    Yields:
        str: The name to write to.

    Raises:
        UserError: If it cannot be written, on a full disk for example.
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


register_backend(ATOMIC, AtomicBackend, force=True)


def remove_parts(folder: str) -> None:
    """Removes what a process left that was killed while it wrote a checkpoint."""
    for path in glob.glob(os.path.join(glob.escape(folder), f'.*.pth{_WRITING}')):
        os.remove(path)


def is_whole(path: str) -> bool:
    """Whether a checkpoint file has its end, and every part its checksum."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, OSError, EOFError, ValueError):
        return False


def last_whole_checkpoint(folder: str, *others: str) -> str | None:
    """Finds the checkpoint that a run in a folder can go on from.

    It is the one that ``last_checkpoint`` names, unless that is cut off or gone, or a newer one of
    the same run is whole: a process may be killed between the two writes. A folder, as some of
    MMEngine's strategies write for a checkpoint, is taken as it is.

    Args:
        folder (str): The work folder.
        *others (str): More folders that hold checkpoints of the run.

    Returns:
        str or None: The path; None if there is no whole checkpoint that holds a run's state.
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
        with contextlib.suppress(ValueError):  # what is not read is not of this run
            if is_whole(path) and _iterations(path) > done:
                return path
    return named


def _named_checkpoint(*folders: str) -> str | None:
    """What ``last_checkpoint`` in the first folder names, also if it was moved."""
    pointer = Path(folders[0], 'last_checkpoint')
    path = pointer.read_text().strip() if pointer.is_file() else ''
    if not path:
        return None
    moved = [os.path.join(folder, os.path.basename(path)) for folder in folders]
    return next((p for p in (path, *moved) if os.path.exists(p)), None)


def _iterations(path: str) -> int:
    """Iterations after which a run was saved; -1 for a file that holds weights only.

    Raises:
        ValueError: If it is a file of another kind.
    """
    content: Any = read_checkpoint(path)
    if not isinstance(content, dict) or not {'meta', 'message_hub'} <= content.keys():
        return -1
    if not {'optimizer', 'param_schedulers'} & content.keys():
        return -1
    return int(content['meta'].get('iter', -1))


def _sync_folder(folder: str) -> None:
    """Makes the rename itself last, where the system can open folders."""
    if os.name != 'posix':
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
