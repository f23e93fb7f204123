"""selective_scan against its definition, then the kernels against the reference."""

import functools
import itertools

import numpy as np
import pytest
import torch

from mmvmamba.ops import has_kernel, selective_scan
from mmvmamba.ops.selective_scan import scan_chunked, selective_scan_reference

from . import definition, test_ss2d_scan
from .cases import (
    REGIMES,
    assert_as_exact_as_eager,
    native_cases,
    run,
    selective_inputs,
)

native_only = pytest.mark.skipif(not has_kernel('selective_scan', 'cpu'), reason='no native kernel')
FORMS = ['shared', 'grouped', 'all', 'constant']
FACTORS = {
    'length': [1, 2, 31, 49, 127, 129, 196, 784, 1050, 3136, 4200, 16700],
    'd_state': [1, 2, 8, 16, 17, 256],
    'batch': [1, 3],  # empty ones compute nothing: test_empty
    'channels': [2, 6, 34, 40],
    'B': FORMS,
    'C': FORMS,
    'D': [True, False],
    'z': [True, False],
    'bias': [True, False],
    'softplus': [True, False],
    'layout': ['dense', 'permuted', 'sliced', 'offset'],
    'dtype': [torch.float32, torch.bfloat16, torch.float64],
    'regime': list(REGIMES),
}


def small(case):
    """As in test_ss2d_scan."""
    elements = case['length'] * case['d_state'] * case['batch'] * case['channels']
    return elements <= 1e5 and not (case['length'] > 1100 and case['regime'] == 'dt_far')


def draws(case):
    """How many draws of a case are compared together, see test_ss2d_scan."""
    return test_ss2d_scan.draws(case | {'size': (1, case['length'])})


def reference(form, **inputs):
    return form(**inputs)[0]


chunked = functools.partial(
    reference, functools.partial(selective_scan_reference, scan=scan_chunked)
)
sequential = functools.partial(reference, selective_scan_reference)


def exact_form(length):
    """Return the form that gives the expected results, in float64."""
    return sequential if length <= 64 else chunked


def eager_forms(results, length):
    """The results of the forms in the inputs' precision, see test_ss2d_scan."""
    yield from map(results, [chunked, sequential][length <= 1000 :])


@pytest.mark.parametrize(('B', 'C'), list(itertools.product(FORMS, FORMS)))
def test_reference_is_the_definition(B, C):
    inputs = selective_inputs(length=7, d_state=3, B=B, C=C)
    arrays = [v.numpy() for v in inputs.values()]
    for softplus in (True, False):
        got = selective_scan(
            **inputs, delta_softplus=softplus, return_last_state=True, backend='reference'
        )
        want = definition.selective_scan(*arrays, delta_softplus=softplus)
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a.numpy(), b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('left_out', ['D', 'z', 'delta_bias'])
@pytest.mark.parametrize('backend', ['reference', 'auto'])
def test_optional_inputs_by_the_definition(left_out, backend):
    inputs = selective_inputs(length=7, d_state=3) | {left_out: None}
    arrays = [v if v is None else v.numpy() for v in inputs.values()]
    got = selective_scan(**inputs, backend=backend)
    want, _ = definition.selective_scan(*arrays)
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize('length', [0, 1, 2, 3, 50, 129])
def test_chunked_form_is_the_reference(length):
    inputs = selective_inputs(length=length, d_state=3)
    y, state = selective_scan_reference(**inputs, delta_softplus=True, scan=scan_chunked)
    want, want_state = selective_scan_reference(**inputs, delta_softplus=True)
    torch.testing.assert_close(y, want, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(state, want_state, rtol=1e-10, atol=1e-12)


@native_only
@pytest.mark.parametrize('case', list(native_cases(FACTORS, small, draws)))
def test_native_is_as_exact_as_eager(case):
    compare_with_eager(case, lambda i, **kw: run(selective_scan, i, backend='native', **kw))


def compare_with_eager(case, run_native, **tolerance):
    """As in test_ss2d_scan."""
    inputs = [selective_inputs(**case, seed=seed) for seed in range(draws(case))]
    # The z of a long sequence times a number at the type's limit overflows in the exact result
    # too; places where it does are not compared.
    options = {'delta_softplus': case['softplus']}
    exact = [run(exact_form(case['length']), i, torch.float64, **options) for i in inputs]
    native = [run_native(i, **options) for i in inputs]
    eager = eager_forms(lambda form: [run(form, i, **options) for i in inputs], case['length'])
    assert_as_exact_as_eager(native, eager, exact, **tolerance)


@native_only
@pytest.mark.slow
@pytest.mark.parametrize(('length', 'd_state'), [(66800, 1), (66800, 16), (4200, 256)])
def test_native_on_long_sequences(length, d_state):
    inputs = selective_inputs(length, d_state, 1, 4, dtype=torch.float32)
    options = {'delta_softplus': True}
    exact = run(chunked, inputs, torch.float64, **options)
    eager = run(chunked, inputs, **options)
    native = run(selective_scan, inputs, backend='native', **options)
    assert_as_exact_as_eager([native], [[eager]], [exact])


@native_only
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize('length', [0, 1, 65, 200])
def test_last_state(length, dtype):
    inputs = selective_inputs(length=length, d_state=5, channels=18, dtype=dtype)
    options = {'delta_softplus': True, 'return_last_state': True}
    _, got = selective_scan(**inputs, **options, backend='native')
    doubles = {k: v.double() for k, v in inputs.items()}
    _, want = selective_scan(**doubles, **options, backend='reference')
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)


def test_last_state_has_no_gradient():
    inputs = {k: v.requires_grad_() for k, v in selective_inputs().items()}
    y, state = selective_scan(**inputs, return_last_state=True)
    assert y.requires_grad
    assert not state.requires_grad


@native_only
@pytest.mark.parametrize(('B', 'C'), [('shared', 'grouped'), ('grouped', 'all'), ('all', 'shared')])
def test_different_groups_of_B_and_C(B, C):
    inputs = selective_inputs(length=70, channels=6, B=B, C=C)
    got = run(selective_scan, inputs, backend='native')
    want = run(selective_scan, inputs, backend='reference')
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=1e-9, atol=1e-11, msg=name)


@pytest.mark.parametrize('backend', ['native', 'reference'])
@pytest.mark.parametrize('form', ['shared', 'grouped', 'constant'])
@pytest.mark.parametrize('empty', ['batch', 'channels', 'length'])
def test_empty(empty, form, backend):
    """Nothing to compute: an empty output, and gradients of zeros for every input."""
    if backend == 'native' and not has_kernel('selective_scan', 'cpu'):
        pytest.skip('no native kernel')
    inputs = selective_inputs(B=form, C=form, **{empty: 0})
    leaves = {k: v.requires_grad_() for k, v in inputs.items()}
    y, state = selective_scan(**leaves, return_last_state=True, backend=backend)
    y.sum().backward()
    assert y.shape == inputs['u'].shape
    assert torch.equal(state, torch.zeros(state.shape, dtype=state.dtype))
    for name, value in leaves.items():
        assert torch.equal(value.grad, torch.zeros_like(value)), name


@native_only
def test_out_of_memory_is_named():
    """A failed allocation is reported as such, although the stable ABI does not say why."""
    batch, length = 1 << 20, 1 << 20
    rows = torch.zeros(length).expand(batch, 4, length)
    B = torch.zeros(length).expand(batch, 1, 1, length)
    with pytest.raises(RuntimeError, match=r'Out of memory\. .* shape \(1048576, 4, 1048576\)'):
        selective_scan(rows, rows, torch.zeros(4, 1), B, B, backend='native')
