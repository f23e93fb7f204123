"""One-line messages for user errors and a lack of resources, tracebacks for all others."""

import contextlib
import errno
import gc
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from traceback import format_exception, walk_tb
from types import TracebackType
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from mmengine.registry import Registry

from mmvmamba.checkpoint.redaction import redacted
from mmvmamba.mmcv_ops import MissingOpError

_TRACEBACK_VARIABLE = 'MMVMAMBA_TRACEBACK'
_FILE_ERRORS = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)
_BUILD_ERRORS = (ValueError, TypeError, KeyError, AssertionError, ImportError)
_DISK_FULL = 'free some space; if no file is named, /dev/shm, which data loading uses, may be full'
_TOO_MANY_FILES = 'raise the limit (`ulimit -n`), or lower num_workers'
#: Remedies for the state of the machine, by the number of an OSError.
_MACHINE_ERRORS = {
    errno.EDQUOT: 'free some space, or use another --work-dir',
    errno.EFBIG: 'raise the limit (`ulimit -f`), or use another --work-dir',
    errno.EMFILE: _TOO_MANY_FILES,
    errno.ENFILE: _TOO_MANY_FILES,
    errno.ENOMEM: 'free some memory, or lower num_workers',
    errno.ENOSPC: _DISK_FULL,
    errno.EROFS: 'use another --work-dir',
}
_LESS_MEMORY = (
    'to use less, lower the batch size or the size of the images; in training, set '
    'model.backbone.with_cp=True or use --amp'
)
#: The only signs of a lack of memory in a RuntimeError of PyTorch or of the native ops.
_NO_MEMORY = ('DefaultCPUAllocator: ', 'CUDA out of memory.')
#: Remedies for data-loading processes that the system ended, by its words.
_WORKER_ERRORS = {
    'killed by signal: Bus error': 'enlarge /dev/shm (`docker run --shm-size=8g`), or lower '
    'num_workers',
    'killed by signal: Killed': 'the system probably ran out of memory; lower num_workers',
}
_NETWORK_HINT = (
    'the address must be that of the first node, and its port free: see --master-addr and '
    '--master-port of torchrun, or set PORT for tools/dist_train.sh'
)


class UserError(Exception):
    """A mistake in a command, a config or a file. The message is shown without a traceback."""


@contextlib.contextmanager
def as_user_error(*kinds: type[Exception]) -> Iterator[None]:
    """Turn exceptions of these types into a :class:`UserError` with the same message."""
    try:
        yield
    except kinds as error:
        raise UserError(str(error)) from error


def run(main: Callable[[], None], *expected: type[Exception]) -> NoReturn:
    """Run a tool and exit with status 0, with 2 after a user error, or with 130 after Ctrl-C.

    A user error is a :class:`UserError`, a file that cannot be opened, a component that cannot be
    built from the config, an op that needs a compiled mmcv, or a lack of memory, disk space or
    other resources. Other errors keep their traceback, and ``MMVMAMBA_TRACEBACK=1`` shows it for
    all. The process group ends with the tool.

    Args:
        main (Callable): The tool.
        *expected (type): Further exceptions that count as user errors.
    """
    code: int | str | None = 0
    try:
        with as_user_error(*expected), _named_components():
            main()
    except SystemExit as stop:
        code = stop.code
    except (KeyboardInterrupt, Exception) as error:
        # MMEngine reports an interrupted formatting of a config as an error in the config.
        if KeyboardInterrupt in (type(error), type(error.__context__)):
            sys.stderr.write('\ninterrupted\n')
            sys.exit(130)
        message = explain(error)
        if message is None or os.environ.get(_TRACEBACK_VARIABLE) == '1':
            sys.excepthook = _show_traceback
            raise
        sys.unraisablehook = _mute_half_built
        sys.stderr.write(
            f'{os.path.basename(sys.argv[0])}: error: {redacted(message)}\n'
            f'({_TRACEBACK_VARIABLE}=1 shows where it was raised)\n'
        )
        sys.exit(2)
    _end_process_group()
    sys.exit(code)


