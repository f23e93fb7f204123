"""selective_scan against its definition, then the kernels against the reference."""

import functools
import itertools

import numpy as np
import pytest
import torch

from mmvmamba.ops import has_kernel, selective_scan
from mmvmamba.ops.selective_scan import scan_chunked, selective_scan_reference

from . import definition
from .cases import REGIMES, assert_as_exact_as_eager, case_id, pairwise, run, selective_inputs

native_only = pytest.mark.skipif(not has_kernel('selective_scan', 'cpu'), reason='no native kernel')
FORMS = ['shared', 'grouped', 'all', 'constant']
FACTORS = {
    'length': [0, 1, 2, 31, 49, 127, 129, 196, 784, 1050, 3136, 4200, 16700],
    'd_state': [1, 2, 8, 16, 17, 256],
    'batch': [0, 1, 3],
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


def _small(case):
    return case['length'] * case['d_state'] * case['batch'] * case['channels'] <= 1e5


def reference(delta_softplus, length, **inputs):
    scan = {'scan': scan_chunked} if length > 64 else {}
    return selective_scan_reference(**inputs, delta_softplus=delta_softplus, **scan)[0]


@pytest.mark.parametrize(('B', 'C'), itertools.product(FORMS, FORMS))
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
    chunked = functools.partial(selective_scan_reference, scan=scan_chunked)
    y, state = chunked(**inputs, delta_softplus=True)
    want, want_state = selective_scan_reference(**inputs, delta_softplus=True)
    torch.testing.assert_close(y, want, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(state, want_state, rtol=1e-10, atol=1e-12)


@native_only
@pytest.mark.parametrize('case', pairwise(FACTORS, _small), ids=case_id)
def test_native_is_as_exact_as_eager(case):
    inputs = selective_inputs(**case)
    # The z of a long sequence times a number at the type's limit overflows in the exact result
    # too; places where it does are not compared.
    options = {'delta_softplus': case['softplus']}
    exact = run(reference, inputs, torch.float64, length=case['length'], **options)
    eager = run(reference, inputs, length=case['length'], **options)
    native = run(selective_scan, inputs, backend='native', **options)
    assert_as_exact_as_eager(native, eager, exact)


@native_only
@pytest.mark.slow
@pytest.mark.parametrize(('length', 'd_state'), [(66800, 1), (66800, 16), (4200, 256)])
def test_native_on_long_sequences(length, d_state):
    inputs = selective_inputs(length, d_state, 1, 4, dtype=torch.float32)
    options = {'delta_softplus': True}
    exact = run(reference, inputs, torch.float64, length=length, **options)
    eager = run(reference, inputs, length=length, **options)
    native = run(selective_scan, inputs, backend='native', **options)
    assert_as_exact_as_eager(native, eager, exact)


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
