"""What every step of ``gpu_check.sh`` is made of: items, and where their results go.

Needs Python alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import json
import logging
import os
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).resolve().parents[1]
ROOT = BENCHMARKS.parent
#: The exit status of a process after whose last item CUDA cannot be used any more.
RESTART = 75
NEEDS_CUDA = 'DEVICE=cpu: it needs CUDA'

logger = logging.getLogger('gpu_steps')

Row = dict[str, Any]
Item = tuple[str, Callable[[], list[Row]]]


class Skip(Exception):
    """Raised by an item that cannot run here, with the reason."""


@dataclasses.dataclass(frozen=True)
class Step:
    """A step.

    Args:
        title (str): What it is.
        module (str): The module of this package that has its ``items(context)``: names, and
            functions that return rows. A module with ``run(context)`` instead does all by itself.
        limit (int): No item is begun after so many seconds.
        item_seconds (int): No item takes longer.
        may_skip (bool): Whether all of it may be skipped on a GPU. Defaults to False.
    """

    title: str
    module: str
    limit: int
    item_seconds: int
    may_skip: bool = False


class Context:
    """What a step knows of its run, and where its results go.

    Args:
        number (int): The number of the step.
        step (Step): The step.
        out (Path): The folder of the run.
        device (str): 'cuda' or 'cpu'.
        seconds (float): No item is begun after so many seconds.
    """

    def __init__(self, number: int, step: Step, out: Path, device: str, seconds: float):
        self.number, self.step, self.out, self.device = number, step, out, device
        self.deadline = time.monotonic() + seconds
        self.done: set[str] = set()
        with contextlib.suppress(FileNotFoundError):
            results = json.loads((out / 'results.json').read_text(encoding='utf-8'))
            self.done = set(results['steps'][str(number)]['done'])

    @property
    def cuda(self) -> bool:
        """Whether the run is on a GPU."""
        return self.device == 'cuda'

    @property
    def time_is_up(self) -> bool:
        """Whether no further item should begin."""
        return time.monotonic() > self.deadline

    def write(self, **event: Any) -> None:
        """Writes an event so that it survives the end of this process at any moment."""
        with open(self.out / f'step{self.number}.jsonl', 'a', encoding='utf-8') as file:
            file.write(json.dumps(event) + '\n')
            file.flush()
            os.fsync(file.fileno())


def run_item(context: Context, name: str, function: Callable[[], list[Row]]) -> bool:
    """Runs an item and writes its rows.

    Returns:
        bool: Whether this process can go on.
    """
    context.write(begin=name, time=time.time())
    healthy = True
    try:
        rows = function()
    except Skip as reason:
        rows = [dict(status='skipped', reason=str(reason))]
    except Exception as error:  # an item may fail in any way without stopping the rest
        traceback.print_exc()
        reason = f'{type(error).__name__}: {error}'.strip().splitlines()[0]
        rows = [dict(status='failed', reason=reason)]
        healthy = 'CUDA error' not in str(error)
    for row in rows:
        context.write(row=dict(item=name, status='passed') | row)
    context.write(end=name)
    return healthy


def run_items(context: Context, items: Iterable[Item]) -> int:
    """Runs the items of a step that are not done, as long as there is time.

    Returns:
        int: The exit status.
    """
    items = list(items)
    context.write(plan=[name for name, _ in items])
    for name, function in items:
        if name in context.done:
            continue
        if context.time_is_up:
            break
        logger.info('%s', name)
        # An item that hangs in a kernel cannot be interrupted from Python.
        faulthandler.dump_traceback_later(context.step.item_seconds, exit=True)
        healthy = run_item(context, name, function)
        faulthandler.cancel_dump_traceback_later()
        if not healthy:
            return RESTART
    return 0


def skip(reason: str) -> list[Row]:
    """An item that cannot run here."""
    raise Skip(reason)


def fail(reason: str) -> list[Row]:
    """An item that failed before it could begin."""
    raise RuntimeError(f'{reason}, see log.txt')
