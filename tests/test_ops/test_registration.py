"""The ops as PyTorch knows them: gradients, autocast, compilation, tracing, transforms."""

import copy
import io
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.library import opcheck

from mmvmamba.nn import SS2D
from mmvmamba.ops import ExtensionUnavailableWarning, has_kernel, selective_scan, ss2d_scan

from .cases import run, selective_inputs, ss2d_inputs

native_only = pytest.mark.skipif(not has_kernel('ss2d_scan', 'cpu'), reason='no native kernel')
pytestmark = native_only
ORDERS = [0, 1, 2, 3]
LOOSE = dict(atol=1e-2, rtol=1e-2)
OPS = {'ss2d_scan': (ss2d_scan, ss2d_inputs), 'selective_scan': (selective_scan, selective_inputs)}
BOTH = pytest.mark.parametrize('op', list(OPS))


def leaves(inputs):
    return [v if v is None else v.detach().requires_grad_() for v in inputs.values()]


def full_sizes(inputs):
    """Forms of the arguments of the op itself: B and C in groups."""
    return {k: v.unsqueeze(1) if k in 'BC' and v.dim() == 3 else v for k, v in inputs.items()}


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize('batch', [0, 1, 2])
def test_opcheck_ss2d_scan(batch, dtype):
    inputs = ss2d_inputs(batch=batch, dtype=dtype, layout='permuted')
    for out_dtype, save in ((dtype, True), (inputs['A'].dtype, False)):
        args = (*leaves(inputs), ORDERS, out_dtype, save)
        opcheck(torch.ops.mmvmamba.ss2d_scan.default, args, **LOOSE)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize('batch', [0, 1, 2])
def test_opcheck_ss2d_scan_backward(batch, dtype):
    inputs = ss2d_inputs(batch=batch, dtype=dtype, layout='permuted')
    y, states = torch.ops.mmvmamba.ss2d_scan(*inputs.values(), ORDERS, dtype, True)
    args = (torch.ones_like(y), *inputs.values(), states, ORDERS)
    opcheck(torch.ops.mmvmamba.ss2d_scan_backward.default, args)


@pytest.mark.parametrize('given', [True, False], ids=['all', 'required'])
@pytest.mark.parametrize(('B', 'C'), [('shared', 'constant'), ('grouped', 'grouped')])
@pytest.mark.parametrize('batch', [0, 1, 2])
def test_opcheck_selective_scan(batch, B, C, given):
    inputs = full_sizes(selective_inputs(batch=batch, B=B, C=C, D=given, z=given, bias=given))
    for save in (True, False):
        opcheck(torch.ops.mmvmamba.selective_scan.default, (*leaves(inputs), True, save))


@pytest.mark.parametrize('given', [True, False], ids=['all', 'required'])
@pytest.mark.parametrize(('B', 'C'), [('shared', 'constant'), ('grouped', 'grouped')])
@pytest.mark.parametrize('batch', [0, 1, 2])
def test_opcheck_selective_scan_backward(batch, B, C, given):
    values = full_sizes(
        selective_inputs(batch=batch, B=B, C=C, D=given, z=given, bias=given, layout='permuted')
    ).values()
    y, _, states = torch.ops.mmvmamba.selective_scan(*values, True, True)
    args = (torch.ones_like(y), *values, states, True)
    opcheck(torch.ops.mmvmamba.selective_scan_backward.default, args)


@BOTH
@pytest.mark.parametrize('backend', ['native', 'reference'])
@pytest.mark.parametrize('d_state', [1, 3])
def test_gradcheck_of_each_input(op, backend, d_state):
    function, make = OPS[op]
    sizes = {'height': 2, 'width': 2} if op == 'ss2d_scan' else {'length': 4}
    inputs = make(d_state=d_state, batch=1, channels=2, **sizes)
    for name in inputs:

        def of_one(value, name=name):
            return function(**{**inputs, name: value}, backend=backend)

        assert torch.autograd.gradcheck(of_one, inputs[name].detach().requires_grad_()), name


def test_gradcheck_through_a_chunk_boundary():
    inputs = ss2d_inputs(5, 26, d_state=2, batch=1, channels=1, pattern=(1, 2))
    values = [inputs['dt_bias'].requires_grad_(), inputs['A'].requires_grad_()]
    rest = {k: v for k, v in inputs.items() if k not in ('dt_bias', 'A')}

    def of_two(dt_bias, A):
        return ss2d_scan(**rest, dt_bias=dt_bias, A=A, pattern=(1, 2), backend='native')

    assert torch.autograd.gradcheck(of_two, values)


