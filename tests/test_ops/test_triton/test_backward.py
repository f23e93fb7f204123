"""The backward kernels in Triton's interpreter: every gradient by name against float64."""

import functools

import pytest
import torch

from mmvmamba.ops import selective_scan, ss2d_scan

from ..cases import run, selective_inputs, ss2d_inputs
from . import grid

pytestmark = pytest.mark.usefixtures('triton_on_cpu')


@pytest.mark.parametrize('case', list(grid.cases(grid.SS2D, grid.ss2d_work, fast=4, most=16)))
def test_ss2d_scan(case):
    grid.check(case)


@pytest.mark.parametrize(
    'case', list(grid.cases(grid.SEQUENCE, grid.sequence_work, fast=2, most=16))
)
def test_selective_scan(case):
    grid.check(case)


@pytest.mark.slow
@pytest.mark.parametrize('dtype', grid.DTYPES, ids=str)
def test_256_states(dtype):
    case = dict(
        size=(3, 3), pattern=(3,), d_state=256, rank=6, channels=5, batch=1, layout='dense',
        dtype=dtype, wide=True, regime='plain',
    )  # fmt: skip
    grid.check(case)


def test_more_subchunks_than_a_program_combines_at_once():
    case = dict(
        length=1100, d_state=1, batch=1, channels=2, B='shared', C='shared', D=True, z=False,
        bias=True, softplus=True, layout='dense', dtype=torch.float32, regime='A_near_0',
    )  # fmt: skip
    grid.check(case)


def test_programs_that_sum_up_several_chunks(triton_on_cpu, monkeypatch):
    monkeypatch.setattr(triton_on_cpu.launch, 'PROGRAMS', 1)
    case = dict(
        size=(17, 16), pattern=(3,), d_state=1, rank=1, channels=2, batch=3, layout='dense',
        dtype=torch.float32, wide=True, regime='plain',
    )  # fmt: skip
    grid.check(case)


def poisoned(function, *args, **kwargs):
    """Call a function with NaN in all memory that is allocated without a value."""
    before = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(9).isnan().all()
        return function(*args, **kwargs)
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = before


def assert_same_twice(function, inputs, **options):
    function = functools.partial(function, backend='triton', **options)
    first, second = run(function, inputs), poisoned(run, function, inputs)
    for name, value in first.items():
        assert value.isfinite().all(), name
        assert torch.equal(second[name], value), name


@pytest.mark.parametrize(
    ('size', 'dtype'),
    [
        ((3, 5), torch.float16),
        ((9, 10), torch.bfloat16),
        pytest.param((5, 60), torch.float16, marks=pytest.mark.slow),
        pytest.param((17, 16), torch.float32, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_ss2d_scan_writes_all_and_is_deterministic(size, dtype):
    """Results are the same, bit for bit, whatever was in the memory before."""
    inputs = ss2d_inputs(*size, d_state=1, batch=1, channels=17, dtype=dtype, pattern=(3, 0))
    assert_same_twice(ss2d_scan, inputs, pattern=(3, 0))


@pytest.mark.parametrize(
    ('length', 'B', 'C'),
    [
        (9, 'grouped', 'constant'),
        pytest.param(90, 'all', 'shared', marks=pytest.mark.slow),
        pytest.param(300, 'constant', 'constant', marks=pytest.mark.slow),
    ],
)
def test_selective_scan_writes_all_and_is_deterministic(length, B, C):
    inputs = selective_inputs(length, batch=1, B=B, C=C, dtype=torch.float16)
    assert_same_twice(selective_scan, inputs, delta_softplus=True)


@pytest.mark.parametrize('step', [-1e30, -104.0, -30.0, 20.0, 1e6])
def test_extreme_steps_at_the_limit_of_the_type(step):
    """A step near zero must not bring back an input of 1e38."""
    inputs = ss2d_inputs(
        2, 3, d_state=1, rank=1, channels=2, batch=1, dtype=torch.float32, pattern=(3,)
    )
    inputs['dt_weight'].zero_()
    inputs['dt_bias'].fill_(step)
    inputs['D'].zero_()
    inputs['x'] = inputs['x'].clamp(-3, 3) * (1e38 if step < -80 else 1.0)
    exact = run(ss2d_scan, inputs, torch.float64, pattern=(3,), backend='reference')
    got = run(ss2d_scan, inputs, pattern=(3,), backend='triton')
    # A step below the smallest normal number may count as zero; 16 sums what follows from it.
    lost = torch.finfo(torch.float32).tiny * inputs['x'].abs().max().item() * 16
    for name, want in exact.items():
        assert got[name].isfinite().all(), name
        error = (got[name] - want).abs().max().item()
        assert error <= lost + 1e-5 * want.abs().max().item(), name
