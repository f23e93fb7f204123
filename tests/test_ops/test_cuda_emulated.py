"""The CUDA kernels in the emulator, over the grid of the CPU kernels.

Threads run in a random order from one barrier to the next: a result that changes with the seed
would be a race. Under ThreadSanitizer (``make sanitize``) a race is found by itself.
"""

import functools
import math
import re
import shutil
import subprocess
import sys

import pytest
import torch

from mmvmamba.ops import selective_scan
from mmvmamba.ops.ss2d_scan import ss2d_scan_reference

from ..benchmark_modules import load
from . import test_selective_scan as selective
from . import test_ss2d_scan as ss2d
from .cases import (
    assert_as_exact_as_eager,
    kernel_cases,
    relative_error,
    run,
    selective_inputs,
    ss2d_inputs,
)
from .emulator import ops as emulated
from .emulator import translate
from .test_cuda import NARROW, check_long_sequence

#: Of the order of the threads, each block of threads, and what uninitialized memory holds.
SEEDS = range(1 if translate.sanitizer() == 'thread' else 4)

pytestmark = pytest.mark.skipif(not emulated.can_build(), reason='no C++ compiler or no ninja')


def settings(case):
    """Takes the emulator's settings out of a case."""
    case = dict(case)
    emulated.configure(*(case.pop(name) for name in ('seed', 'blocks', 'shared')))
    return case


def tolerance(case):
    """Where the I/O type has 16 bits, a time step is exact to its rounding and not to float32's."""
    dtype = case['dtype']
    return dict(ulps=2, precision=dtype) if dtype.itemsize == 2 else {}


@pytest.mark.parametrize('case', list(kernel_cases(ss2d)))
def test_ss2d_scan_is_as_exact_as_eager(case):
    scan = functools.partial(run, emulated.ss2d_scan)
    ss2d.compare_with_eager(settings(case), scan, **tolerance(case))


@pytest.mark.parametrize('case', list(kernel_cases(selective)))
def test_selective_scan_is_as_exact_as_eager(case):
    scan = functools.partial(run, emulated.selective_scan)
    selective.compare_with_eager(settings(case), scan, **tolerance(case))


@pytest.mark.parametrize('blocks', [1, 512])
@pytest.mark.parametrize(
    ('d_state', 'channels', 'rank', 'dtype'),
    [
        (1, 140, 6, torch.float32),
        (1, 70, 3, torch.float16),
        (18, 34, 2, torch.float32),
        (5, 40, 70, torch.float32),
        (9, 34, 1, torch.bfloat16),
    ],
)
def test_order_of_threads_does_not_matter(d_state, channels, rank, dtype, blocks):
    """Bit for bit, forward and backward: a phase reads nothing that another thread writes in it."""
    inputs = ss2d_inputs(9, 29, d_state, rank, 1, channels, dtype)
    results = []
    for seed in SEEDS:
        emulated.configure(seed, blocks)
        results.append(run(emulated.ss2d_scan, inputs))
    for name, value in results[0].items():
        for other in results[1:]:
            assert torch.equal(other[name], value), name


@pytest.mark.parametrize('form', ['shared', 'grouped', 'all', 'constant'])
def test_order_of_threads_does_not_matter_in_1d(form):
    inputs = selective_inputs(200, 5, 2, 6, B=form, C=form, dtype=torch.float32)
    results = []
    for seed in SEEDS:
        emulated.configure(seed)
        results.append(run(emulated.selective_scan, inputs, delta_softplus=True))
    for name, value in results[0].items():
        for other in results[1:]:
            assert torch.equal(other[name], value), name


@pytest.mark.parametrize(
    'case',
    [
        ('ss2d_scan', 'float16', (1, (9, 14), 48), dict(rank=6)),
        ('ss2d_scan', 'bfloat16', (1, (9, 14), 48), dict(rank=6)),
        ('selective_scan', 'float16', (1, 90, 20), dict(d_state=4)),
    ],
)
def test_tolerances_of_the_gpu_check(case, monkeypatch, tmp_path):
    exactness, steps, context = map(load, ('gpu_steps.exactness', 'gpu_steps', 'gpu_steps.context'))
    options = {} if case[0] == 'ss2d_scan' else dict(delta_softplus=True)
    function = functools.partial(getattr(emulated, case[0]), **options)
    context = context.Context(2, steps.STEPS[2], tmp_path, 'cpu', 10)
    _, exact = exactness.scan_functions(context, case[0], case[1], 'chunked')
    monkeypatch.setattr(exactness, 'scan_functions', lambda *_: (function, exact))
    monkeypatch.setattr(exactness, 'REPEATS', 1)
    emulated.configure(shared=227 * 1024)
    (row,) = exactness.check_exactness(context, case, 'native')
    assert row.get('status') is None, row['reason']


