"""The Triton ops as PyTorch knows them, and what the public functions do around them.

How exact the kernels are is the subject of test_triton/. Triton's interpreter takes about 0.1 s for
a direction of a sample, forward and backward: here are few of both.
"""

import functools
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch.library import opcheck

from mmvmamba.nn import SS2D
from mmvmamba.ops import decompositions, selective_scan, ss2d_scan

from .cases import run, selective_inputs, ss2d_inputs

pytestmark = pytest.mark.usefixtures('triton_on_cpu')
PATTERN = (3, 0)
ORDERS = list(PATTERN)
map_inputs = functools.partial(ss2d_inputs, batch=1, pattern=PATTERN)
sequence_inputs = functools.partial(selective_inputs, batch=1, channels=2)
OPS = {
    'ss2d_scan': (functools.partial(ss2d_scan, pattern=PATTERN), map_inputs),
    'selective_scan': (selective_scan, sequence_inputs),
}
BOTH = pytest.mark.parametrize('op', list(OPS))
LOOSE = dict(atol=1e-2, rtol=1e-2)
DTYPES = pytest.mark.parametrize('dtype', [torch.float32, torch.float16], ids=str)
FORMS = pytest.mark.parametrize(
    'options',
    [
        dict(B='shared', C='constant'),
        dict(B='grouped', C='all', D=False),
        dict(B='constant', C='constant', z=False, bias=False),
    ],
    ids=str,
)


def of(op):
    return getattr(torch.ops.mmvmamba, f'{op}_triton').default


def backward_of(op):
    return getattr(torch.ops.mmvmamba, f'{op}_triton_backward').default


def leaves(inputs):
    return [v if v is None else v.detach().requires_grad_() for v in inputs]


def op_inputs(**options):
    """Tensors of the 1-D op itself: B and C in groups or constant, no gate."""
    inputs = sequence_inputs(z=False, **options)
    del inputs['z']
    return [v.unsqueeze(1) if k in 'BC' and v.dim() == 3 else v for k, v in inputs.items()]


def compare(got, want):
    assert got.keys() == want.keys()
    for name, value in got.items():
        torch.testing.assert_close(value, want[name], msg=lambda m, n=name: f'{n}: {m}', **LOOSE)


# ---- the ops ----


@DTYPES
@pytest.mark.parametrize('batch', [0, 1])
def test_opcheck_ss2d_scan(batch, dtype):
    inputs = map_inputs(batch=batch, dtype=dtype, layout='permuted').values()
    for out_dtype in {dtype, torch.float32}:
        opcheck(of('ss2d_scan'), (*leaves(inputs), ORDERS, out_dtype), **LOOSE)
        grad = torch.ones(batch, 3, 5, 5, dtype=out_dtype)
        opcheck(backward_of('ss2d_scan'), (grad, *inputs, ORDERS), **LOOSE)


OPCHECKS = [
    (0, True, torch.float16),
    (0, False, torch.float16),
    (1, True, torch.float32),
    pytest.param(1, False, torch.float16, marks=pytest.mark.slow),
    *(
        pytest.param(2, given, dtype, marks=pytest.mark.slow)
        for given, dtype in itertools.product([True, False], [torch.float32, torch.float16])
    ),
]


@pytest.mark.parametrize(('batch', 'given', 'dtype'), OPCHECKS, ids=str)
def test_opcheck_selective_scan(batch, given, dtype):
    form = 'grouped' if given else 'constant'
    inputs = op_inputs(batch=batch, C=form, D=given, bias=given, dtype=dtype, layout='permuted')
    inputs = [v.float() if v is not None and v.dim() == 2 else v for v in inputs]
    inputs[3] = inputs[3].expand_as(inputs[4]) if given else inputs[3]
    for out_dtype in {dtype, torch.float32}:
        opcheck(of('selective_scan'), (*leaves(inputs), True, out_dtype), **LOOSE)
        grad = torch.ones(batch, 2, 9, dtype=out_dtype)
        opcheck(backward_of('selective_scan'), (grad, *inputs, True), **LOOSE)


