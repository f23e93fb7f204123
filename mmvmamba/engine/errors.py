"""A user's mistake in one line, anything else with its traceback."""

from __future__ import annotations

import gc
import linecache
import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

import torch.distributed as dist

import mmvmamba

_PACKAGE_DIR = os.path.dirname(os.path.abspath(mmvmamba.__file__)) + os.sep
_TRACEBACK_VARIABLE = 'MMVMAMBA_TRACEBACK'
_MISSING_FILE = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)
_REFUSED = (ValueError, TypeError, KeyError, AssertionError)
#: So many calls below the registry a constructor still looks at what the config gave it.
_CONSTRUCTOR_DEPTH = 2


class UserError(Exception):
    """A mistake in a command, a config or a file, told in a sentence that names it."""


def explain(error: BaseException) -> str | None:
    """Returns what a user has to know about an error, or None if it is not a user's mistake.

    A mistake is a :class:`UserError`, a path that does not exist, a ValueError or TypeError that
    this package raises on purpose, and what a component's constructor says about its config.

    Args:
        error (BaseException): What was raised.
    """
    if isinstance(error, UserError):
        return _last_line(error)
    frames = list(traceback.walk_tb(error.__traceback__))
    component = _component_being_built(frames)
    if isinstance(error, _MISSING_FILE):
        return _last_line(error)
    if not isinstance(error, _REFUSED) or not frames:
        return None
    if _raised_here(frames) and isinstance(error, ValueError | TypeError):
        return f'{component} cannot be built: {error}' if component else str(error)
    depth = len(frames) - _index_of_build(frames) - 1
    if component is not None and depth <= _CONSTRUCTOR_DEPTH:
        reason = error.args[0] if isinstance(error, KeyError) and error.args else error
        return f'{component} cannot be built from the config: {reason}'
    return None


def run(main: Callable[[], None]) -> NoReturn:
    """Calls a tool's main function and exits: 0, or 2 after a user's mistake.

    Other errors go through, with their traceback; so do all with ``MMVMAMBA_TRACEBACK=1``. A
    process group that the tool started is ended with it.

    Args:
        main (Callable): The tool.
    """
    code: int | str | None = 0
    try:
        main()
    except SystemExit as stop:
        code = stop.code
    except KeyboardInterrupt:
        _exit_interrupted()
    except Exception as error:
        # MMEngine takes whatever stops the formatting of a config for a fault in it.
        if isinstance(error.__context__, KeyboardInterrupt):
            _exit_interrupted()
        message = explain(error)
        if message is None or os.environ.get(_TRACEBACK_VARIABLE) == '1':
            raise
        sys.stderr.write(
            f'{os.path.basename(sys.argv[0])}: error: {message}\n'
            f'({_TRACEBACK_VARIABLE}=1 shows where it was raised)\n'
        )
        sys.exit(2)
    _end_process_group()
    sys.exit(code)


def _exit_interrupted() -> NoReturn:
    sys.stderr.write('\ninterrupted\n')
    sys.exit(130)


def _end_process_group() -> None:
    """Waits for the threads of gloo.

    A thread that still frees the tensors of its last collective when the interpreter shuts down
    aborts the process. torchrun takes that for a failure, and on several nodes its other agents
    then wait for minutes. The threads end with the group's last owner: the model's wrapper is one.
    """
    if dist.is_available() and dist.is_initialized():
        # A data loader that is collected has lost its queues, and waits 5 seconds for each worker.
        for worker in multiprocessing.active_children():
            worker.terminate()
        gc.collect()
        dist.destroy_process_group()


def _last_line(error: BaseException) -> str:
    """A data-loading process hands its whole traceback over as the message."""
    text = str(error).strip()
    if not text.startswith('Caught '):
        return text
    return text.splitlines()[-1].removeprefix(f'{type(error).__module__}.{type(error).__name__}: ')


def _raised_here(frames: list[tuple[FrameType, int]]) -> bool:
    frame, line = frames[-1]
    name = frame.f_code.co_filename
    return name.startswith(_PACKAGE_DIR) and linecache.getline(name, line).strip().startswith(
        'raise'
    )


def _builds(frames: list[tuple[FrameType, int]]) -> Iterator[int]:
    for i, (frame, _) in enumerate(frames):
        if frame.f_code.co_name == 'build_from_cfg' and 'mmengine' in frame.f_code.co_filename:
            yield i


def _index_of_build(frames: list[tuple[FrameType, int]]) -> int:
    return max(_builds(frames), default=-1)


def _component_being_built(frames: list[tuple[FrameType, int]]) -> str | None:
    """The ``type`` of the innermost component that MMEngine's registry was building."""
    index = _index_of_build(frames)
    if index < 0:
        return None
    local = frames[index][0].f_locals
    cfg = local.get('cfg')
    kind = local.get('obj_type') or (cfg.get('type') if isinstance(cfg, dict) else None)
    return getattr(kind, '__name__', None) or str(kind)