@pytest.mark.parametrize('dtype', NARROW)
def test_tolerance_of_very_long_sequences(dtype):
    emulated.configure()
    check_long_sequence(emulated.ss2d_scan, 2**12, dtype, 'cpu')


SPLITS = [
    ((56, 55), 16, 6, 1, 1),  # several rounds of a whole map; rows of 16 bytes
    ((13, 14), 104, 24, 1, 1),  # rows kept for several tiles of channels, the last one short
    ((13, 14), 104, 24, 1, 64),  # a split walk, rows shared by seven tiles of channels
    ((10, 41), 50, 5, 1, 64),  # a tile of two channels; no row of four tiles is complete
    ((41, 33), 144, 3, 1, 64),  # two blocks for the tiles of channels, four tiles twice in a lane
    ((7, 9), 34, 12, 1, 1),  # rows of 4 bytes, channels that are not read by eight
    ((7, 9), 6, 5, 1, 1),  # rows of 2 bytes
    ((1, 70), 16, 40, 2, 1),  # three slices of ranks
    ((70, 1), 7, 3, 18, 8),  # an odd number of channels, two groups of states
    ((19, 20), 18, 7, 20, 1),  # two groups of states in several rounds
    ((8, 9), 18, 2, 18, 512),  # two groups of states, two warps with a tile in each lane
]
NARROW = [torch.float16, torch.bfloat16, torch.float32]


@pytest.mark.parametrize('dtype', NARROW, ids=str)
@pytest.mark.parametrize(('size', 'channels', 'rank', 'd_state', 'blocks'), SPLITS)
def test_every_split_and_layout_of_the_forward(size, channels, rank, d_state, blocks, dtype):
    inputs = ss2d_inputs(*size, d_state, rank, 1, channels, dtype)
    exact = ss2d_scan_reference(**{name: value.double() for name, value in inputs.items()})
    emulated.configure(blocks=blocks, shared=227 * 1024)
    out = emulated.ss2d_scan(**inputs, out_dtype=torch.float32)
    # 16-bit rows and weights are exact to 2^-16 at least, time steps to 1e-5.
    assert relative_error(out, exact) < (5e-6 if dtype.itemsize == 2 else 5e-7)


@pytest.mark.parametrize('out_dtype', [None, torch.float32], ids=str)
@pytest.mark.parametrize('dtype', NARROW, ids=str)
@pytest.mark.parametrize(('size', 'channels', 'rank', 'd_state', 'blocks'), SPLITS)
def test_every_split_and_layout_of_the_backward(
    size, channels, rank, d_state, blocks, dtype, out_dtype
):
    inputs = ss2d_inputs(*size, d_state, rank, 1, channels, dtype)
    exact = run(ss2d_scan_reference, inputs, torch.float64)
    emulated.configure(blocks=blocks, shared=227 * 1024)
    got = run(emulated.ss2d_scan, inputs, out_dtype=out_dtype)
    for name in exact.keys() - {'out'}:
        # Terms of the sums over positions and channels are rounded to the I/O type.
        bound = torch.finfo(dtype).eps if dtype.itemsize == 2 else 2e-6
        assert relative_error(got[name], exact[name]) < bound, name