def grouped(length=9):
    """Return arguments of the 1-D op by name, in float32."""
    names = ('u', 'delta', 'A', 'B', 'C', 'D', 'delta_bias')
    inputs = op_inputs(length=length, batch=2, B='grouped', C='grouped', dtype=torch.float32)
    return dict(zip(names, inputs, strict=True), delta_softplus=True)


BAD_CALLS = [
    ('ss2d_scan', 'orders', [], ValueError, 'pattern must'),
    ('ss2d_scan', 'orders', [0, 1, 2, 7], ValueError, 'pattern must'),
    ('ss2d_scan', 'orders', [0, 1, 2], ValueError, 'dt_weight must'),
    ('ss2d_scan', 'x', torch.zeros(3), ValueError, 'x must'),
    ('ss2d_scan', 'D', torch.zeros(3), ValueError, 'D must'),
    ('ss2d_scan', 'grad_y', torch.zeros(3), ValueError, 'grad_y must'),
    ('ss2d_scan', 'out_dtype', torch.float64, TypeError, 'out_dtype must'),
    ('ss2d_scan', 'D', torch.zeros(2, 5).half(), TypeError, 'D must be torch.float32, but'),
    ('ss2d_scan', 'grad_y', torch.zeros(1, 3, 5, 5).double(), TypeError, 'grad_y must be'),
    ('selective_scan', 'u', torch.zeros(3), ValueError, 'u must'),
    ('selective_scan', 'B', torch.zeros(2, 2, 9), ValueError, 'B and C must'),
    ('selective_scan', 'C', torch.zeros(2, 1, 2, 9), ValueError, 'same number of groups'),
    ('selective_scan', 'delta_bias', torch.zeros(3), ValueError, 'delta_bias must'),
    ('selective_scan', 'grad_out', torch.zeros(3), ValueError, 'grad_out must'),
    ('selective_scan', 'out_dtype', torch.float64, TypeError, 'out_dtype must'),
]


@pytest.mark.parametrize(('op', 'name', 'value', 'error', 'message'), BAD_CALLS)
def test_direct_calls_are_checked(op, name, value, error, message):
    if op == 'ss2d_scan':
        inputs = map_inputs(dtype=torch.float32) | {'orders': ORDERS}
        grad = {'grad_y': inputs['x']}
    else:
        inputs = grouped()
        grad = {'grad_out': inputs['u']}
    calls = [(of(op), inputs | {'out_dtype': torch.float32}), (backward_of(op), inputs | grad)]
    for call, arguments in calls:
        if name in arguments:
            with pytest.raises(error, match=message):
                call(**arguments | {name: value})


@BOTH
def test_direct_calls_where_the_kernels_cannot_run(op, monkeypatch):
    monkeypatch.setattr('mmvmamba.ops.triton.interprets', lambda: False)
    function, make = OPS[op]
    message = f"backend='triton' cannot run {op} on cpu: a GPU is required"
    with pytest.raises(RuntimeError, match=message):
        function(**make(dtype=torch.float32), backend='triton')
    arguments = grouped()
    if op == 'ss2d_scan':
        arguments = map_inputs(dtype=torch.float32) | {'orders': ORDERS}
    with pytest.raises(RuntimeError, match=message):
        of(op)(**arguments, out_dtype=torch.float32)


# ---- the public functions ----


@DTYPES
@pytest.mark.parametrize('wide', [False, True])
@pytest.mark.parametrize('pattern', ['cross', (3, 0)], ids=str)
def test_ss2d_scan_is_the_reference(pattern, wide, dtype):
    inputs = map_inputs(pattern=pattern, dtype=dtype, layout='sliced')
    options = dict(pattern=pattern, out_dtype=torch.float32 if wide else None)
    got = run(ss2d_scan, inputs, **options, backend='triton')
    assert got['out'].dtype == (torch.float32 if wide else dtype)
    compare(got, run(ss2d_scan, inputs, **options, backend='reference'))


@DTYPES
@FORMS
@pytest.mark.parametrize('softplus', [True, False])
def test_selective_scan_is_the_reference(softplus, options, dtype):
    inputs = sequence_inputs(**options, softplus=softplus, dtype=dtype, layout='sliced')
    got = run(selective_scan, inputs, delta_softplus=softplus, backend='triton')
    assert got['out'].dtype == dtype
    compare(got, run(selective_scan, inputs, delta_softplus=softplus, backend='reference'))


