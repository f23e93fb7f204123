"""The CUDA kernels' code, run on the CPU by the host harness, over the grid of the CPU kernels.

What this cannot show is what happens when threads run at the same time, save one thing: a result
that changes with the order of the threads would be a race.
"""

import functools
import re
import shutil
import subprocess
import sys

import pytest
import torch

from mmvmamba.ops.ss2d_scan import ss2d_scan_reference

from . import on_host
from . import test_selective_scan as selective
from . import test_ss2d_scan as ss2d
from .cases import (
    assert_as_exact_as_eager,
    kernel_cases,
    run,
    selective_inputs,
    ss2d_inputs,
)

pytestmark = pytest.mark.skipif(not on_host.can_build(), reason='no C++ compiler or no ninja')


def settings(case):
    """Takes the harness's settings out of a case."""
    case = dict(case)
    on_host.host().set(*(case.pop(name) for name in ('descending', 'blocks', 'shared')))
    return case


@pytest.mark.parametrize('case', list(kernel_cases(ss2d)))
def test_ss2d_scan_is_as_exact_as_eager(case):
    ss2d.compare_with_eager(settings(case), functools.partial(run, on_host.ss2d_scan))


@pytest.mark.parametrize('case', list(kernel_cases(selective)))
def test_selective_scan_is_as_exact_as_eager(case):
    selective.compare_with_eager(settings(case), functools.partial(run, on_host.selective_scan))


@pytest.mark.parametrize('blocks', [1, 512])
@pytest.mark.parametrize(('d_state', 'channels', 'rank'), [(1, 140, 6), (5, 40, 70), (9, 70, 1)])
def test_order_of_threads_does_not_matter(d_state, channels, rank, blocks):
    """Bit for bit, forward and backward: a phase reads nothing that another thread writes in it."""
    inputs = ss2d_inputs(9, 29, d_state, rank, 1, channels, torch.float32)
    results = []
    for descending in (False, True):
        on_host.host().set(descending, blocks, 99 * 1024)
        results.append(run(on_host.ss2d_scan, inputs))
    for name, value in results[0].items():
        assert torch.equal(results[1][name], value), name


@pytest.mark.parametrize('form', ['shared', 'grouped', 'all', 'constant'])
def test_order_of_threads_does_not_matter_in_1d(form):
    inputs = selective_inputs(200, 5, 2, 6, B=form, C=form, dtype=torch.float32)
    results = []
    for descending in (False, True):
        on_host.host().set(descending, 512, 99 * 1024)
        results.append(run(on_host.selective_scan, inputs, delta_softplus=True))
    for name, value in results[0].items():
        assert torch.equal(results[1][name], value), name


def test_large_images_and_large_batches_are_split_into_many_blocks():
    """Split of the kernels, by the number of their blocks."""
    counts = {}
    for name, size, batch in (('image', (40, 80), 1), ('batch', (7, 7), 128)):
        inputs = ss2d_inputs(*size, 1, 2, batch, 8, torch.float32)
        on_host.host().set(False, 32, 99 * 1024)
        with torch.no_grad():
            on_host.ss2d_scan(**inputs)
        counts[name] = on_host.host().counts()
    # 50 chunks in 25 segments: a summary of four directions, then rows, then columns.
    assert counts['image'] == (4, 25 * (2 + 2 + 1 + 1))
    # Nothing to split: one launch for all directions.
    assert counts['batch'] == (1, 128)


def test_result_does_not_depend_on_the_split():
    inputs = ss2d_inputs(20, 33, 1, 3, 2, 5, torch.float64)
    results = []
    for blocks in (1, 7, 512):
        on_host.host().set(False, blocks, 99 * 1024)
        results.append(run(on_host.ss2d_scan, inputs))
    for name, value in results[0].items():
        for other in results[1:]:
            torch.testing.assert_close(other[name], value, rtol=1e-12, atol=1e-12, msg=name)


def test_narrow_output_is_the_rounded_wide_one():
    on_host.host().set(False, 512, 99 * 1024)
    inputs = ss2d_inputs(9, 13, dtype=torch.float16)
    wide = on_host.ss2d_scan(**inputs, out_dtype=torch.float32)
    narrow = on_host.ss2d_scan(**inputs)
    assert torch.equal(wide.half(), narrow)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize('length', [1, 65, 200])