@pytest.mark.parametrize('channels', [32, 34, 66])
def test_groups_of_one_channel_more_than_a_tile(channels):
    """In segments, and several tiles of channels in a block."""
    inputs = selective_inputs(760, 4, 1, channels, B='grouped', C='grouped', dtype=torch.float64)
    emulated.configure(blocks=5, shared=227 * 1024)
    with torch.no_grad():
        got = emulated.selective_scan(**inputs, delta_softplus=True)
        want = selective_scan(**inputs, delta_softplus=True, backend='reference')
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('out_dtype', [torch.bfloat16, torch.float32], ids=str)
def test_gradients_at_odd_addresses(out_dtype):
    """They cannot be read in pairs, so another kernel runs."""
    inputs = ss2d_inputs(13, 14, 1, 6, 2, 32, torch.bfloat16)
    emulated.configure(blocks=1)
    results = []
    for offset in (0, 1):
        leaves = {k: v.clone().requires_grad_() for k, v in inputs.items()}
        out = emulated.ss2d_scan(**leaves, out_dtype=out_dtype)
        room = torch.empty(out.numel() + 1, dtype=out_dtype)
        grad = room[offset : offset + out.numel()].view_as(out)
        grad.copy_(torch.linspace(-1, 1, out.numel()).view_as(out))
        results.append(torch.autograd.grad(out, list(leaves.values()), grad))
    for name, got, want in zip(inputs, *results, strict=True):
        assert relative_error(got, want) < torch.finfo(torch.bfloat16).eps, name


@pytest.mark.parametrize('scale', [1e-30, 1e-6, 1e4, 1e30])
def test_gradients_of_any_size_in_float16(scale):
    """A tile's gradients of time steps get a power of two that brings them into its range."""
    inputs = ss2d_inputs(13, 14, 1, 6, 2, 32, torch.float16)
    emulated.configure()
    leaves = {k: v.clone().requires_grad_() for k, v in inputs.items()}
    out = emulated.ss2d_scan(**leaves, out_dtype=torch.float32)
    grad = torch.linspace(-1, 1, out.numel()).view_as(out)
    names = ('dt_weight', 'dt_bias')
    wanted = [leaves[name] for name in names]
    plain = torch.autograd.grad(out, wanted, grad, retain_graph=True)
    scaled = torch.autograd.grad(out, wanted, grad * scale)
    for name, got, want in zip(names, scaled, plain, strict=True):
        assert relative_error(got / scale, want) < 1e-3, name


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize('value', [math.nan, math.inf])
def test_weights_that_are_not_finite_show(value, dtype):
    inputs = ss2d_inputs(3, 5, 1, 2, 1, 4, dtype)
    inputs['dt_weight'][0, 1, 0] = value
    emulated.configure()
    assert not emulated.ss2d_scan(**inputs)[..., 1].isfinite().all()


@pytest.mark.parametrize('dtype', [torch.float16, torch.float32], ids=str)
def test_infinite_values_stay_where_they_are(dtype):
    """One of C is that of its position, and A of -inf is a state without memory."""
    inputs = ss2d_inputs(3, 5, 1, 3, 1, 4, dtype)
    inputs['proj'][0, 1, 2, 0, -1] = math.inf
    inputs['A'][1, 3] = -math.inf
    emulated.configure()
    out = emulated.ss2d_scan(**inputs)
    wanted = ss2d_scan_reference(**inputs)
    assert torch.equal(out.isfinite(), wanted.isfinite())
    places = wanted.isfinite()
    assert relative_error(out[places], wanted[places]) < 2 * torch.finfo(dtype).eps


def test_weights_beyond_float16():
    inputs = ss2d_inputs(3, 5, 1, 2, 1, 4, torch.float16)
    inputs['dt_weight'] = inputs['dt_weight'].sign() * 1e5
    inputs['proj'][..., :2] = 1e-4
    emulated.configure()
    assert emulated.ss2d_scan(**inputs).isfinite().all()


def test_large_images_and_large_batches_are_split_into_many_blocks():
    """Split of the kernels, by the number of their blocks."""
    blocks = {}
    for name, size, batch in (('image', (40, 80), 1), ('batch', (7, 7), 128)):
        inputs = ss2d_inputs(*size, 1, 2, batch, 8, torch.float32)
        emulated.configure(blocks=32)
        with torch.no_grad():
            emulated.ss2d_scan(**inputs)
        blocks[name] = [count for count, *_ in emulated.launches()]
    # 100 tiles, four in a warp: a summary of four directions, their combination, rows, columns.
    assert blocks['image'] == [4 * 25, 4, 25, 25]
    # Nothing to split: one launch for all directions.
    assert blocks['batch'] == [128]


def test_result_does_not_depend_on_the_split():
    inputs = ss2d_inputs(20, 33, 1, 3, 2, 5, torch.float64)
    results = []
    for blocks in (1, 7, 512):
        emulated.configure(blocks=blocks)
        results.append(run(emulated.ss2d_scan, inputs))
    for name, value in results[0].items():
        for other in results[1:]:
            torch.testing.assert_close(other[name], value, rtol=1e-12, atol=1e-12, msg=name)


