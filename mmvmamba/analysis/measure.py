"""Time and memory of calls in a fair comparison, and the machine that they ran on.

Needs torch alone.

- Time: all candidates of a comparison run in one process and in turn (A B C, A B C, ...), so that
  a slow phase of the machine affects all of them. The result is the median, and the spread the
  interquartile range over the median.
- Memory: the largest amount that PyTorch's allocator of the device had handed out during a call,
  above what it had handed out before it. Inputs and weights are therefore left out; results, saved
  tensors, gradients and the temporaries of native kernels count. On a GPU that is the allocator's
  own peak. On a CPU it is summed from the profiler's record of each allocation, which covers the
  same things; scratch space that oneDNN or MKL allocate by themselves is in neither.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import gc
import importlib.metadata
import logging
import math
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import mmvmamba

logger = logging.getLogger(__name__)

Call = Callable[[], Any]
Track = Callable[[Sequence], Iterable]
Row = dict[str, Any]

MIB = 2**20
#: A sample repeats a short call until it has taken this long (seconds).
MIN_SAMPLE = 0.01
#: Distributions whose versions affect a result.
PACKAGES = ('triton', 'mamba-ssm') + tuple(
    f'{prefix}{name}'
    for prefix in ('', 'onedl-')
    for name in ('mmengine', 'mmcv', 'mmdet', 'mmdetection', 'mmpretrain')
)


def parse_size(text: str) -> tuple[int, int]:
    """Parse '224' as (224, 224) and '800x1333' as (800, 1333), height first."""
    match = re.fullmatch(r'(\d+)(?:x(\d+))?', text)
    if match is None or '0' in (match[1], match[2]):
        raise argparse.ArgumentTypeError(f'a size must be 224 or 800x1333, but got {text!r}')
    return int(match[1]), int(match[2] or match[1])


def size_text(height: int, width: int) -> str:
    """Return the text that :func:`parse_size` reads."""
    return str(height) if height == width else f'{height}x{width}'


def interleave(
    calls: Mapping[str, Call],
    device: torch.device,
    seconds: float,
    min_rounds: int = 5,
    max_rounds: int = 100,
    track: Track = iter,
) -> dict[str, list[float]]:
    """Time calls in turn: A B C, A B C, ...

    Args:
        calls (Mapping[str, Callable]): The candidates.
        device (torch.device): The device that the calls run on.
        seconds (float): Rough duration of all rounds together.
        min_rounds (int): The least rounds, however long they take. Defaults to 5.
        max_rounds (int): The most rounds. Defaults to 100.
        track (Callable): Yields the items of a sequence and shows progress. It gets the calls, each
            of which is tried, then the rounds. Defaults to ``iter``, which shows nothing.

    Returns:
        dict[str, list[float]]: The seconds in each round, by call. A call that runs out of memory
        is left out.
    """
    estimates = _warm_up(calls, device, track)
    if not estimates:
        return {}
    repeats = {name: max(1, math.ceil(MIN_SAMPLE / max(t, 1e-6))) for name, t in estimates.items()}
    round_time = sum(repeats[name] * t for name, t in estimates.items())
    rounds = max(min_rounds, min(max_rounds, int(seconds / round_time)))
    logger.info('  %d rounds of about %.2f s', rounds, round_time)
    times: dict[str, list[float]] = {name: [] for name in estimates}
    for _ in track(range(rounds)):
        for name in estimates:
            times[name].append(_sample(calls[name], repeats[name], device))
    return times


def _warm_up(calls: Mapping[str, Call], device: torch.device, track: Track) -> dict[str, float]:
    """Return the seconds of the second run of each call, without those that run out of memory."""
    estimates = {}
    for name, call in track(list(calls.items())):
        try:
            _sample(call, 1, device)
            estimates[name] = _sample(call, 1, device)
        except torch.cuda.OutOfMemoryError:
            logger.warning('  %s left out: the memory of the GPU is too small', name)
            torch.cuda.empty_cache()
    return estimates


def _sample(call: Call, repeats: int, device: torch.device) -> float:
    """Return the seconds of one call, from ``repeats`` calls in a row."""
    if device.type == 'cuda':
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        stream = torch.cuda.current_stream(device)
        start.record(stream)
        for _ in range(repeats):
            call()
        end.record(stream)
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / repeats
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def summarise(times: Sequence[float]) -> Row:
    """Summarise samples in seconds.

    Returns:
        dict: ``median_ms``, ``min_ms``, ``spread`` (interquartile range over median) and
        ``rounds``.
    """
    median = statistics.median(times)
    low, _, high = statistics.quantiles(times, n=4, method='inclusive') if times[1:] else (0, 0, 0)
    return dict(
        median_ms=round(median * 1e3, 4),
        min_ms=round(min(times) * 1e3, 4),
        spread=round((high - low) / median, 4),
        rounds=len(times),
    )


def extra_memory(call: Call, device: torch.device) -> int:
    """Return the peak of the bytes in use during a call above those in use before it.

    The call must have run before, so that one-time allocations are not counted.
    """
    gc.collect()
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = call()
        torch.cuda.synchronize(device)
        del result
        return torch.cuda.max_memory_allocated(device) - before
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        result = call()
    del result
    events = [e for e in profile.kineto_results.events() if e.name() == '[memory]']
    in_use = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        in_use += event.nbytes()
        peak = max(peak, in_use)
    return peak


def available_memory(device: torch.device) -> int | None:
    """Return the bytes that can still be allocated, or None if the system does not say."""
    if device.type == 'cuda':
        return torch.cuda.mem_get_info(device)[0]
    kib = _proc_entry('meminfo', r'^MemAvailable:\s*(\d+) kB$')
    return int(kib) * 1024 if kib else None


def model_bytes(model: torch.nn.Module) -> int:
    """Return the bytes of a model's parameters and buffers."""
    return sum(v.nbytes for v in (*model.parameters(), *model.buffers()))


