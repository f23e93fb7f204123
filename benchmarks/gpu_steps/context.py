"""Step items and crash-safe result files. Requires only the standard library."""

import contextlib
import dataclasses
import faulthandler
import json
import logging
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).resolve().parents[1]
ROOT = BENCHMARKS.parent
#: Exit status of a process that must be restarted because CUDA failed.
RESTART = 75
#: The item that compiles the Triton kernels of a step in advance.
KERNELS = 'Triton kernels'
NEEDS_CUDA = 'needs CUDA (DEVICE=cpu)'

logger = logging.getLogger('gpu_steps')

Row = dict[str, Any]
Item = tuple[str, Callable[[], list[Row]]]


class Skip(Exception):
    """Raised by an item that cannot run here, with the reason."""


@dataclasses.dataclass(frozen=True)
class Step:
    """A step.

    Args:
        title (str): Its name in the tables.
        module (str): The module of this package with its ``items(context)``: names, and functions
            that return rows. A module with ``run(context)`` runs the whole step instead.
        limit (int): Time limit for starting items, in seconds.
        item_seconds (int): Time limit of an item, in seconds.
        may_skip (bool): Whether a GPU run may skip all items. Defaults to False.
        stop_at_failure (bool): Whether an item that fails ends the step. Defaults to False.
        threads (int, optional): CPU threads. Defaults to None, PyTorch's choice.
        files (tuple[str, ...]): Patterns of files, beside the package and the step's module, that
            its results depend on. Defaults to none.
    """

    title: str
    module: str
    limit: int
    item_seconds: int
    may_skip: bool = False
    stop_at_failure: bool = False
    threads: int | None = None
    files: tuple[str, ...] = ()


class Context:
    """Run settings and result file of a step.

    Args:
        number (int): The number of the step.
        step (Step): The step.
        out (Path): The folder of the run.
        device (str): 'cuda' or 'cpu'.
        seconds (float): Time limit for starting items, in seconds.
    """

    def __init__(self, number: int, step: Step, out: Path, device: str, seconds: float):
        self.number, self.step, self.out, self.device = number, step, out, device
        self.deadline = time.monotonic() + seconds
        self.done: set[str] = set()
        self.interrupted: set[str] = set()
        self.retry: set[str] = set()
        with contextlib.suppress(FileNotFoundError):
            results = json.loads((out / 'results.json').read_text(encoding='utf-8'))
            record = results['steps'][str(number)]
            # The kernels are compiled again: this may be another machine.
            self.done, self.retry = set(record['done']) - {KERNELS}, set(record['retry'])
            self.interrupted = set(record['interrupted'])

    @property
    def cuda(self) -> bool:
        """True on a GPU."""
        return self.device == 'cuda'

    @property
    def time_is_up(self) -> bool:
        """True once the time limit has passed."""
        return time.monotonic() > self.deadline

    def order(self, names: Iterable[str]) -> list[str]:
        """Select the items that have not run, those that were interrupted, then the retries."""
        names = list(names)
        left = [name for name in names if name not in self.done]
        left.sort(key=lambda name: name in self.interrupted)  # stable
        return left + [name for name in names if name in self.done & self.retry]

    def write(self, **event: Any) -> None:
        """Append an event to the result file so that it survives a crash of this process."""
        with open(self.out / f'step{self.number}.jsonl', 'a', encoding='utf-8') as file:
            file.write(json.dumps(event) + '\n')
            file.flush()
            os.fsync(file.fileno())

    def device_error(self) -> str | None:
        """Wait for the GPU and return the error of a kernel that failed, if any."""
        if not self.cuda or 'torch' not in sys.modules:
            return None
        try:
            sys.modules['torch'].cuda.synchronize()
        except Exception as error:  # its type depends on the version of PyTorch
            return first_line(error)
        return None


def with_package(folder: Path) -> dict[str, str]:
    """Return an environment in which Python finds a folder's package first."""
    paths = [str(folder), *filter(None, [os.environ.get('PYTHONPATH')])]
    return os.environ | dict(PYTHONPATH=os.pathsep.join(paths))


def run_apart(
    command: Sequence[str], seconds: float | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command in benchmarks/ as a process of its own, and return all its output.

    Raises:
        subprocess.TimeoutExpired: If it takes longer than ``seconds``.
    """
    return subprocess.run(
        command, cwd=BENCHMARKS, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors='replace', timeout=seconds, check=False,
    )  # fmt: skip


def first_line(error: BaseException) -> str:
    """Describe an error in one line."""
    return f'{type(error).__name__}: {error}'.strip().splitlines()[0]


def run_item(context: Context, name: str, function: Callable[[], list[Row]]) -> tuple[bool, bool]:
    """Run an item and write its rows.

    Returns:
        tuple[bool, bool]: Whether the item failed, and whether this process lost CUDA.
    """
    context.write(begin=name, time=time.time())
    try:
        rows = function()
    except Skip as reason:
        rows = [dict(status='skipped', reason=str(reason))]
    except Exception as error:  # an item may fail in any way without stopping the others
        traceback.print_exc()
        rows = [dict(status='failed', reason=first_line(error))]
    # Kernels run asynchronously: an illegal access may not have been reported yet.
    lost = context.device_error()
    if lost and all(row.get('status') != 'failed' for row in rows):
        rows = [dict(status='failed', reason=lost)]
    for row in rows:
        context.write(row=dict(item=name, status='passed') | row)
    context.write(end=name)
    return any(row.get('status') == 'failed' for row in rows), lost is not None


def run_items(context: Context, items: Iterable[Item]) -> int:
    """Run the items of a step that are left while there is time.

    Returns:
        int: The exit status.
    """
    functions = dict(items)
    context.write(plan=list(functions))
    for name in context.order(functions):
        if context.time_is_up:
            break
        logger.info('%s', name)
        # An item that hangs in a kernel cannot be interrupted from Python.
        faulthandler.dump_traceback_later(context.step.item_seconds, exit=True)
        failed, lost = run_item(context, name, functions[name])
        faulthandler.cancel_dump_traceback_later()
        if failed and context.step.stop_at_failure:
            break
        if lost:
            return RESTART
    return 0


def skip(reason: str) -> list[Row]:
    """Skip the current item."""
    raise Skip(reason)
