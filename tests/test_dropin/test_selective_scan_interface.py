"""The functions of mamba_ssm.ops.selective_scan_interface against the recurrence."""

import pytest
import torch
from torch import nn

from . import recurrence

WIDTH, RANK, OUT = 4, 2, 5


@pytest.fixture
def interface():
    import mamba_ssm.ops.selective_scan_interface as interface

    return interface


def mixer_inputs(channels=6, states=3, length=37, constant=False, dtype=torch.float32):
    """The arguments of mamba_inner_fn by name."""
    generator = torch.Generator().manual_seed(0)

    def rand(*shape):
        return torch.randn(*shape, generator=generator).to(dtype).requires_grad_()

    A = -torch.rand(channels, states, generator=generator).add(0.1).to(dtype)
    weights = {name: rand(channels, states) for name in 'BC'} if constant else {}
    biases = {} if constant else {f'{name}_proj_bias': rand(states) for name in 'BC'}
    return dict(
        xz=rand(2, 2 * channels, length),
        conv1d_weight=rand(channels, 1, WIDTH),
        conv1d_bias=rand(channels),
        x_proj_weight=rand(RANK + 2 * states, channels),
        delta_proj_weight=rand(channels, RANK),
        out_proj_weight=rand(OUT, channels),
        out_proj_bias=rand(OUT),
        A=A.requires_grad_(),
        D=rand(channels),
        delta_bias=rand(channels),
        **weights,
        **biases,
    )


def mixer(
    xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, out_proj_weight,
    out_proj_bias, A, D, delta_bias, B=None, C=None, B_proj_bias=None, C_proj_bias=None, A_b=None,
):  # fmt: skip
    """Mamba's mixer by its formulas; with A_b a second scan goes from the last position."""
    x, z = xz[:, : len(A)], xz[:, len(A) :]
    x = recurrence.causal_conv1d(x, conv1d_weight[:, 0], conv1d_bias, silu=True)
    projected = torch.einsum('rd,ndl->nrl', x_proj_weight, x)
    states = A.shape[1]
    delta = torch.einsum('dr,nrl->ndl', delta_proj_weight, projected[:, :RANK])
    if B is None:
        B = projected[:, RANK : RANK + states] + B_proj_bias[:, None]
        C = projected[:, RANK + states :] + C_proj_bias[:, None]
    y, _ = recurrence.selective_scan(x, delta, A, B, C, D, z, delta_bias)
    if A_b is not None:
        x, z, delta = (v.flip(-1) for v in (x, z, delta))
        B, C = (v if v.dim() == 2 else v.flip(-1) for v in (B, C))
        back, _ = recurrence.selective_scan(x, delta, A_b, B, C, D, z, delta_bias)
        y = y + back.flip(-1)
    if out_proj_weight is None:
        return y
    return torch.einsum('ed,ndl->nle', out_proj_weight, y) + out_proj_bias


def check(function, tensors, definition=mixer):
    exact = recurrence.doubles(tensors)
    want, got = definition(**exact), function(**tensors)
    grad = torch.randn(got.shape, generator=torch.Generator().manual_seed(1))
    names = [name for name, v in tensors.items() if v is not None]
    grads = torch.autograd.grad(got, [tensors[n] for n in names], grad, allow_unused=True)
    expected = torch.autograd.grad(
        want, [exact[n] for n in names], grad.double(), allow_unused=True
    )
    # With constant B and C their rows of the projection are not used: both are zeros there.
    recurrence.compare(['out', *names], [got, *grads], [want, *expected], 1e-5)


@pytest.mark.parametrize('constant', [True, False])
@pytest.mark.parametrize('name', ['mamba_inner_fn', 'mamba_inner_ref'])
def test_mamba_inner_fn(interface, name, constant):
    check(getattr(interface, name), mixer_inputs(constant=constant))


def test_mamba_inner_fn_by_position(interface):
    tensors = mixer_inputs()
    named = interface.mamba_inner_fn(**tensors)
    first = [v for name, v in tensors.items() if name not in ('D', 'delta_bias')][:8]
    biases = tensors['B_proj_bias'], tensors['C_proj_bias']
    args = (*first, None, None, tensors['D'], tensors['delta_bias'], *biases, True)
    assert torch.equal(interface.mamba_inner_fn(*args), named)