def test_the_gate_multiplies_in_float32():
    """The result is rounded once, after the gate."""
    inputs = sequence_inputs(dtype=torch.float16)
    got = selective_scan(**inputs, delta_softplus=True, backend='triton')
    z = inputs.pop('z')
    inputs |= {name: inputs[name].unsqueeze(1) for name in 'BC'}
    y, _ = of('selective_scan')(**inputs, delta_softplus=True, out_dtype=torch.float32)
    want = (y * F.silu(z.float())).half()
    assert torch.equal(got, want)


@DTYPES
@pytest.mark.parametrize('length', [0, 9])
def test_last_state(length, dtype):
    inputs = selective_inputs(length=length, dtype=dtype)
    options = dict(delta_softplus=True, return_last_state=True)
    leaf = inputs['u'].requires_grad_()
    _, got = selective_scan(**inputs, **options, backend='triton')
    _, want = selective_scan(**inputs, **options, backend='reference')
    assert got.dtype == torch.float32 and not got.requires_grad and leaf.requires_grad
    torch.testing.assert_close(got, want, **LOOSE)


@pytest.mark.parametrize('form', ['shared', 'grouped', 'constant'])
@pytest.mark.parametrize('empty', ['batch', 'channels', 'length'])
def test_empty_selective_scan(empty, form):
    """Nothing to compute: an empty output, and gradients of zeros for every input."""
    inputs = selective_inputs(B=form, C=form, dtype=torch.float32, **{empty: 0})
    values = {k: v.requires_grad_() for k, v in inputs.items()}
    y, state = selective_scan(**values, return_last_state=True, backend='triton')
    y.sum().backward()
    assert y.shape == inputs['u'].shape and torch.equal(state, torch.zeros_like(state))
    for name, value in values.items():
        assert torch.equal(value.grad, torch.zeros_like(value)), name


def test_empty_ss2d_scan():
    inputs = ss2d_inputs(batch=0, dtype=torch.float32)
    result = run(ss2d_scan, inputs, backend='triton')
    assert result['out'].shape == inputs['x'].shape
    for name, value in inputs.items():
        assert torch.equal(result[f'grad_{name}'], torch.zeros_like(value)), name


@BOTH
def test_gradients_of_a_single_input_and_of_another_layout(op):
    function, make = OPS[op]
    inputs = make(dtype=torch.float32)
    want = run(function, inputs, backend='triton')
    for name in inputs:
        leaf = inputs[name].detach().requires_grad_()
        y = function(**inputs | {name: leaf}, backend='triton')
        grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        grad = (grad * 0.1).to(torch.bfloat16).float()
        y.backward(grad.movedim(-1, 0).contiguous().movedim(0, -1))
        got = leaf.grad.double()
        torch.testing.assert_close(got, want[f'grad_{name}'].double(), rtol=1e-4, atol=1e-5)


@BOTH
def test_gradients_are_tensors_of_their_own(op):
    function, make = OPS[op]
    forms = {} if op == 'ss2d_scan' else dict(B='grouped', C='grouped')
    inputs = {k: v.requires_grad_() for k, v in make(dtype=torch.float32, **forms).items()}
    y = function(**inputs, backend='triton')
    grads = torch.autograd.grad(y.sum(), list(inputs.values()))
    assert not any(grad._is_view() for grad in grads)
    owners = {v.untyped_storage().data_ptr() for v in (*grads, *inputs.values(), y)}
    assert len(owners) == 2 * len(inputs) + 1


@BOTH
def test_double_backward_is_a_clear_error(op):
    function, make = OPS[op]
    values = leaves(make(dtype=torch.float32).values())
    y = function(*values, backend='triton')
    (grad,) = torch.autograd.grad(y.sum(), values[0], create_graph=True)
    with pytest.raises(RuntimeError, match=f'{op}_triton_backward does not support second'):
        grad.sum().backward()


