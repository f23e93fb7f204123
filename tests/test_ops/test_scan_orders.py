"""Registered scan orders: their positions, and the scan of a gathered map."""

import logging

import numpy as np
import pytest
import torch
from torch.library import opcheck
from torch.utils.flop_counter import FlopCounterMode

from mmvmamba.ops import (
    SCAN_PATTERNS,
    decompositions,
    has_kernel,
    register_scan_order,
    scan_orders,
    ss2d_scan,
)
from mmvmamba.ops.scan_orders import reorder, resolve_pattern, scan_positions
from mmvmamba.ops.ss2d_scan import ss2d_scan_reference

from . import definition
from .cases import ALL_ORDERS, run, ss2d_inputs

MIXED = (0, 'snake', 'local_window_reversed', 'column_reversed', 'snake_transposed_reversed')
PATTERNS = [*definition.PATHS, ('hilbert',), MIXED]
native_only = pytest.mark.skipif(not has_kernel('ss2d_scan', 'cpu'), reason='no native kernel')


@pytest.fixture
def registry(monkeypatch):
    """Restore the registered orders after a test."""
    monkeypatch.setattr(scan_orders, '_PATHS', {**scan_orders._PATHS})
    saved = dict(SCAN_PATTERNS)
    yield
    SCAN_PATTERNS.clear()
    SCAN_PATTERNS.update(saved)
    scan_positions.cache_clear()


def inputs_of(pattern, height=3, width=5, **options):
    return ss2d_inputs(height, width, pattern=SCAN_PATTERNS.get(pattern, pattern), **options)


# ---- positions ----


@pytest.mark.parametrize('variant', ['', '_transposed', '_reversed', '_transposed_reversed'])
@pytest.mark.parametrize('size', [(1, 1), (1, 5), (4, 1), (3, 8), (16, 9), (8, 8)], ids=str)
@pytest.mark.parametrize('name', list(definition.PATHS))
def test_positions_are_their_definition(name, size, variant):
    order = name + variant
    want = [i * size[1] + j for i, j in definition.positions(order, *size)]
    found = scan_positions(order, *size)
    assert found.tolist() == want
    assert scan_positions(order, *size, inverse=True)[found].tolist() == list(range(len(want)))


@pytest.mark.parametrize(('name', 'size'), [('snake', (5, 7)), ('hilbert', (16, 16))])
def test_steps_go_to_neighbors(name, size):
    y, x = scan_positions(name, *size) // size[1], scan_positions(name, *size) % size[1]
    assert (y.diff().abs() + x.diff().abs()).eq(1).all()


@pytest.mark.parametrize('dtype', [torch.int64, torch.float64], ids=str)
def test_reorder_and_back(dtype):
    x = torch.arange(2 * 3 * 5 * 2).view(2, 3, 5, 2).to(dtype)
    moved = reorder(x, 'diagonal')
    path = definition.positions('diagonal', 3, 5)
    assert torch.equal(moved.flatten(1, 2), torch.stack([x[:, i, j] for i, j in path], 1))
    assert torch.equal(reorder(moved, 'diagonal', inverse=True), x)


def test_opcheck_reorder():
    x = torch.randn(2, 3, 5, 4, requires_grad=True)
    for inverse in (False, True):
        opcheck(torch.ops.mmvmamba.reorder.default, (x, 'snake_transposed', inverse))


# ---- scans ----


@pytest.mark.parametrize('backend', ['auto', 'reference'])
@pytest.mark.parametrize('size', [(1, 1), (3, 5), (5, 1)], ids=str)
@pytest.mark.parametrize('pattern', PATTERNS, ids=str)
def test_scan_is_its_definition(pattern, size, backend):
    inputs = inputs_of(pattern, *size, d_state=3, channels=2)
    got = ss2d_scan(**inputs, pattern=pattern, backend=backend)
    want = definition.ss2d_scan(*(v.numpy() for v in inputs.values()), resolve_pattern(pattern))
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-10, atol=1e-10)


@native_only
@pytest.mark.parametrize('size', [(7, 9), (1, 26)], ids=str)
@pytest.mark.parametrize('pattern', ['hilbert', MIXED], ids=str)
def test_gradients_are_the_reference(pattern, size):
    inputs = inputs_of(pattern, *size)
    got = run(ss2d_scan, inputs, pattern=pattern, backend='native')
    want = run(ss2d_scan_reference, inputs, pattern=pattern)
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=1e-9, atol=1e-10, msg=name)


@pytest.mark.usefixtures('triton_on_cpu')
def test_triton_kernels():
    pattern = ('diagonal', 3, 'diagonal_reversed')
    inputs = ss2d_inputs(3, 5, batch=1, channels=3, pattern=pattern, dtype=torch.float32)
    got = run(ss2d_scan, inputs, pattern=pattern, backend='triton')
    want = run(ss2d_scan_reference, inputs, torch.float64, pattern=pattern)
    for name in want:
        torch.testing.assert_close(got[name].double(), want[name], rtol=1e-5, atol=1e-5, msg=name)


