"""ss2d_scan against its definition, then the kernels against the reference."""

import functools

import numpy as np
import pytest
import torch

from mmvmamba.ops import has_kernel, ss2d_scan
from mmvmamba.ops.selective_scan import scan_chunked
from mmvmamba.ops.ss2d_scan import ss2d_scan_reference

from . import definition
from .cases import (
    ALL_ORDERS,
    REGIMES,
    Maker,
    assert_as_exact_as_eager,
    native_cases,
    run,
    ss2d_inputs,
)

native_only = pytest.mark.skipif(not has_kernel('ss2d_scan', 'cpu'), reason='no native kernel')
chunked = functools.partial(ss2d_scan_reference, scan=scan_chunked)
SIZES = [(1, 1), (1, 2), (31, 1), (7, 7), (1, 127), (3, 43), (14, 14), (28, 28), (25, 42), (56, 56),
         (50, 84), (100, 167)]  # fmt: skip
PATTERNS = ['cross', 'unidirectional', 'bidirectional', (1,), (3, 0), (2, 2, 1)]
EXTREME = ('A_-1e4', 'x_limit')
FACTORS = {
    'size': SIZES,
    'd_state': [1, 2, 8, 16, 17, 256],
    'rank': [1, 6, 48],
    'batch': [1, 3],  # an empty one computes nothing: test_empty_batch
    'channels': [1, 5, 17, 40],
    'layout': ['dense', 'permuted', 'sliced', 'offset'],
    'dtype': [torch.float32, torch.bfloat16, torch.float64],
    'pattern': PATTERNS,
    'regime': list(REGIMES),
}


def _elements(case):
    return np.prod(case['size']) * case['d_state'] * case['batch'] * case['channels']


def small(case):
    """The references form every state, so many states on large maps are left out.

    So are long sequences of steps of thousands: many draws are needed to compare their errors.
    """
    long = case['size'][0] * case['size'][1] > 1100
    return _elements(case) <= 1e5 and not (long and case['regime'] == 'dt_far')


def draws(case):
    """Return the number of draws of a case whose errors are compared together.

    The gradients of a tiny case are a few numbers, sums whose terms cancel by chance. In the
    extreme regimes those of a large one are, too: steps of thousands that cancel to one, the one
    decay that has not vanished, the one input at the type's limit. Sizes are from resampling 60
    draws of 40 cases: between equally exact forms, the medians of smaller samples differed by more
    than their factor in over 1 % of the samples. Seeds are fixed, so a processor gives the same
    verdict each time.
    """
    length = case['size'][0] * case['size'][1]
    if case['dtype'] == torch.float64:  # nothing is lost that the test would see
        return 1
    if case['regime'] == 'dt_far':
        return 45
    if case['regime'] == 'A_near_0' and length <= 1100:
        return 15
    if length <= 64 or (case['regime'] in EXTREME and length <= 1100):
        return 9
    return 5 if length <= 1100 else 3


@pytest.mark.parametrize('pattern', PATTERNS, ids=str)
@pytest.mark.parametrize('size', [(1, 1), (3, 5), (5, 1), (1, 4)], ids=str)
def test_reference_is_the_definition(size, pattern):
    inputs = ss2d_inputs(*size, d_state=3, channels=2, pattern=pattern)
    got = ss2d_scan(**inputs, pattern=pattern, backend='reference')
    orders = ALL_ORDERS.get(pattern, pattern)
    want = definition.ss2d_scan(*(v.numpy() for v in inputs.values()), orders)
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('size', [(1, 1), (7, 9), (5, 26)], ids=str)
def test_chunked_form_is_the_reference(size):
    inputs = ss2d_inputs(*size, d_state=3)
    got, want = run(chunked, inputs), run(ss2d_scan_reference, inputs)
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=1e-10, atol=1e-12, msg=name)


@native_only
@pytest.mark.parametrize('case', list(native_cases(FACTORS, small, draws)))
def test_native_is_as_exact_as_eager(case):
    compare_with_eager(case, lambda i, **kw: run(ss2d_scan, i, backend='native', **kw))


def compare_with_eager(case, run_native, **tolerance):
    """Compare ``run_native(inputs, **options)`` with the references over the draws of a case."""
    seeds = range(draws(case))
    case = dict(case)
    height, width = case.pop('size')
    options = {'pattern': case['pattern'], 'out_dtype': Maker(case['dtype']).acc}
    inputs = [ss2d_inputs(height, width, seed=seed, **case) for seed in seeds]
    exact = [run(exact_form(height * width), i, torch.float64, **options) for i in inputs]
    native = [run_native(i, **options) for i in inputs]
    eager = eager_forms(lambda form: [run(form, i, **options) for i in inputs], height * width)
    assert_as_exact_as_eager(native, eager, exact, **tolerance)


