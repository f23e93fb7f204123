"""Step 2: compare outputs and gradients with float64, then repeat the run bitwise."""

import functools
import math
from collections.abc import Callable, Iterator

import op_inputs
import torch

from gpu_steps.backends import BACKENDS, require
from gpu_steps.context import Context, Item, Row
from gpu_steps.kernels import compile_first
from mmvmamba import ops
from mmvmamba.ops.selective_scan import scan_chunked

REPEATS = 10
#: The largest error allowed of a tensor: the norm of the difference over that of the float64
#: result. For 16-bit types four times what the rounding of the result costs.
TOLERANCE = {
    torch.float64: 1e-13,
    torch.float32: 2e-6,
    torch.float16: 8e-4,
    torch.bfloat16: 6.4e-3,
}
#: What makes the inputs, and the op.
OPS: dict[str, tuple[Callable, Callable]] = {
    'ss2d_scan': (op_inputs.ss2d_inputs, ops.ss2d_scan),
    'selective_scan': (
        op_inputs.selective_inputs,
        functools.partial(ops.selective_scan, delta_softplus=True),
    ),
}
# op, dtype, and the arguments of the inputs: batch, size or length, channels, then by name.
CASES = [
    ('ss2d_scan', 'float16', (2, (56, 56), 96), dict(rank=6)),
    ('ss2d_scan', 'bfloat16', (2, (56, 56), 96), dict(rank=6)),
    ('ss2d_scan', 'float32', (2, (28, 28), 192), dict(rank=12)),
    ('ss2d_scan', 'float16', (2, (14, 14), 384), dict(rank=24)),
    ('ss2d_scan', 'bfloat16', (4, (7, 7), 768), dict(rank=48)),
    ('ss2d_scan', 'float16', (1, (200, 334), 96), dict(rank=6)),
    ('ss2d_scan', 'float64', (3, (13, 29), 40), dict(rank=3)),
    ('ss2d_scan', 'float32', (1, (25, 42), 100), dict(rank=7, d_state=16)),
    ('ss2d_scan', 'float32', (1, (1, 1), 33), dict(rank=70)),
    ('selective_scan', 'float16', (2, 3136, 192), dict(d_state=16)),
    ('selective_scan', 'bfloat16', (1, 1001, 68), dict(groups=2, gate=True)),
    ('selective_scan', 'float32', (3, 130, 34), dict(d_state=5, groups=None)),
]
CPU_CASES = [
    ('ss2d_scan', 'float32', (2, (9, 14), 24), dict(rank=6)),
    ('ss2d_scan', 'bfloat16', (1, (7, 7), 40), dict(rank=3, d_state=2)),
    ('selective_scan', 'float32', (2, 130, 10), dict(d_state=5, groups=2, gate=True)),
]


def items(context: Context) -> Iterator[Item]:
    """List each case with each backend."""
    yield compile_first(context, triton_calls)
    for case in CASES if context.cuda else CPU_CASES:
        op, dtype, *_ = case
        for backend in (*BACKENDS, 'chunked'):
            name = f'{op} {dtype} {describe(case)}, {backend}'
            yield name, functools.partial(check_exactness, context, case, backend)


def triton_calls(device: torch.device) -> Iterator[Callable]:
    """Return the calls of the cases that Triton runs."""
    for op, dtype, shape, options in CASES:
        if dtype != 'float64':
            make, function = OPS[op]
            inputs = make(*shape, dtype=getattr(torch, dtype), device=device, **options)
            yield functools.partial(
                op_inputs.run, functools.partial(function, backend='triton'), inputs
            )


def describe(case: tuple) -> str:
    """Format the input of a case for a table."""
    _, _, (batch, size, channels), options = case
    where = 'x'.join(map(str, size)) if isinstance(size, tuple) else size
    return ', '.join([f'{batch} x {where} x {channels}', *(f'{k} {v}' for k, v in options.items())])


def scan_functions(
    context: Context, op: str, dtype: str, backend: str
) -> tuple[Callable, Callable]:
    """Return an op with a backend, and the PyTorch implementation for the exact result.

    Raises:
        Skip: If the backend cannot run here.
    """
    _, function = OPS[op]
    if op == 'ss2d_scan':
        chunked = functools.partial(ops.ss2d_scan_reference, scan=scan_chunked)
    else:

        def chunked(**inputs):
            y, _ = ops.selective_scan_reference(**inputs, delta_softplus=True, scan=scan_chunked)
            return y

    if backend == 'chunked':
        return chunked, chunked
    require(context, backend, op, getattr(torch, dtype))
    return functools.partial(function, backend=backend), chunked


def fill_with_nan(context: Context) -> None:
    """Fill free memory with NaN so that unwritten elements show up."""
    if not context.cuda:
        return
    torch.cuda.empty_cache()
    blocks = [torch.full((2**power,), math.nan, device='cuda') for power in range(6, 27)]
    del blocks


def check_exactness(context: Context, case: tuple, backend: str) -> list[Row]:
    """Compare output and gradients with float64, then repeat the run."""
    op, dtype, shape, options = case
    function, exact_form = scan_functions(context, op, dtype, backend)
    make, _ = OPS[op]
    torch.manual_seed(0)
    device = torch.device(context.device)
    inputs = make(*shape, dtype=getattr(torch, dtype), device=device, **options)
    exact = op_inputs.run(exact_form, inputs, torch.float64)
    fill_with_nan(context)
    got = op_inputs.run(function, inputs)
    row = dict(op=op, dtype=dtype, backend=backend, input=describe(case), repeats=0)
    wrong = [
        name
        for name, want in exact.items()
        if not (got[name].isfinite().all() and want.isfinite().all())
        or got[name].shape != want.shape
    ]
    if wrong:
        reason = f'not finite or of another shape: {", ".join(wrong)}'
        return [row | dict(status='failed', reason=reason)]
    errors = {
        name: ((got[name].double() - want).norm() / want.norm().clamp(min=1e-30)).item()
        for name, want in exact.items()
    }
    # Kernels round some terms of the gradients to the dtype of the inputs.
    least = 0.0 if backend == 'chunked' else TOLERANCE[getattr(torch, dtype)]
    allowed = {name: max(TOLERANCE[got[name].dtype], least) for name in exact}
    worst = max(errors, key=lambda name: errors[name] / allowed[name])
    row |= dict(errors=errors, worst=worst, error=errors[worst], allowed=allowed[worst])
    if not errors[worst] <= allowed[worst]:
        reason = f'{worst}: error {errors[worst]:.2g}, allowed {allowed[worst]:.2g}'
        return [row | dict(status='failed', reason=reason)]
    if backend == 'chunked':  # PyTorch's kernels are not deterministic
        return [row]
    for repeat in range(1, REPEATS + 1):
        fill_with_nan(context)
        again = op_inputs.run(function, inputs)
        different = [name for name, value in got.items() if not torch.equal(again[name], value)]
        if different:
            reason = f'run {repeat} of {REPEATS} is not bitwise equal: {", ".join(different)}'
            return [row | dict(status='failed', reason=reason)]
    return [row | dict(repeats=REPEATS)]