@BOTH
def test_double_backward_is_a_clear_error(op):
    function, make = OPS[op]
    values = leaves(make())
    (grad,) = torch.autograd.grad(function(*values).sum(), values[0], create_graph=True)
    with pytest.raises(RuntimeError, match=f'{op}_backward does not support second derivatives'):
        grad.sum().backward()


@BOTH
def test_reference_has_a_double_backward(op):
    function, make = OPS[op]
    values = leaves(make())
    y = function(*values, backend='reference')
    (grad,) = torch.autograd.grad(y.square().sum(), values[0], create_graph=True)
    grad.sum().backward()
    assert all(v.grad.isfinite().all() for v in values)


@BOTH
def test_gradient_of_a_single_input(op):
    function, make = OPS[op]
    inputs = make(length=70) if op == 'selective_scan' else make(9, 8)
    want = run(function, inputs, backend='native')
    for name in inputs:
        leaf = inputs[name].detach().requires_grad_()
        y = function(**{**inputs, name: leaf}, backend='native')
        generator = torch.Generator().manual_seed(1)
        grad = torch.randn(y.shape, generator=generator, dtype=torch.float64) * 0.1
        y.backward(grad.to(torch.bfloat16).to(y.dtype))
        assert torch.equal(leaf.grad, want[f'grad_{name}']), name
        assert all(v.grad is None for k, v in inputs.items() if k != name)


def saved_states(op, values):
    """Elements of the states that one call of the op returned."""
    sizes = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if func is getattr(torch.ops.mmvmamba, op).default:
                sizes.append(out[-1].numel())
            return out

    with Watch():
        OPS[op][0](*values, backend='native')
    (size,) = sizes
    return size


@BOTH
def test_states_are_saved_only_for_a_backward(op):
    values = leaves(OPS[op][1]())
    assert saved_states(op, values) > 0
    with torch.no_grad():
        assert saved_states(op, values) == 0
    assert saved_states(op, [v.detach() for v in values]) == 0


@BOTH
def test_inference_mode(op):
    function, make = OPS[op]
    inputs = make()
    with torch.inference_mode():
        y = function(**inputs, backend='native')
    assert y.is_inference()
    assert torch.equal(y, function(**inputs, backend='native'))


@pytest.mark.parametrize('backend', ['native', 'reference'])
def test_autocast_leaves_the_scan_in_float32(backend):
    inputs = ss2d_inputs(9, 8, rank=6, dtype=torch.float32)
    want = ss2d_scan(**inputs, backend=backend)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert torch.equal(ss2d_scan(**inputs, backend=backend), want)


@pytest.mark.parametrize('scan', ['cross', 'cascade'])
@pytest.mark.parametrize('backend', ['native', 'reference'])
def test_ss2d_under_autocast(backend, scan):
    torch.manual_seed(0)
    layer = SS2D(16, d_state=2, scan=scan, backend=backend)
    x = torch.randn(2, 4, 5, 16)
    want = layer(x)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        y = layer(x)
        y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    assert (y - want).norm() < 0.02 * want.norm()
    assert all(p.grad.dtype == torch.float32 for p in layer.parameters())


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_ss2d_in_another_dtype_throughout(dtype):
    torch.manual_seed(0)
    layer = SS2D(16, d_state=2)
    x = torch.randn(2, 4, 5, 16)
    want = layer(x)
    with warnings.catch_warnings():  # float16 has no kernel on a CPU
        warnings.simplefilter('ignore', ExtensionUnavailableWarning)
        y = layer.to(dtype)(x.to(dtype))
    assert y.dtype == dtype
    assert (y - want).norm() < 0.02 * want.norm()


@pytest.mark.parametrize('training', [True, False], ids=['training', 'inference'])
def test_one_compilation_serves_all_map_sizes(training):
    torch._dynamo.reset()
    layer = SS2D(16, d_state=2)
    compiled = torch.compile(layer, backend='aot_eager', fullgraph=True, dynamic=True)
    sizes = [(2, 4, 5), (2, 9, 7), (2, 8, 8), (3, 16, 20), (2, 33, 2)]
    for i, size in enumerate(sizes):
        x = torch.randn(*size, 16)
        # Any compilation after the first is an error.
        with torch._dynamo.config.patch(error_on_recompile=i > 0):
            with torch.set_grad_enabled(training):
                y, want = compiled(x), layer(x)
            torch.testing.assert_close(y, want)
            if training:
                grads = torch.autograd.grad(y.sum(), list(layer.parameters()))
                wants = torch.autograd.grad(want.sum(), list(layer.parameters()))
                # Sums over all positions, in another order.
                torch.testing.assert_close(grads, wants, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize('grad', [False, True])
def test_compiled_by_inductor(grad):
    torch._dynamo.reset()
    layer = SS2D(16, d_state=2)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True)
    once = torch._dynamo.config.patch(error_on_recompile=True)
    with torch.set_grad_enabled(grad), once:
        for size in ((2, 24, 25), (2, 39, 17), (3, 20, 31)):
            x = torch.randn(*size, 16, requires_grad=grad)
            y, want = compiled(x), layer(x)
            torch.testing.assert_close(y, want, rtol=1e-4, atol=1e-5)
            if grad:
                leaves = [x, *layer.parameters()]
                grads = torch.autograd.grad(y.square().sum(), leaves)
                wants = torch.autograd.grad(want.square().sum(), leaves)
                torch.testing.assert_close(grads, wants, rtol=1e-3, atol=1e-3)


