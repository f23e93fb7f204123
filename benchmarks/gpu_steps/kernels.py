"""Compilation of the Triton kernels of a step, in parallel, before its other items run."""

import contextlib
import functools
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch

from gpu_steps.backends import require
from gpu_steps.context import KERNELS, Context, Item, Row, first_line, logger

#: Returns calls on a device.
Calls = Callable[[torch.device], Iterable[Callable]]


def compile_first(context: Context, calls: Calls) -> Item:
    """Return the item that compiles the Triton kernels of a step in advance.

    Compiled one at a time, at several seconds each, they would take most of the run.

    Args:
        context (Context): The run.
        calls (Callable): Returns the calls, forward and backward.
    """
    return KERNELS, functools.partial(compile_calls, context, calls)


def compile_calls(context: Context, calls: Calls) -> list[Row]:
    """Record the launches of calls, and compile their kernels for half of an item's time.

    A call or a kernel that fails here is ignored; it fails again in its own item. Items compile the
    kernels that miss the deadline.
    """
    require(context, 'triton')
    from mmvmamba.ops.triton.compilation import compile_kernels
    from mmvmamba.ops.triton.launch import device_target, recording

    deadline = time.monotonic() + 0.5 * context.step.item_seconds
    device = torch.device(context.device)
    with recording() as launches:
        ignore_errors(lambda: [ignore_errors(call) for call in calls(device)])
    row: dict[str, Any] = dict(kernels=0, failed=0, complete=True)
    results = compile_kernels(launches, device_target(device))
    with contextlib.closing(results):
        for name, error in results:
            if error is not None:
                logger.info('not compiled: %s: %s', name, error)
            row['kernels' if error is None else 'failed'] += 1
            if time.monotonic() > deadline:
                row['complete'] = False
                break
    return [row]


def ignore_errors(call: Callable) -> None:
    """Run a call and log its error, if any."""
    try:
        call()
    except Exception as error:  # what fails depends on the call
        logger.info('not recorded: %s', first_line(error))
