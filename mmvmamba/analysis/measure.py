"""Time and memory of calls, compared fairly, and the machine that they ran on.

Needs torch alone.

- Time: all candidates of a comparison run in one process and in turn (A B C, A B C, ...), so that
  a slow phase of the machine falls on all of them. What is reported is the median, and as spread
  the interquartile range over the median.
- Memory: the largest amount that PyTorch's allocator of the device had handed out during a call,
  above what it had handed out before it. Inputs and weights are therefore left out; results, saved
  tensors, gradients and the temporaries of native kernels count. On a GPU that is the allocator's
  own peak, on a CPU it is summed from the profiler's record of each allocation, which covers the
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
#: Distributions whose versions a result depends on, where they are installed.
PACKAGES = ('triton', 'mamba-ssm') + tuple(
    f'{prefix}{name}'
    for prefix in ('', 'onedl-')
    for name in ('mmengine', 'mmcv', 'mmdet', 'mmdetection', 'mmpretrain')
)


def parse_size(text: str) -> tuple[int, int]:
    """'224' -> (224, 224); '800x1333' -> (800, 1333), height first."""
    match = re.fullmatch(r'(\d+)(?:x(\d+))?', text)
    if match is None or '0' in (match[1], match[2]):
        raise argparse.ArgumentTypeError(f'a size is written 224 or 800x1333, but got {text!r}')
    return int(match[1]), int(match[2] or match[1])


def size_text(height: int, width: int) -> str:
    """The inverse of :func:`parse_size`."""
    return str(height) if height == width else f'{height}x{width}'


# ---- time ----------------------------------------------------------------------------------------


def _sample(call: Call, repeats: int, device: torch.device) -> float:
    """Seconds for one call, from ``repeats`` calls in a row."""
    if device.type == 'cuda':
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        stream = torch.cuda.current_stream(device)
        start.record(stream)
        for _ in range(repeats):
            call()
        end.record(stream)
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / repeats
    begin = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - begin) / repeats


def warm_up(
    calls: Mapping[str, Call], device: torch.device, track: Track = iter
) -> dict[str, float]:
    """The second time (seconds) of each call; one that finds no memory is left out."""
    estimates = {}
    for name, call in track(list(calls.items())):
        try:
            _sample(call, 1, device)
            estimates[name] = _sample(call, 1, device)
        except torch.cuda.OutOfMemoryError:
            logger.warning('  %s left out: the memory of the GPU is too small', name)
            torch.cuda.empty_cache()
    return estimates


def interleave(
    calls: Mapping[str, Call],
    device: torch.device,
    seconds: float,
    min_rounds: int = 5,
    max_rounds: int = 100,
    track: Track = iter,
) -> dict[str, list[float]]:
    """Times calls in turn: A B C, A B C, ...

    Args:
        calls (Mapping[str, Callable]): What is compared.
        device (torch.device): Where the calls compute.
        seconds (float): About how long all rounds take together.
        min_rounds (int): The least rounds, however long they take. Defaults to 5.
        max_rounds (int): The most rounds. Defaults to 100.
        track (Callable): Yields what it is given and shows how much of it is done: the calls,
            each of which is tried, then the rounds. Defaults to ``iter``, which shows nothing.

    Returns:
        dict[str, list[float]]: For each call that finds memory its seconds in each round.
    """
    estimates = warm_up(calls, device, track)
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


def summarise(times: Sequence[float]) -> Row:
    """Median and least time (ms) of samples in seconds, and their relative spread.

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


# ---- memory --------------------------------------------------------------------------------------


def extra_memory(call: Call, device: torch.device) -> int:
    """The most bytes in use during a call above those in use before it, see above.

    The call must have run before, so that what is allocated once is not counted.
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
    """Bytes that can still be allocated, or None where the system does not say."""
    if device.type == 'cuda':
        return torch.cuda.mem_get_info(device)[0]
    info = Path('/proc/meminfo')
    text = info.read_text() if info.exists() else ''
    match = re.search(r'^MemAvailable:\s*(\d+) kB$', text, re.MULTILINE)
    return int(match[1]) * 1024 if match else None


def model_bytes(model: torch.nn.Module) -> int:
    """Bytes of a model's parameters and buffers."""
    tensors = [*model.parameters(), *model.buffers()]
    return sum(v.numel() * v.element_size() for v in tensors)


# ---- models -------------------------------------------------------------------------------------


def _tensors(outputs: torch.Tensor | Sequence | Mapping) -> list[torch.Tensor]:
    if isinstance(outputs, torch.Tensor):
        return [outputs]
    if isinstance(outputs, Mapping):
        outputs = list(outputs.values())
    if not isinstance(outputs, Sequence) or isinstance(outputs, str):
        raise TypeError(
            'a model that is trained must give a tensor, or a sequence or mapping of tensors, but '
            f'gave {type(outputs).__name__}'
        )
    return [tensor for output in outputs for tensor in _tensors(output)]


def _autocast(precision: str, device: torch.device) -> Callable:
    if precision == 'fp32':
        return contextlib.nullcontext
    dtype = torch.float16 if device.type == 'cuda' else torch.bfloat16
    return lambda: torch.autocast(device.type, dtype)


def make_call(
    model: torch.nn.Module, images: torch.Tensor, train: bool, precision: str, run: str
) -> Call:
    """One inference or training step of a model as a function without arguments."""
    forward = torch.compile(model, dynamic=False) if run == 'compiled' else model
    autocast = _autocast(precision, images.device)

    def infer():
        with torch.no_grad(), autocast():
            return forward(images)

    gradients: list[torch.Tensor] = []

    def train_step():
        try:
            with autocast():
                outputs = [v for v in _tensors(forward(images)) if v.requires_grad]
            # Random gradients: those of a plain sum vanish behind a LayerNorm, and a GPU multiplies
            # zeros faster. Drawn once, so that they cost no time.
            if not gradients:
                gradients.extend(torch.randn_like(output) / 64 for output in outputs)
            torch.autograd.backward(outputs, gradients)
        finally:  # a step that finds no memory leaves none of it in use
            for parameter in model.parameters():
                parameter.grad = None

    return train_step if train else infer


def allow_recompilation() -> None:
    """Each block of a model that breaks the graph is a variant of the same code to torch.compile.

    The default limit would leave the later blocks of such a model in eager mode without a word.
    """
    torch._dynamo.reset()
    config = torch._dynamo.config
    limit = 'recompile_limit' if hasattr(config, 'recompile_limit') else 'cache_size_limit'
    setattr(config, limit, 256)


# ---- the machine -------------------------------------------------------------------------------


def _cpu_name() -> str:
    info = Path('/proc/cpuinfo')
    if info.exists():
        match = re.search(r'^model name\s*:\s*(.+)$', info.read_text(), re.MULTILINE)
        if match:
            return match[1].strip()
    return platform.processor() or platform.machine()


def describe_machine(device: torch.device) -> Row:
    """The processor or GPU that the figures belong to."""
    affinity = getattr(os, 'sched_getaffinity', None)
    machine = dict(
        cpu=_cpu_name(),
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
    """The versions that the figures belong to."""
    versions = dict(
        python=platform.python_version(), torch=torch.__version__, mmvmamba=mmvmamba.__version__
    )
    if torch.version.cuda:
        versions['cuda'] = torch.version.cuda
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def describe_run(device: torch.device) -> Row:
    """Date, device, machine and versions: what every file of results has at its head."""
    return dict(
        date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='minutes'),
        device=device.type,
        machine=describe_machine(device),
        versions=describe_versions(),
    )