def make_call(
    model: torch.nn.Module, images: torch.Tensor, *, train: bool, amp: bool, compile: bool
) -> Call:
    """Return an inference or training step of a model as a function without arguments.

    Args:
        model (nn.Module): The model.
        images (Tensor): Its input.
        train (bool): Run forward and backward, or forward without gradients.
        amp (bool): Autocast, to float16 on a GPU and to bfloat16 on a CPU, or float32.
        compile (bool): ``torch.compile`` or eager mode.
    """
    forward = torch.compile(model, dynamic=False) if compile else model
    gradients: list[torch.Tensor] = []

    def autocast() -> contextlib.AbstractContextManager:
        dtype = torch.float16 if images.is_cuda else torch.bfloat16
        return torch.autocast(images.device.type, dtype, enabled=amp)

    def infer() -> Any:
        with torch.no_grad(), autocast():
            return forward(images)

    def train_step() -> None:
        try:
            with autocast():
                outputs = [v for v in _tensors(forward(images)) if v.requires_grad]
            # Random gradients: those of a plain sum vanish behind a LayerNorm, and a GPU multiplies
            # zeros faster. Drawn once, so that they cost no time.
            if not gradients:
                gradients.extend(torch.randn_like(output) / 64 for output in outputs)
            torch.autograd.backward(outputs, gradients)
        finally:  # a step that runs out of memory must release it
            for parameter in model.parameters():
                parameter.grad = None

    return train_step if train else infer


def _tensors(outputs: torch.Tensor | Sequence | Mapping) -> list[torch.Tensor]:
    if isinstance(outputs, torch.Tensor):
        return [outputs]
    if isinstance(outputs, Mapping):
        outputs = list(outputs.values())
    if not isinstance(outputs, Sequence) or isinstance(outputs, str):
        raise TypeError(
            'a model in training must return a tensor, or a sequence or mapping of tensors, but '
            f'got {type(outputs).__name__}'
        )
    return [tensor for output in outputs for tensor in _tensors(output)]


def allow_recompilation() -> None:
    """Raise the limit of torch.compile on variants of the same code.

    Each block of a model that breaks the graph is such a variant. With the default limit the later
    blocks would silently run in eager mode.
    """
    torch._dynamo.reset()
    torch._dynamo.config.recompile_limit = 256


def describe_run(device: torch.device) -> Row:
    """Return the header of a file of results: date, device, machine and versions."""
    return dict(
        date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='minutes'),
        device=device.type,
        machine=describe_machine(device),
        versions=describe_versions(),
    )


def describe_machine(device: torch.device) -> Row:
    """Return the processor and the GPU, if the device is one."""
    affinity = getattr(os, 'sched_getaffinity', None)
    cpu = _proc_entry('cpuinfo', r'^model name\s*:\s*(.+)$')
    machine = dict(
        cpu=cpu or platform.processor() or platform.machine(),
        cores=len(affinity(0)) if affinity else os.cpu_count(),
        threads=torch.get_num_threads(),
        cpu_capability=torch.backends.cpu.get_cpu_capability(),
        system=platform.system(),
    )
    if device.type == 'cuda':
        gpu = torch.cuda.get_device_properties(device)
        machine.update(gpu=gpu.name, gpu_memory_gib=round(gpu.total_memory / 2**30, 1))
    return machine


def describe_versions() -> dict[str, str]:
    """Return the versions of Python, torch, this package and the installed :data:`PACKAGES`."""
    versions = dict(
        python=platform.python_version(), torch=torch.__version__, mmvmamba=mmvmamba.__version__
    )
    if torch.version.cuda:
        versions['cuda'] = torch.version.cuda
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def _proc_entry(name: str, pattern: str) -> str | None:
    """Return the group of a pattern found in a file of /proc, or None, as outside Linux."""
    path = Path('/proc') / name
    match = re.search(pattern, path.read_text(), re.MULTILINE) if path.exists() else None
    return match[1].strip() if match else None
