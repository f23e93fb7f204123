"""Compilation of the Triton kernels of a step, in parallel, before its other items run."""

import contextlib
import functools
import time
from collections.abc import Callable, Iterable

import torch

from gpu_steps.backends import require
from gpu_steps.context import Context, Item, Row, first_line, logger

NAME = 'Triton kernels'


def compile_first(context: Context, calls: Callable[[], Iterable[Callable]]) -> Item:
    """Return the item that compiles what a step's calls of the Triton backend launch.

    One after the other, at several seconds each, the kernels would take most of the run.

    Args:
        context (Context): The run.
        calls (Callable): Returns the calls, forward and backward.
    """
    return NAME, functools.partial(compile_calls, context, calls)


def compile_calls(context: Context, calls: Callable[[], Iterable[Callable]]) -> list[Row]:
    """Record the launches of calls, and compile their kernels.

    A call or a kernel that fails does so again in an item of its own, which then fails.
    """
    require(context, 'triton')
    from mmvmamba.ops.triton.compilation import compile_kernels
    from mmvmamba.ops.triton.launch import device_target, recording

    with recording() as launches:
        for call in calls():
            try:
                call()
            except Exception as error:  # what fails depends on the call
                logger.info('not recorded: %s', first_line(error))
    # What is not compiled in time is compiled by the items, and with few cores that takes as long.
    deadline = time.monotonic() + 0.8 * context.step.item_seconds
    compiled, errors = 0, 0
    results = compile_kernels(launches, device_target(torch.device(context.device)))
    with contextlib.closing(results):
        for name, error in results:
            if error is not None:
                logger.info('not compiled: %s: %s', name, error)
            compiled, errors = compiled + (error is None), errors + (error is not None)
            if time.monotonic() > deadline:
                break
    return [dict(kernels=compiled, not_compiled=errors)]