def test_narrow_output_is_the_rounded_wide_one():
    emulated.configure()
    inputs = ss2d_inputs(9, 13, dtype=torch.float16)
    wide = emulated.ss2d_scan(**inputs, out_dtype=torch.float32)
    narrow = emulated.ss2d_scan(**inputs)
    assert torch.equal(wide.half(), narrow)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize('length', [1, 65, 200])
@pytest.mark.parametrize('blocks', [1, 512])
def test_last_state(blocks, length, dtype):
    emulated.configure(blocks=blocks)
    inputs = selective_inputs(length=length, d_state=5, channels=18, dtype=dtype)
    options = {'delta_softplus': True, 'return_last_state': True}
    _, got = emulated.selective_scan(**inputs, **options)
    doubles = {k: v.double() for k, v in inputs.items()}
    _, want = selective_scan(**doubles, **options, backend='reference')
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('batch', [0, 2])
def test_empty_sequences(batch):
    emulated.configure()
    inputs = selective_inputs(length=0 if batch else 5, batch=batch)
    result = run(emulated.selective_scan, inputs)
    for name, value in inputs.items():
        assert result[f'grad_{name}'].shape == value.shape


def test_offsets_beyond_32_bits():
    """Strides whose products pass 2^31: the elements of a view that repeats one row 70000 times."""
    emulated.configure()
    length, stride = 70, 2**26 + 3
    # (1, 1, L) with positions 2^26 apart: the storage is reserved and never touched in between.
    room = torch.empty(length * stride, dtype=torch.float16)
    inputs = selective_inputs(length, 1, 1, 1, dtype=torch.float16)
    u = room.as_strided((1, 1, length), (0, 0, stride))
    u.copy_(inputs['u'])
    assert u.stride(2) * (length - 1) > 2**31
    got = emulated.selective_scan(**inputs | {'u': u}, delta_softplus=True)
    want = emulated.selective_scan(**inputs, delta_softplus=True)
    assert want.isfinite().all()
    assert torch.equal(got, want)


def test_rows_of_one_step_where_shared_memory_is_scarce():
    """Lanes that scan a tile each then get the rows of their eight positions step by step."""
    inputs = ss2d_inputs(19, 20, 12, 40, 1, 40, torch.float64)
    exact = run(ss2d_scan_reference, inputs)
    sizes = []
    for limit in (227, 160):
        emulated.configure(blocks=512, shared=limit * 1024)
        got = run(emulated.ss2d_scan, inputs)
        sizes.append(emulated.launches()[2][2])  # of the forward's sweep
        for name in exact:
            assert relative_error(got[name], exact[name]) < 1e-13, (name, limit)
    assert sizes[1] < 160 * 1024 < sizes[0]


def test_too_little_shared_memory_is_an_error():
    emulated.configure(shared=1024)
    with pytest.raises(RuntimeError, match='shared memory for 2 states and rank 2'):
        emulated.ss2d_scan(**ss2d_inputs())
    emulated.configure()


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'proj': torch.zeros(2, 3, 5, 4, 5, dtype=torch.float64)}, 'proj must have shape'),
        ({'A': torch.zeros(4, 5, 2, dtype=torch.float32)}, 'A must be Double'),
    ],
)
def test_wrong_arguments(change, message):
    inputs = ss2d_inputs() | change
    with pytest.raises(RuntimeError, match=message):
        emulated.library().ss2d_scan(*inputs.values(), [0, 1, 2, 3], torch.float64, False)


