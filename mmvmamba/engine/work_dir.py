"""The folder of a run: its lock, and the checkpoint to resume from."""

import contextlib
import glob
import logging
import os
import socket
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

from mmengine.logging import print_log

from mmvmamba.checkpoint.reader import read_local_checkpoint
from mmvmamba.models.loading import read_checkpoint

from .errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_LOCK = 'run.lock'
_OWNER = 'process '  # the beginning of its content
_MAX_OWNER = 300
_POINTER = 'last_checkpoint'
_MAX_POINTER = 4096  # bytes, the longest path of Linux
#: Ranks by the launchers of OpenMMLab.
_RANK_VARIABLES = dict(pytorch='RANK', slurm='SLURM_PROCID', mpi='OMPI_COMM_WORLD_RANK')


def is_first_process(launcher: str) -> bool:
    """Return True in the first process of a run, also before its process group exists."""
    return os.environ.get(_RANK_VARIABLES.get(launcher, ''), '0') == '0'


@contextlib.contextmanager
def locked(folder: str, launcher: str = 'none') -> Iterator[None]:
    """Lock the folder of a run; the lock ends with the process, however that ends.

    The first process of a distributed run takes it alone. Data-loading workers do not inherit it,
    so that one that outlives its run does not keep it. A POSIX lock also ends when its process
    closes another descriptor of ``run.lock``, for example after copying the folder.

    Raises:
        UserError: If another run uses the folder, it cannot be created, or its ``run.lock`` is not
            the file of a lock.
    """
    if not is_first_process(launcher) or fcntl is None:
        yield
        return
    try:
        os.makedirs(folder, exist_ok=True)
        file = _open_lock(os.path.join(folder, _LOCK))
    except OSError as error:
        reason = 'it is a file' if os.path.isfile(folder) else error.strerror or error
        raise UserError(
            f'work_dir {folder!r} cannot be used: {reason}; use another --work-dir'
        ) from error
    with file:
        _lock(file, folder)
        yield


def _open_lock(path: str) -> IO[str]:
    """Open the file of a lock; follow no link, and do not wait for the other end of a pipe."""
    if os.path.lexists(path) and not stat.S_ISREG(os.lstat(path).st_mode):
        raise UserError(f'{path!r} must be a regular file; remove it, or use another --work-dir')
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    return open(os.open(path, flags, 0o666), 'r+', encoding='utf-8', errors='replace')


def _lock(file: IO[str], folder: str) -> None:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        owner = file.read(_MAX_OWNER).strip() or 'another run'
        raise UserError(
            f'work_dir {folder!r} is in use by {owner}; stop it, or give --work-dir another folder'
        ) from error
    except OSError as error:  # some network file systems have no locks
        message = f'work_dir {folder!r} cannot be locked: {error.strerror}'
        print_log(message, 'current', logging.WARNING)
        return
    content = file.read(_MAX_OWNER)
    if content and not content.startswith(_OWNER):
        raise UserError(
            f'{os.path.join(folder, _LOCK)!r} must be a lock file, but contains something '
            'else; remove it, or use another --work-dir'
        )
    try:
        os.ftruncate(file.fileno(), 0)
        os.pwrite(file.fileno(), f'{_OWNER}{os.getpid()} on {socket.gethostname()}'.encode(), 0)
    except OSError as error:
        raise UserError(
            f'work_dir {folder!r} cannot be used: {error.strerror}; use another --work-dir'
        ) from error


class Progress(NamedTuple):
    """Training progress stored in a checkpoint.

    Attributes:
        iteration (int): Iterations done.
        run (str, optional): Identifier of the run, which resumed runs keep.
    """

    iteration: int
    run: str | None


def saved_progress(path: str) -> Progress | None:
    """Read the progress from a checkpoint without its tensors, or None if it only has weights.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If it cannot be read, or has the state of a run without its progress.
    """
    content = read_local_checkpoint(path, skip_data=True)
    keys = content.keys() if isinstance(content, Mapping) else set()
    if not {'meta', 'message_hub'} <= keys or not {'optimizer', 'param_schedulers'} & keys:
        return None
    meta: Any = content['meta'] if isinstance(content['meta'], Mapping) else {}
    if type(meta.get('iter')) is not int or type(meta.get('epoch')) is not int:
        raise ValueError(f'checkpoint {path!r} must contain the epoch and iteration of its run')
    run = meta.get('run')
    return Progress(meta['iter'], run if isinstance(run, str) else None)