def _mute_half_built(unraisable: Any) -> None:
    """Ignore the AttributeError of half-built data loaders, which fail again when freed."""
    if not isinstance(unraisable.exc_value, AttributeError):
        sys.__unraisablehook__(unraisable)


def _show_traceback(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    """Print a traceback as Python does, without the secrets in URLs."""
    sys.stderr.write(redacted(''.join(format_exception(kind, error, traceback))))


def explain(error: BaseException) -> str | None:
    """Return the message of a user error or of a lack of resources, or None for any other error."""
    text = str(error).strip()
    if isinstance(error, UserError | MemoryError | OSError) and text.startswith('Caught '):
        # The message of an error from a data-loading process is the whole traceback.
        kind = type(error)
        module = '' if kind.__module__ == 'builtins' else f'{kind.__module__}.'
        text = text.rpartition(f'\n{module}{kind.__name__}: ')[2]
    if isinstance(error, (UserError, MissingOpError, *_FILE_ERRORS)):
        return text
    remedy = _remedy(error)
    return f'{text.splitlines()[0] if text else "out of memory"}; {remedy}' if remedy else None


def _remedy(error: BaseException) -> str | None:
    """Return what helps against a lack of resources, or None for any other error."""
    text = str(error)
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return _LESS_MEMORY
    if isinstance(error, dist.DistNetworkError | dist.DistStoreError):
        return _NETWORK_HINT
    if isinstance(error, OSError):  # one of a data-loading process has lost its number
        return next((hint for n, hint in _MACHINE_ERRORS.items() if f'[Errno {n}]' in text), None)
    if not isinstance(error, RuntimeError):
        return None
    if any(words in text for words in _NO_MEMORY):
        return _LESS_MEMORY
    # The signal that ended a worker may be only in the error that a handler of SIGCHLD raised.
    words = f'{text} {error.__context__}' if text.startswith('DataLoader worker') else ''
    return next((hint for sign, hint in _WORKER_ERRORS.items() if sign in words), None)


@contextlib.contextmanager
def named_build(name: str) -> Iterator[None]:
    """Turn build errors of parts without a registry into a UserError that names the part.

    Errors that this package raises itself stay as they are, since they are its own bugs.
    """
    try:
        yield
    except _BUILD_ERRORS as error:
        if _is_raised_here(error):
            raise
        raise _build_error(name, error) from error


def _is_raised_here(error: Exception) -> bool:
    """Return True if the innermost frame of a traceback is in this package."""
    *_, (frame, _) = walk_tb(error.__traceback__)
    return frame.f_globals.get('__name__', '').startswith('mmvmamba.')


def _build_error(name: str, error: Exception) -> UserError:
    reason = error.args[0] if isinstance(error, KeyError) and error.args else error
    return UserError(f'{name} cannot be built: {str(reason) or type(error).__name__}')


@contextlib.contextmanager
def _named_components() -> Iterator[None]:
    """Name the innermost component that MMEngine's registries cannot build from the config."""
    build = Registry.build

    def build_or_name(registry: Registry, cfg: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return build(registry, cfg, *args, **kwargs)
        except _BUILD_ERRORS as error:
            kind = cfg.get('type') if isinstance(cfg, Mapping) else None
            raise _build_error(getattr(kind, '__name__', kind) or registry.name, error) from error

    Registry.build = build_or_name
    try:
        yield
    finally:
        Registry.build = build


def _end_process_group() -> None:
    """End the threads of gloo before the interpreter shuts down.

    Otherwise a thread that still frees the tensors of its last collective may abort the process.
    torchrun then reports a failure, and its agents on other nodes wait for minutes. The threads end
    with the last owner of the group, such as the wrapper of the model.
    """
    if dist.is_available() and dist.is_initialized():
        # A garbage-collected data loader waits 5 seconds for each worker, as its queues are gone.
        for worker in multiprocessing.active_children():
            worker.terminate()
        gc.collect()
        dist.destroy_process_group()