def test_integers_are_refused():
    inputs = {k: v.int() for k, v in ss2d_inputs().items()}
    with pytest.raises(RuntimeError, match='must be Float, but is Int'):
        emulated.library().ss2d_scan(*inputs.values(), [0, 1, 2, 3], torch.int32, False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('file', 'right', 'wrong'),
    [
        ('scan_tile.cuh', '(exists ? decay[c] : T(0)) * before.add[c]', 'before.add[c]'),
        ('scan_forward.cuh', 'before.decay[c] * h[c] + before.add[c]', 'before.add[c]'),
        ('scan_combine.cu', '    state[j * step] = h', '    state[j * step] = add'),
        ('scan_combine.cu', 'h = decays[i][x] * h + adds[i][x]', 'h = adds[i][x]'),
        ('scan_combine.cu', '!= args.backward', ''),
        ('scan_backward.cuh', 'of_A[c] += through_decay * dt', 'of_A[c] += through_decay'),
        ('scan_backward.cuh', 'after.decay[c] * flow[c] + after.add[c]', 'after.add[c]'),
        ('scan_block.cuh', '__syncthreads();  // all have left the last tile', ''),
        ('scan_block.cuh', '        step += states;\n', ''),
        ('scan_block.cuh', '(reversed != kBack ?', '(reversed ?'),
        ('scan_lane.cuh', '__syncthreads();  // all are done with the previous rows', ''),
        ('scan_lane.cuh', 'kBack ? kTeamLanes - 1 - i : i', 'i'),
        ('scan_forward.cuh', 'kReversed ? kStep - 1 - j : j', 'j'),
        ('scan_backward.cuh', 'me.active > 0 ? to_tile[0] : T(0)', 'to_tile[0]'),
    ],
)  # fmt: skip
def test_planted_errors_are_found(file, right, wrong, tmp_path):
    """Check that the emulator compiles the kernels themselves."""
    csrc = tmp_path / 'csrc'
    shutil.copytree(emulated.ROOT / 'csrc', csrc)
    path = csrc / 'cuda' / file
    text = path.read_text()
    assert right in text
    path.write_text(text.replace(right, wrong))
    cases = [((9, 17, 1, 2, 4, 3), 'float32'), ((9, 17, 1, 2, 1, 40), 'float32')]
    result = compare_in_new_build(csrc, tmp_path / 'build', cases)
    assert result.returncode != 0
    # Without a barrier a thread may take poison for a position, and the process ends.
    if result.returncode > 0 or '__syncthreads' not in right:
        assert re.search('AssertionError: .*(allowed|finite)', result.stderr), result.stderr


@pytest.mark.slow
def test_without_tensor_cores(tmp_path):
    cases = [((9, 17, 1, 6, 1, 40), 'float16'), ((13, 14, 1, 24, 1, 104), 'bfloat16'),
             ((5, 7, 3, 9, 2, 18), 'float16')]  # fmt: skip
    flags = ['-DCUDA_EMULATOR_MMA=0']
    result = compare_in_new_build(emulated.ROOT / 'csrc', tmp_path / 'build', cases, flags)
    assert result.returncode == 0, result.stderr


def compare_in_new_build(csrc, build, cases, flags=()):
    """Compares the ops of other sources or flags with eager, in a process of its own."""
    code = f"""
import sys; sys.path.insert(0, {str(emulated.ROOT / 'tests')!r})
from pathlib import Path
import torch
from test_ops.emulator import ops as emulated
from test_ops.cases import assert_as_exact_as_eager, run, ss2d_inputs
from mmvmamba.ops.ss2d_scan import ss2d_scan_reference
emulated.build(Path({str(csrc)!r}), Path({str(build)!r}), 'elsewhere', {list(flags)!r})
emulated.library = lambda: torch.ops.mmvmamba_emulated
for sizes, dtype in {cases!r}:
    dtype = getattr(torch, dtype)
    inputs = ss2d_inputs(*sizes, dtype)
    exact = run(ss2d_scan_reference, inputs, torch.float64)
    eager = run(ss2d_scan_reference, inputs)
    narrow = dict(ulps=2, precision=dtype) if dtype.itemsize == 2 else dict()
    for blocks in (512, 1):  # split walks and whole ones
        emulated.configure(blocks=blocks)
        got = run(emulated.ss2d_scan, inputs)
        assert_as_exact_as_eager([got], [[eager]], [exact], **narrow)
"""
    command = [sys.executable, '-c', code]
    return subprocess.run(command, capture_output=True, text=True, cwd=emulated.ROOT)


def test_reference_of_the_planted_errors_is_met_without_them():
    inputs = ss2d_inputs(9, 17, 1, 2, 4, 3, torch.float32)
    exact = run(ss2d_scan_reference, inputs, torch.float64)
    eager = run(ss2d_scan_reference, inputs)
    for blocks in (512, 1):
        emulated.configure(blocks=blocks)
        assert_as_exact_as_eager([run(emulated.ss2d_scan, inputs)], [[eager]], [exact])
