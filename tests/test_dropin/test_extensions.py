"""selective_scan_cuda and its relatives, called from autograd functions, against the recurrence."""

import itertools
import sys

import pytest
import torch

from mmvmamba.ops import has_kernel

from . import recurrence

#: Several times the spacing of numbers. The float32 case has the target of others' networks.
TOLERANCES = {
    torch.float32: 1e-5,
    torch.float64: 1e-12,
    torch.bfloat16: 4e-2,
    torch.float16: 5e-3,
}
CASES = list(itertools.product((1, 5), ('groups', 'constant'), (True, False)))


@pytest.fixture
def networks():
    from . import networks

    return networks


@pytest.fixture(params=['native', 'triton', 'chunked'])
def backend(request, monkeypatch):
    """Each backend on the CPU: 'chunked' is the PyTorch implementation used without kernels."""
    from mmvmamba.dropin import extensions

    if request.param == 'native' and not has_kernel('selective_scan', 'cpu'):
        pytest.skip('no native kernel')
    if request.param == 'triton':
        request.getfixturevalue('triton_on_cpu')
    for module in (extensions, sys.modules['mmvmamba.ops.selective_scan']):
        monkeypatch.setattr(module, 'choose_backend', lambda *args: request.param)
    return request.param


def inputs(
    dtype=torch.float32, length=130, states=3, groups=2, channels=6, form='groups', full=True
):
    """u, delta, A, B, C, D, z and delta_bias as a network has them."""
    generator = torch.Generator().manual_seed(length + states)

    def rand(*shape, dtype=dtype):
        return torch.randn(*shape, generator=generator).to(dtype).requires_grad_()

    wide = torch.promote_types(dtype, torch.float32)
    shape = (2, groups, states, length) if form == 'groups' else (channels, states)
    weights = dtype if form == 'groups' else wide
    A = -torch.rand(channels, states, generator=generator).add(0.1).to(wide)
    return dict(
        u=rand(2, channels, length),
        delta=rand(2, channels, length),
        A=A.requires_grad_(),
        B=rand(*shape, dtype=weights),
        C=rand(*shape, dtype=weights),
        D=rand(channels, dtype=wide) if full else None,
        z=rand(2, channels, length) if full else None,
        delta_bias=rand(channels, dtype=wide) if full else None,
    )


def check(function, tensors, tolerance, out_dtype=None, softplus=True):
    """Compare output and gradients of an autograd function with the recurrence."""
    exact = recurrence.doubles(tensors)
    want, last = recurrence.selective_scan(**exact, softplus=softplus)
    got = function(*tensors.values(), softplus)
    got, *states = got if isinstance(got, tuple) else (got,)
    assert got.dtype == (out_dtype or tensors['u'].dtype)
    generator = torch.Generator().manual_seed(1)
    grad = torch.randn(got.shape, generator=generator).to(got)
    names = [name for name, v in tensors.items() if v is not None]
    leaves = [tensors[name] for name in names]
    grads = torch.autograd.grad(got, leaves, grad)
    assert [g.dtype for g in grads] == [v.dtype for v in leaves]
    expected = torch.autograd.grad(want, [exact[name] for name in names], grad.double())
    recurrence.compare(
        ['out', *names, *('last state' for _ in states)],
        [got, *grads, *states],
        [want, *expected, *([last] * len(states))],
        tolerance,
    )


def without_gate(tensors):
    return {name: v for name, v in tensors.items() if name != 'z'}


@pytest.mark.parametrize('dtype', TOLERANCES, ids=str)
@pytest.mark.parametrize('name', ['Oflex', 'Core', 'Gated'])
def test_dtypes(networks, backend, name, dtype):
    if backend == 'triton' and dtype == torch.float64:
        pytest.skip('Triton has no float64')
    tensors = inputs(dtype, length=37 if backend == 'triton' else 130)
    tensors = tensors if name == 'Gated' else without_gate(tensors)
    wide = torch.promote_types(dtype, torch.float32) if name == 'Oflex' else dtype
    check(getattr(networks, name).apply, tensors, TOLERANCES[dtype], wide)


@pytest.mark.parametrize(('states', 'form', 'full'), CASES)
@pytest.mark.parametrize('length', [1, 63, 129])
@pytest.mark.parametrize('name', ['Core', 'Gated'])
def test_shapes(networks, name, length, states, form, full):
    tensors = inputs(length=length, states=states, groups=3, form=form, full=full)
    tensors = tensors if name == 'Gated' else without_gate(tensors)
    check(getattr(networks, name).apply, tensors, 1e-5, softplus=full)


def test_the_output_of_oflex_can_have_the_dtype_of_the_input(networks):
    import selective_scan_cuda_oflex

    tensors = without_gate(inputs(torch.bfloat16))
    y, _ = selective_scan_cuda_oflex.fwd(*tensors.values(), True, 1, False)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, networks.Core.apply(*tensors.values(), True))


def test_channels_can_share_time_steps(networks, backend):
    tensors = without_gate(inputs(length=37))
    for name, axis in (('delta', 1), ('delta_bias', 0)):
        first = tensors[name].detach().narrow(axis, 0, 2)
        tensors[name] = first.clone().requires_grad_()
    check(networks.Oflex.apply, tensors, 1e-5)