@BOTH
def test_functional_gradients_are_refused(op):
    function, make = OPS[op]
    first, *rest = make(dtype=torch.float32).values()
    with pytest.raises(RuntimeError, match='no rule for torch.func.grad'):
        torch.func.grad(lambda value: function(value, *rest, backend='triton').sum())(first)


@BOTH
def test_float64_is_refused(op):
    function, make = OPS[op]
    message = 'take float32, float16, bfloat16, not torch.float64'
    with pytest.raises(RuntimeError, match=message):
        function(**make(), backend='triton')


@BOTH
@pytest.mark.filterwarnings('ignore:There is a performance drop')
def test_vmap_maps_over_samples(op):
    function, make = OPS[op]
    samples = [make(seed=seed, batch=1, dtype=torch.float32) for seed in range(2)]
    names = list(samples[0])
    stacked = [torch.stack([s[name] for s in samples]) for name in names[:2]]
    shared = [samples[0][name] for name in names[2:]]
    got = torch.func.vmap(lambda a, b: function(a, b, *shared, backend='triton'))(*stacked)
    for index, y in enumerate(got):
        want = function(*(value[index] for value in stacked), *shared, backend='triton')
        torch.testing.assert_close(y, want)


def test_autocast():
    torch.manual_seed(0)
    layer = SS2D(16, d_state=2, backend='triton')
    x = torch.randn(1, 4, 5, 16)
    want = layer(x).detach()
    with torch.autocast('cpu', dtype=torch.float16):
        y = layer(x)
        y.float().sum().backward()
    assert y.dtype == torch.float16
    assert (y - want).norm() < 0.02 * want.norm()
    assert all(p.grad.dtype == torch.float32 for p in layer.parameters())


@pytest.mark.parametrize(
    'training', [True, pytest.param(False, marks=pytest.mark.slow)], ids=['training', 'inference']
)
def test_one_compilation_serves_all_map_sizes(training):
    torch._dynamo.reset()
    layer = SS2D(16, d_state=1, backend='triton')
    compiled = torch.compile(layer, backend='aot_eager', fullgraph=True, dynamic=True)
    for i, size in enumerate([(2, 4, 5), (3, 5, 2)]):
        x = torch.randn(*size, 16)
        with torch._dynamo.config.patch(error_on_recompile=i > 0), torch.set_grad_enabled(training):
            y, want = compiled(x), layer(x)
        torch.testing.assert_close(y, want)
        if training:
            grads, wants = (
                torch.autograd.grad(v.sum(), list(layer.parameters())) for v in (y, want)
            )
            torch.testing.assert_close(grads, wants, rtol=1e-4, atol=1e-4)


def test_compiled_selective_scan():
    torch._dynamo.reset()
    values = leaves(sequence_inputs(dtype=torch.float32).values())

    def function(*values):
        return selective_scan(*values, delta_softplus=True, backend='triton')

    compiled = torch.compile(function, backend='aot_eager', fullgraph=True, dynamic=True)
    got, want = compiled(*values), function(*values)
    torch.testing.assert_close(got, want)
    grads, wants = (torch.autograd.grad(v.sum(), values) for v in (got, want))
    torch.testing.assert_close(grads, wants, rtol=1e-4, atol=1e-4)


@BOTH
def test_trace_trains(op):
    function, make = OPS[op]
    values = leaves(make(dtype=torch.float32).values())
    traced = torch.jit.trace(lambda *v: function(*v, backend='triton'), values)
    got = torch.autograd.grad(traced(*values).sum(), values)
    want = torch.autograd.grad(function(*values, backend='triton').sum(), values)
    torch.testing.assert_close(got, want)


@torch.no_grad()
def test_export_and_decomposition():
    torch.manual_seed(0)
    layer = SS2D(16, d_state=2, backend='triton')
    x = torch.randn(2, 4, 5, 16)
    program = torch.export.export(layer, (x,))
    assert 'mmvmamba.ss2d_scan_triton.default' in str(program.graph)
    torch.testing.assert_close(program.module()(x), layer(x))
    portable = program.run_decompositions(decompositions())
    assert 'mmvmamba' not in str(portable.graph)
    torch.testing.assert_close(portable.module()(x), layer(x), rtol=1e-4, atol=1e-5)