def last_complete_checkpoint(folder: str, *others: str) -> tuple[str | None, list[str]]:
    """Find the checkpoint in the work directory or others to resume a run from.

    Among the checkpoints of the run that ``last_checkpoint`` names, or of all runs if it names none
    that can be read, it is the one with the most iterations. A process may be killed between the
    writes of both files. If the named one does not hold its run, those with more iterations count
    only if they are newer. A folder, which some of MMEngine's strategies write as a checkpoint, is
    not checked.

    Returns:
        tuple[str | None, list[str]]: The path, or None, and the reasons why others were skipped.

    Raises:
        UserError: If ``last_checkpoint`` names a file, but no checkpoint can be used. Training
            would begin anew and replace the checkpoints.
    """
    named, skipped = _named_checkpoint(folder, *others)
    if named is not None and os.path.isdir(named):
        return named, skipped
    paths = {p for f in (folder, *others) for p in glob.glob(os.path.join(glob.escape(f), '*.pth'))}
    found: dict[str, Progress] = {}
    for path in sorted(paths | {named} - {None}):
        try:
            progress = saved_progress(path)
        except (OSError, ValueError) as error:
            skipped.append(str(error))
            continue
        if progress is not None and (progress.iteration > 0 or path == named):
            found[path] = progress
        elif progress is None and path == named:
            skipped.append(f'checkpoint {path!r} contains weights but no training state')
    if named in found:
        found = {path: p for path, p in found.items() if _is_same_run(found, named, path)}
    for path in sorted(found, key=lambda p: (found[p].iteration, p == named), reverse=True):
        try:
            read_checkpoint(path)  # verifies its checksums
            return path, skipped
        except (OSError, ValueError) as error:
            skipped.append(str(error))
    if named is not None:
        raise UserError(
            f'cannot resume from any checkpoint in {folder!r}: {"; ".join(skipped) or named}. To '
            'train from the beginning, use another --work-dir'
        )
    return None, skipped


def _is_same_run(found: Mapping[str, Progress], named: str, path: str) -> bool:
    """Return True if a checkpoint is of the run of the named one, or may be if neither tells."""
    if found[path].run != found[named].run:
        return False
    if found[path].run is not None or found[path].iteration <= found[named].iteration:
        return True
    # Saved by an older version or by MMEngine alone.
    return os.path.getmtime(path) > os.path.getmtime(named)


def read_last_checkpoint(folder: str) -> str | None:
    """Return the path in the ``last_checkpoint`` of a work directory, or None if it holds none.

    Raises:
        ValueError: If ``last_checkpoint`` is not a text file.
    """
    pointer = Path(folder, _POINTER)
    if not os.path.lexists(pointer):
        return None
    if not pointer.is_file():
        raise ValueError(f'{str(pointer)!r} is not a file')
    try:
        with open(pointer, encoding='utf-8') as file:
            return file.read(_MAX_POINTER).strip() or None
    except (OSError, ValueError) as error:  # ValueError: not UTF-8
        raise ValueError(f'{str(pointer)!r} cannot be read: {error}') from error


def last_checkpoint(folder: str) -> str:
    """Return the checkpoint that ``last_checkpoint`` of a work directory names, even if moved.

    Raises:
        UserError: If there is no such checkpoint.
    """
    path, reasons = _named_checkpoint(folder)
    if path is None:
        reason = f'{os.path.join(folder, _POINTER)!r} does not name a checkpoint'
        raise UserError('; '.join(reasons) or reason)
    return path


def _named_checkpoint(*folders: str) -> tuple[str | None, list[str]]:
    """Find what the first folder's ``last_checkpoint`` names, even if it was moved or copied.

    A folder can be a checkpoint only within one of the folders.
    """
    try:
        path = read_last_checkpoint(folders[0])
    except ValueError as error:
        return None, [str(error)]
    if path is None:
        return None, []
    own = [os.path.join(folder, os.path.basename(path)) for folder in folders]
    for candidate in own:  # a copy of a work directory names the original
        is_checkpoint = not os.path.isdir(candidate) or candidate.endswith('.pth')
        if os.path.lexists(candidate) and is_checkpoint:
            return candidate, []
    if os.path.lexists(path) and not os.path.isdir(path):
        return path, []
    reason = 'is not a checkpoint' if os.path.isdir(path) else 'does not exist'
    return None, [f'{os.path.join(folders[0], _POINTER)!r} names {path!r:.200}, which {reason}']
