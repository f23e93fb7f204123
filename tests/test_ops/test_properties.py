"""Any shape, dtype, memory layout and flag: the kernels are the reference."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmvmamba.ops import cross_merge, cross_scan, has_kernel, selective_scan, ss2d_scan

from .cases import run, selective_inputs, ss2d_inputs

native_only = pytest.mark.skipif(not has_kernel('ss2d_scan', 'cpu'), reason='no native kernel')
few = settings(deadline=None, derandomize=True, max_examples=40, database=None)
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float64])
LAYOUTS = st.sampled_from(['dense', 'permuted', 'sliced', 'offset'])
PATTERNS = st.one_of(
    st.sampled_from(['cross', 'unidirectional', 'bidirectional']),
    st.lists(st.integers(0, 3), min_size=1, max_size=5).map(tuple),
)
# Of the largest value: what a few roundings to the type in another order can make.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float64: 1e-11}


def assert_same(got, want, dtype):
    assert got.keys() == want.keys()
    for name, value in want.items():
        other = got[name]
        assert (other.shape, other.dtype) == (value.shape, value.dtype), name
        if value.numel():
            error = (other.double() - value.double()).abs().max()
            assert error <= TOLERANCE[dtype] * value.double().abs().max().clamp(min=1e-3), name


@native_only
@few
@given(
    sizes=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    d_state=st.integers(1, 20),
    rank=st.integers(1, 9),
    batch=st.integers(0, 3),
    channels=st.integers(1, 35),
    dtype=DTYPES,
    layout=LAYOUTS,
    pattern=PATTERNS,
    seed=st.integers(0, 2**16),
)
def test_ss2d_scan(sizes, d_state, rank, batch, channels, dtype, layout, pattern, seed):
    inputs = ss2d_inputs(
        *sizes, d_state, rank, batch, channels, dtype, pattern, layout=layout, seed=seed
    )
    got = run(ss2d_scan, inputs, pattern=pattern, backend='native')
    want = run(ss2d_scan, inputs, pattern=pattern, backend='reference')
    assert_same(got, want, dtype)


FORMS = st.sampled_from(['shared', 'grouped', 'all', 'constant'])


@native_only
@few
@given(
    length=st.integers(0, 100),
    d_state=st.integers(1, 20),
    batch=st.integers(0, 3),
    channels=st.integers(1, 18).map(lambda n: 2 * n),
    forms=st.tuples(FORMS, FORMS),
    given_inputs=st.tuples(*[st.booleans()] * 4),
    dtype=DTYPES,
    layout=LAYOUTS,
    seed=st.integers(0, 2**16),
)
def test_selective_scan(length, d_state, batch, channels, forms, given_inputs, dtype, layout, seed):
    D, z, bias, softplus = given_inputs
    inputs = selective_inputs(
        length, d_state, batch, channels, *forms, D, z, bias, softplus, dtype, layout=layout,
        seed=seed,
    )  # fmt: skip
    options = {'delta_softplus': softplus}
    got = run(selective_scan, inputs, backend='native', **options)
    want = run(selective_scan, inputs, backend='reference', **options)
    assert_same(got, want, dtype)


@few
@given(size=st.tuples(*[st.integers(1, 6)] * 4), pattern=PATTERNS)
def test_cross_merge_undoes_cross_scan(size, pattern):
    x = torch.randn(size, dtype=torch.float64)
    sequences = cross_scan(x, pattern)
    merged = cross_merge(sequences, *size[2:], pattern)
    torch.testing.assert_close(merged, x * sequences.shape[1])


@native_only
@few
@given(size=st.tuples(st.integers(1, 7), st.integers(1, 7)), d_state=st.integers(1, 4))
def test_transposing_the_map_swaps_rows_and_columns(size, d_state):
    inputs = ss2d_inputs(*size, d_state, pattern=(0, 3))
    turned = {k: v.transpose(1, 2) if k in ('x', 'proj') else v for k, v in inputs.items()}
    torch.testing.assert_close(
        ss2d_scan(**turned, pattern=(1, 2)).transpose(1, 2), ss2d_scan(**inputs, pattern=(0, 3))
    )