def test_gradcheck_of_the_reference():
    inputs = inputs_of('snake', 2, 3, channels=2, batch=1, d_state=1, rank=1)
    leaves = [v.requires_grad_() for v in inputs.values()]

    def scan(*tensors):
        return ss2d_scan(*tensors, pattern='snake', backend='reference')

    assert torch.autograd.gradcheck(scan, leaves)
    assert torch.autograd.gradgradcheck(scan, leaves)


def test_functional_gradient_and_forward_mode():
    inputs = inputs_of('diagonal')
    x, *others = inputs.values()

    def total(value):
        return ss2d_scan(value, *others, pattern='diagonal').sum()

    gradient = torch.func.grad(total)(x)
    _, slope = torch.func.jvp(total, (x,), (torch.ones_like(x),))
    torch.testing.assert_close(slope, gradient.sum())
    leaf = x.clone().requires_grad_()
    (want,) = torch.autograd.grad(total(leaf), leaf)
    torch.testing.assert_close(gradient, want)


def test_gradients_after_inference_mode():
    scan_positions.cache_clear()
    inputs = inputs_of('hilbert', 5, 4)
    with torch.inference_mode():
        ss2d_scan(**inputs, pattern='hilbert')
    x, *others = inputs.values()

    def total(value):
        return ss2d_scan(value, *others, pattern='hilbert').sum()

    assert torch.func.grad(total)(x).isfinite().all()
    assert run(ss2d_scan, inputs, pattern='hilbert')['grad_x'].isfinite().all()


@pytest.mark.usefixtures('registry')
def test_the_function_runs_once_for_a_size():
    calls = []

    def rows(height, width):
        calls.append((height, width))
        return range(height * width)

    register_scan_order('lines', rows)
    for _ in range(2):
        run(ss2d_scan, inputs_of('lines', 2, 3), pattern='lines')
    assert sorted(calls) == [(2, 3), (3, 2)]


@native_only
@pytest.mark.parametrize('pattern', list(ALL_ORDERS))
def test_names_of_the_kernels_orders(pattern):
    inputs = ss2d_inputs(4, 5, dtype=torch.float32)
    names = ('row', 'column', 'row_reversed', 'column_reversed')
    named = [names[order] for order in ALL_ORDERS[pattern]]
    want = ss2d_scan(**inputs, pattern=pattern)
    assert torch.equal(ss2d_scan(**inputs, pattern=named), want)


@pytest.mark.usefixtures('registry')
@pytest.mark.parametrize(
    'kind',
    [
        list,
        torch.tensor,
        lambda values: np.array(values, dtype=np.uint16),
        lambda values: np.array(values[::-1])[::-1],
    ],
    ids=['list', 'tensor', 'uint16', 'reversed view'],
)
def test_registered_rows_are_the_cross_scan(kind):
    register_scan_order('lines', lambda height, width: kind(list(range(height * width))))
    inputs = ss2d_inputs(4, 5)
    got, want = ss2d_scan(**inputs, pattern='lines'), ss2d_scan(**inputs, pattern='cross')
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@native_only
def test_sum_is_float32_and_deterministic():
    inputs = inputs_of(MIXED, 6, 7, dtype=torch.bfloat16)
    exact = ss2d_scan_reference(*(v.double() for v in inputs.values()), pattern=MIXED)
    got = ss2d_scan(**inputs, pattern=MIXED, out_dtype=torch.float32)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), exact, rtol=1e-3, atol=1e-4)
    assert torch.equal(ss2d_scan(**inputs, pattern=MIXED), got.bfloat16())
    runs = [run(ss2d_scan, inputs, pattern=MIXED) for _ in range(2)]
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


@native_only
def test_compiled_and_exported_for_any_size():
    _, *others = inputs_of('hilbert', 4, 6, dtype=torch.float32).values()

    class Core(torch.nn.Module):
        def forward(self, x, proj):
            return ss2d_scan(x, proj, *others[1:], pattern='hilbert')

    core, auto = Core(), torch.export.Dim.AUTO
    compiled = torch.compile(core, backend='aot_eager', dynamic=True, fullgraph=True)
    sizes = [(4, 6), (5, 3)]
    first, second = (
        [inputs_of('hilbert', *size, dtype=torch.float32)[name] for name in ('x', 'proj')]
        for size in sizes
    )
    program = torch.export.export(core, tuple(first), dynamic_shapes=({1: auto, 2: auto},) * 2)
    for inputs in (first, second):
        want = core(*inputs)
        torch.testing.assert_close(compiled(*inputs), want)
        torch.testing.assert_close(program.module()(*inputs), want)


