"""The folder of a run: its lock, and the checkpoint to resume from."""

import contextlib
import glob
import logging
import os
import socket
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
_POINTER = 'last_checkpoint'
_MAX_POINTER = 4096  # bytes, the longest path of Linux
#: Ranks by the launchers of OpenMMLab.
_RANK_VARIABLES = dict(pytorch='RANK', slurm='SLURM_PROCID', mpi='OMPI_COMM_WORLD_RANK')


@contextlib.contextmanager
def locked(folder: str, launcher: str = 'none') -> Iterator[None]:
    """Lock the folder of a run; the lock ends with the process, however that ends.

    The first process of a distributed run takes it alone. Data-loading workers do not inherit it.

    Raises:
        UserError: If another run uses the folder, or it cannot be created.
    """
    if os.environ.get(_RANK_VARIABLES.get(launcher, ''), '0') != '0' or fcntl is None:
        yield
        return
    try:
        os.makedirs(folder, exist_ok=True)
        file = open(os.path.join(folder, _LOCK), 'a+')
    except OSError as error:
        raise UserError(f'work_dir {folder!r} cannot be used: {error.strerror}') from error
    with file:
        _lock(file, folder)
        yield


def _lock(file: IO[str], folder: str) -> None:
    file.seek(0)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        owner = file.read().strip() or 'another run'
        raise UserError(
            f'work_dir {folder!r} is in use by {owner}; stop it, or give --work-dir another folder'
        ) from error
    except OSError as error:  # some network file systems have no locks
        message = f'work_dir {folder!r} cannot be locked: {error.strerror}'
        print_log(message, 'current', logging.WARNING)
        return
    file.truncate(0)
    file.write(f'process {os.getpid()} on {socket.gethostname()}')
    file.flush()


class Progress(NamedTuple):
    """Progress of the run that saved a checkpoint.

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
        raise ValueError(f'checkpoint {path!r} must hold the epoch and iteration of its run')
    run = meta.get('run')
    return Progress(meta['iter'], run if isinstance(run, str) else None)


def last_complete_checkpoint(folder: str, *others: str) -> tuple[str | None, list[str]]:
    """Find the checkpoint in the work folder or others to resume a run from.

    Among the checkpoints of the run that ``last_checkpoint`` names, or of all runs if it names none
    that can be read, it is the one with the most iterations. A process may be killed between the
    writes of both files. A folder, which some of MMEngine's strategies write as a checkpoint, is
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
    folders = {folder, *others, os.path.dirname(named) if named else folder}
    paths = {p for f in folders for p in glob.glob(os.path.join(glob.escape(f), '*.pth'))}
    found: dict[str, Progress] = {}
    for path in sorted(paths | {named} - {None}):
        try:
            progress = saved_progress(path)
        except (OSError, ValueError) as error:
            skipped.append(str(error))
            continue
        if progress is not None and (progress.iteration > 0 or path == named):
            found[path] = progress
    if named in found:
        found = {path: p for path, p in found.items() if p.run == found[named].run}
    for path in sorted(found, key=lambda p: (found[p].iteration, p == named), reverse=True):
        try:
            read_checkpoint(path)  # verifies its checksums
            return path, skipped
        except (OSError, ValueError) as error:
            skipped.append(str(error))
    if named is not None:
        raise UserError(
            f'no checkpoint in {folder!r} can be resumed from: {"; ".join(skipped) or named}. To '
            'train from the beginning, use another --work-dir'
        )
    return None, skipped


def _named_checkpoint(*folders: str) -> tuple[str | None, list[str]]:
    """Return the file that the first folder's ``last_checkpoint`` names, even if it was moved."""
    pointer = Path(folders[0], _POINTER)
    if not pointer.is_file():
        skipped = [f'{str(pointer)!r} is not a file'] if os.path.lexists(pointer) else []
        return None, skipped
    try:
        with open(pointer, encoding='utf-8') as file:
            path = file.read(_MAX_POINTER).strip()
        moved = [os.path.join(folder, os.path.basename(path)) for folder in folders]
        named = next((p for p in (path, *moved) if path and os.path.lexists(p)), None)
    except (OSError, ValueError) as error:  # not UTF-8, or a null byte
        return None, [f'{str(pointer)!r} cannot be read: {error}']
    missing = [f'{str(pointer)!r} names {path!r:.200}, which does not exist']
    return named, missing if named is None and path else []