def exact_form(length):
    """Return the form that gives the expected results, in float64."""
    return ss2d_scan_reference if length <= 64 else chunked


def eager_forms(results, length):
    """The results of the forms in the inputs' precision, the fast one first.

    The specification steps through the sequence, and so do its rounding errors; for a long one it
    takes its time and is asked only where the chunked form's errors are smaller.
    """
    yield from map(results, [chunked, ss2d_scan_reference][length <= 1000 :])


@native_only
@pytest.mark.slow
@pytest.mark.parametrize(('size', 'd_state'), [((200, 334), 1), ((200, 334), 16), ((50, 84), 256)])
def test_native_on_large_maps(size, d_state):
    inputs = ss2d_inputs(*size, d_state=d_state, channels=3, batch=1, dtype=torch.float32)
    exact = run(chunked, inputs, torch.float64)
    native = run(ss2d_scan, inputs, backend='native')
    assert_as_exact_as_eager([native], [[run(chunked, inputs)]], [exact])


@native_only
@pytest.mark.parametrize('d_state', [1, 16])
def test_long_sequences_of_tiny_decay_stay_finite(d_state):
    inputs = ss2d_inputs(1, 20000, d_state, channels=3, dtype=torch.float32, pattern=(0, 2))
    inputs['A'] = inputs['A'] * 1e-9
    result = run(ss2d_scan, inputs, pattern=(0, 2), backend='native')
    for name, value in result.items():
        assert value.isfinite().all(), name


@native_only
@pytest.mark.parametrize('step', [-1e30, -500.0, -104.0, -95.0, -88.0, -87.0, -30.0, 20.0, 1e6])
def test_extreme_steps_at_the_limit_of_the_type(step):
    """A step near zero must not bring back an input of 1e38."""
    inputs = ss2d_inputs(4, 5, d_state=1, rank=1, channels=17, batch=1, dtype=torch.float32)
    inputs['dt_weight'].zero_()
    inputs['dt_bias'].fill_(step)
    inputs['D'].zero_()
    inputs['x'] = inputs['x'].clamp(-3, 3) * (1e38 if step < -80 else 1.0)
    exact = run(ss2d_scan_reference, inputs, torch.float64)
    native = run(ss2d_scan, inputs, backend='native')
    # A step below the smallest normal number may count as zero; 16 sums what follows from it.
    lost = torch.finfo(torch.float32).tiny * inputs['x'].abs().max().item() * 16
    for name, want in exact.items():
        assert native[name].isfinite().all(), name
        error = (native[name] - want).abs().max().item()
        assert error <= lost + 1e-5 * want.abs().max().item(), name


@native_only
def test_half_precision_map_can_have_a_wide_output():
    inputs = ss2d_inputs(dtype=torch.bfloat16, channels=17)
    wide = ss2d_scan(**inputs, out_dtype=torch.float32)
    narrow = ss2d_scan(**inputs)
    assert (wide.dtype, narrow.dtype) == (torch.float32, torch.bfloat16)
    assert torch.equal(wide.bfloat16(), narrow)


@pytest.mark.parametrize('backend', ['native', 'reference'])
def test_empty_batch(backend):
    if backend == 'native' and not has_kernel('ss2d_scan', 'cpu'):
        pytest.skip('no native kernel')
    inputs = ss2d_inputs(batch=0)
    result = run(ss2d_scan, inputs, backend=backend)
    assert result['out'].shape == inputs['x'].shape
    for name in ('dt_weight', 'dt_bias', 'A', 'D'):
        assert torch.equal(result[f'grad_{name}'], torch.zeros_like(inputs[name])), name


def test_orders_of_a_single_direction():
    """With a decay of one and unit weights the scan is a running sum along the path."""
    x = torch.arange(1.0, 7.0, dtype=torch.float64).view(1, 2, 3, 1)
    zeros = torch.zeros(1, 1, dtype=torch.float64)
    dt_bias = torch.full((1, 1), 30.0, dtype=torch.float64)  # softplus(30) = 30
    proj = torch.tensor([0.0, 1 / 30, 1.0], dtype=torch.float64).expand(1, 2, 3, 1, 3)
    sums = {
        0: [[1, 3, 6], [10, 15, 21]],
        1: [[1, 7, 15], [5, 12, 21]],
        2: [[21, 20, 18], [15, 11, 6]],
        3: [[21, 16, 9], [20, 14, 6]],
    }
    for order, want in sums.items():
        y = ss2d_scan(x, proj, zeros[..., None], dt_bias, zeros[..., None], zeros, (order,))
        torch.testing.assert_close(y[0, ..., 0], torch.tensor(want, dtype=torch.float64))