@BOTH
@pytest.mark.filterwarnings('ignore:There is a performance drop')
def test_vmap_maps_over_samples(op):
    function, make = OPS[op]
    samples = [make(seed=seed) for seed in range(3)]
    shared = dict(list(samples[0].items())[2:])
    first, second = list(samples[0])[:2]
    stacked = [torch.stack([s[name] for s in samples]) for name in (first, second)]
    got = torch.func.vmap(lambda a, b: function(a, b, **shared, backend='native'))(*stacked)
    for y, sample in zip(got, samples, strict=True):
        want = function(**{**shared, first: sample[first], second: sample[second]})
        torch.testing.assert_close(y, want)


@BOTH
def test_functional_gradients_need_the_pytorch_form(op):
    function, make = OPS[op]
    first, *rest = make().values()
    want = run(function, make(), backend='native')

    def summed(value, backend='auto'):
        return function(value, *rest, backend=backend).sum()

    leaf = first.detach().requires_grad_()
    summed(leaf).backward()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', ExtensionUnavailableWarning)
        torch.testing.assert_close(torch.func.grad(summed)(first), leaf.grad)
        _, slope = torch.func.jvp(summed, (first,), (torch.ones_like(first),))
    torch.testing.assert_close(slope, leaf.grad.sum())
    with pytest.raises(RuntimeError, match='torch.func.grad'):
        torch.func.grad(lambda value: summed(value, 'native'))(first)
    assert want['out'].isfinite().all()


@BOTH
def test_forward_mode_is_never_silently_zero(op):
    function, make = OPS[op]
    first, *rest = make().values()
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match='forward-mode'):
        function(forward_ad.make_dual(first, first), *rest, backend='native')


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(SS2D(16, d_state=2), SS2D(16, scan='cascade'))


def test_copy_and_pickle(model):
    x = torch.randn(2, 4, 5, 16)
    model(x).sum().backward()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x), model(x))


def test_trace(model):
    traced = torch.jit.trace(model, torch.randn(2, 4, 5, 16))
    buffer = io.BytesIO()
    torch.jit.save(traced, buffer)
    buffer.seek(0)
    loaded = torch.jit.load(buffer)
    x = torch.randn(2, 4, 5, 16)
    torch.testing.assert_close(loaded(x), model(x))


def test_trace_serves_other_sizes_and_trains():
    torch.manual_seed(0)
    layer = SS2D(16, d_state=2)
    traced = torch.jit.trace(layer, torch.randn(2, 4, 5, 16))
    x = torch.randn(3, 9, 8, 16)
    parameters = list(layer.parameters())
    got = torch.autograd.grad(traced(x).square().sum(), parameters)
    want = torch.autograd.grad(layer(x).square().sum(), parameters)
    torch.testing.assert_close(got, want)


def test_trace_of_selective_scan_trains():
    values = leaves(selective_inputs(length=70))
    traced = torch.jit.trace(lambda u, *rest: selective_scan(u, *rest), values)
    got = torch.autograd.grad(traced(*values).sum(), values)
    want = torch.autograd.grad(selective_scan(*values).sum(), values)
    torch.testing.assert_close(got, want)


@BOTH
@pytest.mark.parametrize('batch', [1, 2])
def test_gradients_are_tensors_of_their_own(batch, op):
    """No views of each other, nor of what the kernel summed: a caller may change them in place."""
    op, make = OPS[op]
    inputs = {name: v.requires_grad_() for name, v in full_sizes(make(batch=batch)).items()}
    y = op(**inputs, backend='native')
    grads = torch.autograd.grad(y.sum(), list(inputs.values()))
    assert not any(grad._is_view() for grad in grads)
    owners = {v.untyped_storage().data_ptr() for v in (*grads, *inputs.values(), y)}
    assert len(owners) == 2 * len(inputs) + 1
    for grad in grads:
        grad.mul_(torch.ones(1, dtype=grad.dtype, requires_grad=True))
