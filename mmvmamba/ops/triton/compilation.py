"""Parallel compilation of Triton kernels into the cache on disk."""

import concurrent.futures
import multiprocessing
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton.backends.compiler import GPUTarget

from ...environment import available_cores
from .launch import KERNELS, Launch

#: Each process takes about 0.5 GiB of memory.
MAX_PROCESSES = 16


class _Request(NamedTuple):
    """Compile-time part of a launch, without tensors, which another process can read."""

    kernel: str
    args: tuple[tuple[str, torch.dtype | int], ...]
    constants: tuple[tuple[str, Any], ...]
    num_warps: int


def compile_kernels(
    launches: Iterable[Launch], target: GPUTarget, processes: int | None = None
) -> Iterator[tuple[str, str | None]]:
    """Compile the kernels of launches in parallel, each once.

    Closing the generator cancels the rest. The processes are spawned, so the main module must be
    importable and guard what it runs.

    Args:
        launches (Iterable[Launch]): The launches.
        target (GPUTarget): The GPU.
        processes (int, optional): How many compile at a time. Defaults to None, one for each CPU
            core up to :data:`MAX_PROCESSES`.

    Yields:
        tuple[str, str | None]: The name of a kernel and its error, or None if it compiled.
    """
    requests = dict.fromkeys(map(_request, launches))
    if not requests:
        return
    processes = processes or min(available_cores() or 1, MAX_PROCESSES)
    # A forked process cannot use CUDA or OpenMP after its parent has.
    context = multiprocessing.get_context('spawn')
    pool = concurrent.futures.ProcessPoolExecutor(min(processes, len(requests)), context)
    try:
        names = {pool.submit(_compile, r, target): r.kernel for r in requests}
        for future in concurrent.futures.as_completed(names):
            error = future.exception()
            yield names[future], None if error is None else f'{type(error).__name__}: {error}'
    finally:  # also when the caller stops early
        pool.shutdown(cancel_futures=True)


def _request(launch: Launch) -> _Request:
    # Integers are not specialized: only whether they fit into 32 bits matters.
    args = (
        (name, value.dtype if isinstance(value, Tensor) else max(value, 2**31 - 1))
        for name, value in launch.args.items()
    )
    return _Request(
        launch.kernel.__name__, tuple(args), tuple(launch.constants.items()), launch.num_warps
    )


def _compile(request: _Request, target: GPUTarget) -> None:
    args = {
        name: value if isinstance(value, int) else torch.empty(0, dtype=value, device='meta')
        for name, value in request.args
    }
    launch = Launch(
        kernel=KERNELS[request.kernel],
        grid=(1,),
        args=args,
        constants=dict(request.constants),
        num_warps=request.num_warps,
        elements=0,
        trips=0,
    )
    launch.compile(target)