def test_strides(networks):
    tensors = inputs()
    tensors = {
        name: v.detach().mT.contiguous().mT.requires_grad_() if v.dim() > 1 else v
        for name, v in tensors.items()
    }
    assert not tensors['u'].is_contiguous()
    check(networks.Gated.apply, tensors, 1e-5)


@pytest.mark.parametrize('given', ['contiguous', 'none'])
def test_states_in_another_layout_or_not_at_all(given):
    import selective_scan_cuda_core as core

    tensors = [v.detach() for v in without_gate(inputs(length=300)).values()]
    y, states = core.fwd(*tensors, True, 1)
    want = core.bwd(*tensors, y, states, True, 1)
    other = states.contiguous() if given == 'contiguous' else None
    got = core.bwd(*tensors, y, other, True, 1)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_gradients_of_what_is_not_there():
    import selective_scan_cuda

    tensors = inputs(full=False)
    y, states = selective_scan_cuda.fwd(*tensors.values(), True)
    *_, grad_D, grad_bias = selective_scan_cuda.bwd(
        *tensors.values(), y, states, None, None, True, False
    )
    assert grad_D is None and grad_bias is None


def test_the_gate_is_applied_in_float32():
    import selective_scan_cuda

    z = torch.tensor([-6.0, 6.0, 0.3, -1.1]).half().repeat(2, 6, 10)
    tensors = {name: v.detach() for name, v in inputs(torch.float16, length=40).items()}
    # Small weights and no skip, so that only the products with the gate exceed float16.
    tensors |= {'B': tensors['B'] * 0.01, 'C': tensors['C'] * 0.01, 'D': None, 'z': z}
    out, states, gated = selective_scan_cuda.fwd(*tensors.values(), True)
    assert torch.equal(gated, (out.float() * torch.nn.functional.silu(z.float())).half())
    grad = torch.full_like(out, 3e4)
    out = torch.full_like(out, 5)  # a given tensor, whose product with the gradient is 1.5e5
    *grads, grad_z, again = selective_scan_cuda.bwd(
        *tensors.values(), grad, states, out, None, True, True
    )
    gate = z.double().requires_grad_()
    silu = gate * torch.sigmoid(gate)
    (want,) = torch.autograd.grad(silu, gate, grad.double() * out.double())
    finite = want.abs() < 65504
    torch.testing.assert_close(grad_z[finite].double(), want[finite], rtol=1e-3, atol=0)
    torch.testing.assert_close(again.double(), (out * silu).detach(), rtol=1e-3, atol=0)
    exact = recurrence.doubles(tensors | {'z': None})
    leaf = exact['u']
    want, _ = recurrence.selective_scan(**exact, softplus=True)
    (want,) = torch.autograd.grad(want, leaf, grad.double() * silu.detach())
    recurrence.compare(['u'], [grads[0]], [want], 5e-3)


@pytest.mark.parametrize(
    ('name', 'dtype', 'words'),
    [
        ('A', torch.complex64, 'A must be real, but is torch.complex64'),
        ('u', torch.complex64, 'u must be real, but is torch.complex64'),
        ('z', torch.complex64, 'z must be torch.float32 or .*, but is torch.complex64'),
        ('u', torch.int64, 'u must be torch.float32 or .*, but is torch.int64'),
        ('delta', torch.int32, 'delta must be torch.float32 or .*, but is torch.int32'),
    ],
)
def test_dtypes_that_are_not_there(name, dtype, words):
    import selective_scan_cuda

    tensors = {key: v.detach() for key, v in inputs().items()}
    tensors[name] = tensors[name].to(dtype)
    with pytest.raises(TypeError, match=words):
        selective_scan_cuda.fwd(*tensors.values(), True)
    with pytest.raises(TypeError, match=words):
        out = torch.zeros(2, 6, 130)
        selective_scan_cuda.bwd(*tensors.values(), out, None, out, None, True, False)


def test_a_gate_needs_the_output():
    import selective_scan_cuda

    tensors = inputs()
    with pytest.raises(ValueError, match='out, the first result of fwd, is required when z'):
        selective_scan_cuda.bwd(*tensors.values(), tensors['u'], None, None, None, True, False)


def test_wrong_shapes():
    import selective_scan_cuda_core

    tensors = without_gate(inputs())
    tensors['B'] = tensors['B'][:, :, :1]
    with pytest.raises((ValueError, RuntimeError), match=r'\bB\b'):
        selective_scan_cuda_core.fwd(*tensors.values(), True, 1)


@pytest.mark.cuda
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize('name', ['Oflex', 'Core', 'Gated'])
def test_gpu(networks, name, dtype):
    if not torch.cuda.is_available():
        pytest.skip('no GPU')
    tensors = {n: v.detach().cuda().requires_grad_() for n, v in inputs(dtype).items()}
    tensors = tensors if name == 'Gated' else without_gate(tensors)
    wide = torch.promote_types(dtype, torch.float32) if name == 'Oflex' else dtype
    check(getattr(networks, name).apply, tensors, TOLERANCES[dtype], wide)
