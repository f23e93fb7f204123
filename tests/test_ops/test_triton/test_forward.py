"""The forward kernels in Triton's interpreter, against float64."""

import numpy as np
import pytest
import torch

from mmvmamba.ops import selective_scan, ss2d_scan

from .. import definition
from ..cases import ALL_ORDERS, selective_inputs, ss2d_inputs
from . import grid

pytestmark = pytest.mark.usefixtures('triton_on_cpu')
#: Those that need a case of their own come with the gradients in test_backward.
SS2D = grid.SS2D | {'layout': ['dense'], 'd_state': [1, 2, 17], 'batch': [1]}
SEQUENCE = grid.SEQUENCE | {'layout': ['dense'], 'd_state': [1, 2], 'batch': [1]}


@pytest.mark.parametrize('case', list(grid.cases(SS2D, grid.ss2d_work, fast=3, most=16)))
def test_ss2d_scan(case):
    grid.check(case, grid.outputs)


@pytest.mark.parametrize('case', list(grid.cases(SEQUENCE, grid.sequence_work, fast=1, most=12)))
def test_selective_scan(case):
    grid.check(case, grid.outputs)


@pytest.mark.parametrize('pattern', ['cross', (1,), (2, 2, 1)], ids=str)
@pytest.mark.parametrize('size', [(1, 1), (3, 5)], ids=str)
def test_ss2d_scan_is_the_definition(size, pattern):
    inputs = ss2d_inputs(*size, channels=3, batch=1, pattern=pattern, dtype=torch.float32)
    got = ss2d_scan(**inputs, pattern=pattern, backend='triton')
    orders = ALL_ORDERS.get(pattern, pattern)
    want = definition.ss2d_scan(*(v.double().numpy() for v in inputs.values()), orders)
    np.testing.assert_allclose(got.numpy(), want, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize('dtype', grid.DTYPES, ids=str)
@pytest.mark.parametrize('length', [1, 65, pytest.param(300, marks=pytest.mark.slow)])
def test_last_state(length, dtype):
    """In float32, with the error of the time steps."""
    inputs = selective_inputs(length, d_state=3, channels=6, batch=1, dtype=dtype)
    options = {'delta_softplus': True, 'return_last_state': True}
    _, got = selective_scan(**inputs, **options, backend='triton')
    doubles = {k: v.double() for k, v in inputs.items()}
    _, want = selective_scan(**doubles, **options, backend='reference')
    bound = 2e-6 if dtype == torch.float32 else 2e-5
    torch.testing.assert_close(got.double(), want, rtol=bound, atol=bound)


def test_narrow_output_is_the_rounded_wide_one():
    inputs = ss2d_inputs(batch=1, dtype=torch.bfloat16, channels=17)
    wide = ss2d_scan(**inputs, out_dtype=torch.float32, backend='triton')
    assert torch.equal(wide.bfloat16(), ss2d_scan(**inputs, backend='triton'))


def test_positive_rates():
    """Those of positions beyond the end of a map, which make infinite decays, change nothing."""
    inputs = ss2d_inputs(9, 8, 1, channels=2, batch=1, dtype=torch.float32, pattern=(2,))
    inputs['dt_weight'].zero_()
    inputs['dt_bias'].fill_(1.0)
    inputs['A'].fill_(0.9)
    got = ss2d_scan(**inputs, pattern=(2,), backend='triton')
    doubles = {k: v.double() for k, v in inputs.items()}
    want = ss2d_scan(**doubles, pattern=(2,), backend='reference')
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=0)


@pytest.mark.parametrize('d_state', [1, pytest.param(16, marks=pytest.mark.slow)])
def test_long_sequences_of_tiny_decay_stay_finite(d_state):
    inputs = ss2d_inputs(1, 1500, d_state, channels=2, batch=1, dtype=torch.float32, pattern=(2,))
    inputs['A'] = inputs['A'] * 1e-9
    assert ss2d_scan(**inputs, pattern=(2,), backend='triton').isfinite().all()