def test_last_state(length, dtype):
    on_host.host().set(False, 512, 99 * 1024)
    inputs = selective_inputs(length=length, d_state=5, channels=18, dtype=dtype)
    options = {'delta_softplus': True, 'return_last_state': True}
    from mmvmamba.ops import selective_scan

    _, got = on_host.selective_scan(**inputs, **options)
    doubles = {k: v.double() for k, v in inputs.items()}
    _, want = selective_scan(**doubles, **options, backend='reference')
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('batch', [0, 2])
def test_empty_sequences(batch):
    on_host.host().set(False, 512, 99 * 1024)
    inputs = selective_inputs(length=0 if batch else 5, batch=batch)
    result = run(on_host.selective_scan, inputs)
    for name, value in inputs.items():
        assert result[f'grad_{name}'].shape == value.shape


def test_offsets_beyond_32_bits():
    """Strides whose products pass 2^31: the elements of a view that repeats one row 70000 times."""
    on_host.host().set(False, 512, 99 * 1024)
    length, stride = 70, 2**26 + 3
    # (1, 1, L) with positions 2^26 apart: the storage is reserved and never touched in between.
    room = torch.empty(length * stride, dtype=torch.float16)
    inputs = selective_inputs(length, 1, 1, 1, dtype=torch.float16)
    u = room.as_strided((1, 1, length), (0, 0, stride))
    u.copy_(inputs['u'])
    assert u.stride(2) * (length - 1) > 2**31
    got = on_host.selective_scan(**inputs | {'u': u}, delta_softplus=True)
    want = on_host.selective_scan(**inputs, delta_softplus=True)
    assert want.isfinite().all()
    assert torch.equal(got, want)


def test_too_little_shared_memory_is_an_error():
    on_host.host().set(False, 512, 1024)
    with pytest.raises(RuntimeError, match='shared memory for 2 states and rank 2'):
        on_host.ss2d_scan(**ss2d_inputs())
    on_host.host().set(False, 512, 99 * 1024)


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
        on_host.host().ss2d_scan(*inputs.values(), [0, 1, 2, 3], torch.float64, False)


def test_integers_are_refused():
    inputs = {k: v.int() for k, v in ss2d_inputs().items()}
    with pytest.raises(RuntimeError, match='must be Float, but is Int'):
        on_host.host().ss2d_scan(*inputs.values(), [0, 1, 2, 3], torch.int32, False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('file', 'right', 'wrong'),
    [
        ('scan_math.h', 'p * e + 0.33329710364341736f', 'p * e + 0.33330710364341736f'),
        ('scan_forward.h', 'for (int j = 0; j < place.walker; ++j)', 'for (int j = 1; j < 1; ++j)'),
        ('scan_backward.h', 'sum_A += through_decay * own.dt[t]', 'sum_A += through_decay'),
        ('scan_block.h', 'const bool descending = is_reversed(a.directions.order[which]) != '
         'a.backward', 'const bool descending = a.backward'),
    ],
)  # fmt: skip
def test_planted_errors_are_found(file, right, wrong, tmp_path):
    """Check that the harness includes the headers of the kernels themselves."""
    csrc = tmp_path / 'csrc'
    shutil.copytree(on_host.ROOT / 'csrc', csrc)
    path = csrc / 'cuda' / file
    text = re.sub(r'\n\s*', ' ', path.read_text()) if '\n' in right else path.read_text()
    assert right in text
    path.write_text(text.replace(right, wrong))
    code = (
        'import sys; sys.path.insert(0, sys.argv[1])\n'
        'from pathlib import Path\n'
        'import torch\n'
        'from test_ops import on_host\n'
        'from test_ops.cases import assert_as_exact_as_eager, run, ss2d_inputs\n'
        'from mmvmamba.ops.ss2d_scan import ss2d_scan_reference\n'
        'on_host.build(Path(sys.argv[2]), Path(sys.argv[3]), "planted")\n'
        'on_host.host = lambda: torch.ops.mmvmamba_host\n'
        'inputs = ss2d_inputs(9, 17, 1, 2, 1, 3, torch.float32)\n'
        'exact = run(ss2d_scan_reference, inputs, torch.float64)\n'
        'eager = run(ss2d_scan_reference, inputs)\n'
        'assert_as_exact_as_eager([run(on_host.ss2d_scan, inputs)], [[eager]], [exact])\n'
    )
    build = tmp_path / 'build'
    command = [sys.executable, '-c', code, str(on_host.ROOT / 'tests'), str(csrc), str(build)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=on_host.ROOT)
    assert result.returncode != 0
    assert 'AssertionError' in result.stderr and 'allowed' in result.stderr, result.stderr


def test_reference_of_the_planted_errors_is_met_without_them():
    on_host.host().set(False, 512, 99 * 1024)
    inputs = ss2d_inputs(9, 17, 1, 2, 1, 3, torch.float32)
    exact = run(ss2d_scan_reference, inputs, torch.float64)
    eager = run(ss2d_scan_reference, inputs)
    assert_as_exact_as_eager([run(on_host.ss2d_scan, inputs)], [[eager]], [exact])
