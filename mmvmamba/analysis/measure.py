"""Time and memory of calls in a fair comparison.

Requires only torch.

- Time: all candidates of a comparison run in one process and in turn (A B C, A B C, ...), so that
  a slow phase of the machine affects all of them. The result is the median, and the spread the
  interquartile range over the median.
- Memory: the peak that PyTorch's allocator of the device had handed out during a call, above what
  it had handed out before it. Inputs and weights are left out; results, saved tensors, gradients
  and the temporaries of native kernels count. The scratch space of oneDNN and MKL does not.
"""

import argparse
import gc
import itertools
import logging
import math
import re
import statistics
import timeit
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

logger = logging.getLogger(__name__)

Call = Callable[[], Any]
Track = Callable[[Sequence], Iterable]
Row = dict[str, Any]

MIB = 2**20
#: A sample repeats a short call until it has taken this long (seconds).
MIN_SAMPLE = 0.01
MAX_ROUNDS = 100


def parse_size(text: str) -> tuple[int, int]:
    """Parse '224' as (224, 224) and '800x1333' as (800, 1333), height first."""
    match = re.fullmatch(r'([1-9]\d*)(?:x([1-9]\d*))?', text)
    if match is None:
        raise argparse.ArgumentTypeError(
            f'a size must be written as 224 or 800x1333, but got {text!r}'
        )
    return int(match[1]), int(match[2] or match[1])


def size_text(height: int, width: int) -> str:
    """Return the text that :func:`parse_size` reads."""
    return str(height) if height == width else f'{height}x{width}'


def interleave(
    calls: Mapping[Any, Call],
    device: torch.device,
    seconds: float,
    min_rounds: int = 5,
    track: Track = iter,
) -> dict[Any, list[float]]:
    """Time calls in turn: A B C, A B C, ...

    Args:
        calls (Mapping[Hashable, Callable]): The candidates by name.
        device (torch.device): The device that the calls run on.
        seconds (float): Rough duration of all rounds together.
        min_rounds (int): The minimum number of rounds, regardless of their duration. Defaults to 5.
        track (Callable): Yields the items of a sequence and shows progress. It gets the calls, each
            of which is tried, then the rounds. Defaults to ``iter``, which shows nothing.

    Returns:
        dict[Hashable, list[float]]: The seconds in each round, by name. Calls that run out of
        memory are omitted.
    """
    estimates = _warm_up(calls, device, track)
    if not estimates:
        return {}
    repeats = {name: max(1, math.ceil(MIN_SAMPLE / max(t, 1e-6))) for name, t in estimates.items()}
    round_time = sum(repeats[name] * t for name, t in estimates.items())
    rounds = max(min_rounds, min(MAX_ROUNDS, int(seconds / round_time)))
    logger.info('  %d rounds of about %.2f s', rounds, round_time)
    times: dict[Any, list[float]] = {name: [] for name in estimates}
    for _ in track(range(rounds)):
        for name in estimates:
            times[name].append(_sample(calls[name], repeats[name], device))
    return times


def _warm_up(calls: Mapping[Any, Call], device: torch.device, track: Track) -> dict[Any, float]:
    """Return the seconds of the second run of each call, without those that run out of memory."""
    estimates = {}
    for name, call in track(list(calls.items())):
        try:
            _sample(call, 1, device)
            estimates[name] = _sample(call, 1, device)
        except RuntimeError as error:
            # OutOfMemoryError of torch; the native ops raise RuntimeError with the same words.
            if 'out of memory' not in str(error).lower():
                raise
            logger.warning('  %s skipped: not enough GPU memory', name)
            torch.cuda.empty_cache()
    return estimates


def _sample(call: Call, repeats: int, device: torch.device) -> float:
    """Return the seconds of one call, from ``repeats`` calls in a row."""
    if device.type != 'cuda':
        return timeit.timeit(call, number=repeats) / repeats
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    stream = torch.cuda.current_stream(device)
    start.record(stream)
    timeit.timeit(call, number=repeats)
    end.record(stream)
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / repeats


def summarize(times: Sequence[float]) -> Row:
    """Return the median, minimum and spread (interquartile range over median) of seconds."""
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
    sizes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(itertools.accumulate(sizes, initial=0))


def model_bytes(model: torch.nn.Module) -> int:
    """Return the bytes of a model's parameters and buffers."""
    return sum(v.nbytes for v in (*model.parameters(), *model.buffers()))


def make_call(
    model: torch.nn.Module, images: torch.Tensor, *, train: bool, amp: bool, run: str = 'eager'
) -> Call:
    """Return an inference or training step of a model as a function without arguments.

    Args:
        model (nn.Module): The model.
        images (Tensor): Its input.
        train (bool): Whether to run a forward and backward pass instead of a forward pass without
            gradients.
        amp (bool): Autocast, to float16 on a GPU and to bfloat16 on a CPU, or float32.
        run (str): 'eager', 'compiled' by ``torch.compile``, or 'frozen', which is compiled with the
            weights as constants and takes their gradients away. Defaults to 'eager'.

    Raises:
        ValueError: If ``train`` is True and ``run`` is 'frozen'.
    """
    if train and run == 'frozen':
        raise ValueError("run must be 'eager' or 'compiled' for training, but got 'frozen'")
    forward: Any = model
    if run == 'frozen':
        model.requires_grad_(False)
        forward = torch.compile(model, dynamic=False, options={'freezing': True})
    elif run == 'compiled':
        forward = torch.compile(model, dynamic=False)
    autocast = torch.autocast(images.device.type, enabled=amp)
    gradients: list[torch.Tensor] = []

    def infer() -> Any:
        with torch.no_grad(), autocast:
            return forward(images)

    def train_step() -> None:
        try:
            with autocast:
                leaves = tree_leaves(forward(images))
            outputs = [v for v in leaves if isinstance(v, torch.Tensor) and v.requires_grad]
            # Random gradients: those of a plain sum vanish behind a LayerNorm, and a GPU multiplies
            # zeros faster. Drawn once, so that they cost no time.
            if not gradients:
                gradients.extend(torch.randn_like(output) / 64 for output in outputs)
            torch.autograd.backward(outputs, gradients)
        finally:  # a step that runs out of memory must release it
            model.zero_grad()

    return train_step if train else infer


def allow_recompilation() -> None:
    """Raise the limit of torch.compile on variants of the same code.

    Each block of a model that breaks the graph is such a variant. With the default limit, later
    blocks would silently run in eager mode.
    """
    torch._dynamo.reset()
    torch._dynamo.config.recompile_limit = 256