def test_arguments_of_mamba_ssm_2(interface):
    tensors = mixer_inputs()
    got = interface.mamba_inner_fn(**tensors, checkpoint_lvl=0, b_c_dt_rms_eps=1e-5)
    assert torch.equal(got, interface.mamba_inner_fn(**tensors))
    for name in ('b_rms_weight', 'c_rms_weight', 'dt_rms_weight'):
        with pytest.raises(NotImplementedError, match=f'{name} is not supported by this stand-in'):
            interface.mamba_inner_fn(**tensors, **{name: torch.ones(3)})
    with pytest.raises(TypeError, match=r'mamba_inner_fn\(\) got an unexpected keyword .*eps'):
        interface.mamba_inner_fn(**tensors, eps=1)


def test_mamba_inner_fn_no_out_proj(interface):
    tensors = mixer_inputs()
    del tensors['out_proj_weight'], tensors['out_proj_bias']

    def definition(**tensors):
        return mixer(out_proj_weight=None, out_proj_bias=None, **tensors)

    check(interface.mamba_inner_fn_no_out_proj, tensors, definition)


@pytest.mark.parametrize('constant', [True, False])
def test_bimamba_inner_fn(interface, constant):
    tensors = mixer_inputs(constant=constant)
    tensors['A_b'] = (2 * tensors['A']).detach().requires_grad_()
    check(interface.bimamba_inner_fn, tensors)


def test_autocast(interface):
    tensors = mixer_inputs()
    want = interface.mamba_inner_fn(**tensors)
    with torch.autocast('cpu', torch.bfloat16):
        got = interface.mamba_inner_fn(**tensors)
    assert got.dtype == torch.bfloat16
    recurrence.compare(['out'], [got], [want], 0.05)


def test_complex_decay_rates(interface):
    tensors = mixer_inputs()
    tensors['A'] = tensors['A'].to(torch.complex64)
    with pytest.raises(TypeError, match='A must be real, but is torch.complex64'):
        interface.mamba_inner_fn(**tensors)


def test_selective_scan_ref_takes_several_dtypes(interface):
    u, delta, z = (torch.randn(2, 4, 9).bfloat16() for _ in range(3))
    A, B, C = -torch.rand(4, 3), torch.randn(2, 3, 9), torch.randn(2, 1, 3, 9)
    y, state = interface.selective_scan_ref(
        u, delta, A, B, C, z=z, delta_softplus=True, return_last_state=True
    )
    want = recurrence.selective_scan(*(v.double() for v in (u, delta, A, B, C)), z=z.double())
    assert y.dtype == torch.bfloat16
    recurrence.compare(['y'], [y], want[:1], 1e-2)
    recurrence.compare(['state'], [state], want[1:], 1e-5)


def test_network():
    """A network of all imports, by its formulas in float64."""
    from . import networks

    torch.manual_seed(0)
    network, x = networks.Mixer(), torch.randn(2, 65, 6)

    def formulas(norm, in_proj, in_bias, conv, params, params_bias, A_log, D):
        total = x.double()
        u = total / (total.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm
        u, z = (u @ in_proj.T + in_bias).mT.chunk(2, 1)
        u = recurrence.causal_conv1d(u, conv, silu=True)
        delta, B, C = (u.mT @ params.T + params_bias).mT.split((6, 6, 6), 1)
        B, C = (w.unflatten(1, (2, 3)) for w in (B, C))
        y, _ = recurrence.selective_scan(u, delta, -A_log.exp(), B, C, D, z)
        return total + y.mT

    order = ['norm.weight', 'in_proj.weight', 'in_proj.bias', 'conv', 'params.weight']
    order += ['params.bias', 'A_log', 'D']
    parameters = dict(network.named_parameters())
    assert set(order) == set(parameters)
    leaves = [parameters[name] for name in order]
    exact = [v.detach().double().requires_grad_() for v in leaves]
    got, want = network(x), formulas(*exact)
    grads = torch.autograd.grad(nn.functional.gelu(got).sum(), leaves)
    expected = torch.autograd.grad(nn.functional.gelu(want).sum(), exact)
    recurrence.compare(['out', *order], [got, *grads], [want, *expected], 2e-5)