@native_only
def test_program_of_a_fixed_size_needs_no_op():
    x, proj, *others = inputs_of('hilbert', 4, 6, dtype=torch.float32).values()

    class Core(torch.nn.Module):
        def forward(self, x, proj):
            return ss2d_scan(x, proj, *others, pattern='hilbert')

    program = torch.export.export(Core(), (x, proj)).run_decompositions(decompositions())
    assert not [n for n in program.graph.nodes if 'mmvmamba' in str(n.target)]
    torch.testing.assert_close(program.module()(x, proj), Core()(x, proj))


@pytest.mark.parametrize('backend', ['auto', 'reference'])
def test_flops_are_those_of_the_cross_scan(backend):
    counts = []
    for pattern in ('cross', 'hilbert'):
        with FlopCounterMode(display=False) as counter:
            ss2d_scan(**inputs_of(pattern), pattern=pattern, backend=backend)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


@native_only
def test_gathering_is_logged_once(caplog):
    scan_orders.warn_gathered.cache_clear()
    with caplog.at_level(logging.WARNING, 'mmvmamba'):
        for _ in range(2):
            ss2d_scan(**inputs_of('snake'), pattern='snake')
    (record,) = caplog.records
    assert 'snake' in record.getMessage()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason='there is no GPU')
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
def test_gpu(dtype):
    inputs = inputs_of(MIXED, 14, 9, dtype=dtype)
    want = run(ss2d_scan_reference, inputs, torch.float64, pattern=MIXED)
    got = run(ss2d_scan, {k: v.cuda() for k, v in inputs.items()}, pattern=MIXED)
    tolerance = 1e-4 if dtype == torch.float32 else 5e-2
    for name in want:
        scale = want[name].abs().max()
        error = (got[name].cpu() - want[name]).abs().max()
        assert error <= tolerance * scale, name


# ---- registration ----


@pytest.mark.parametrize(
    ('name', 'fn', 'error', 'message'),
    [
        (3, list, TypeError, 'name must be a str'),
        ('spiral', [1, 2], TypeError, 'fn must be a function'),
        ('two words', list, ValueError, 'name must be an identifier'),
        ('spiral_reversed', list, ValueError, 'does not end in'),
        ('spiral_transposed', list, ValueError, 'does not end in'),
        ('cross', list, ValueError, 'must not be one of'),
        ('cascade', list, ValueError, 'must not be one of'),
        ('row', list, ValueError, 'must not be one of'),
        ('snake', list, ValueError, 'force=True'),
    ],
)
def test_bad_registration(name, fn, error, message):
    for force in (False,) if name == 'snake' else (False, True):
        with pytest.raises(error, match=message):
            register_scan_order(name, fn, force=force)


@pytest.mark.usefixtures('registry')
def test_force_replaces_an_order():
    before = scan_positions('snake', 2, 3).tolist()
    register_scan_order('snake', lambda height, width: range(height * width), force=True)
    assert before != scan_positions('snake', 2, 3).tolist() == list(range(6))


@pytest.mark.usefixtures('registry')
@pytest.mark.parametrize(
    'found',
    [
        None,
        'abc',
        [0, 1, 2, 3, 4],
        [0, 1, 2, 3, 4, 6],
        [0, 0, 1, 2, 3, 4],
        [[0, 1, 2], [3, 4, 5]],
        torch.arange(6.0),
        torch.tensor([True, False]),
    ],
    ids=str,
)
def test_not_a_permutation(found):
    register_scan_order('wrong', lambda height, width: found)
    with pytest.raises(ValueError, match="scan order 'wrong' must return .* 0 to 5 once for H=2"):
        ss2d_scan(**inputs_of('wrong', 2, 3), pattern='wrong')


@pytest.mark.parametrize(
    ('pattern', 'error', 'message'),
    [
        ('spiral', ValueError, 'register_scan_order adds one'),
        ('row', ValueError, r"write \('row',\) for a scan of one direction"),
        ('snake_reversed', ValueError, r"write \('snake_reversed',\)"),
        (('row', 'spiral'), ValueError, 'hilbert, optionally followed by _transposed'),
        (np.array([0, 1]), TypeError, 'be a str or a sequence'),
        ((0, 4), ValueError, 'at least one of'),
        ((True,), ValueError, 'at least one of'),
        ((), ValueError, 'at least one of'),
        (('snake_reversed_reversed',), ValueError, 'at least one of'),
        (7, TypeError, 'be a str or a sequence'),
    ],
    ids=str,
)
def test_bad_patterns(pattern, error, message):
    with pytest.raises(error, match=f'^pattern must .*{message}'):
        resolve_pattern(pattern)
