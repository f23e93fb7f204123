"""causal_conv1d and causal_conv1d_cuda against their definition."""

import pytest
import torch

from . import recurrence


@pytest.fixture
def conv():
    import causal_conv1d

    return causal_conv1d


def rand(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).requires_grad_()


@pytest.mark.parametrize('activation', [None, 'silu', 'swish'])
@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize(('length', 'width'), [(1, 4), (2, 4), (9, 2), (9, 1)])
def test_causal_conv1d_fn(conv, length, width, bias, activation):
    leaves = [rand(2, 3, length), rand(3, width, seed=1)] + ([rand(3, seed=2)] if bias else [])
    exact = [v.detach().double().requires_grad_() for v in leaves]
    got = conv.causal_conv1d_fn(*leaves, activation=activation)
    want = recurrence.causal_conv1d(*exact, silu=activation is not None)
    grad = rand(2, 3, length, seed=3).detach()
    grads = torch.autograd.grad(got, leaves, grad)
    expected = torch.autograd.grad(want, exact, grad.double())
    names = ['out', 'x', 'weight', 'bias'][: len(leaves) + 1]
    recurrence.compare(names, [got, *grads], [want, *expected], 1e-5)


def test_states_continue_a_sequence(conv):
    x, weight = rand(2, 3, 11), rand(3, 4)
    want = conv.causal_conv1d_fn(x, weight)
    first, states = conv.causal_conv1d_fn(x[..., :2], weight, return_final_states=True)
    assert torch.equal(states[..., 0], torch.zeros(2, 3)) and torch.equal(
        states[..., 1:], x[..., :2]
    )
    second = conv.causal_conv1d_fn(x[..., 2:], weight, initial_states=states)
    torch.testing.assert_close(torch.cat([first, second], -1), want)
    buffer = torch.empty(2, 3, 3)
    _, states = conv.causal_conv1d_fn(
        x.detach(), weight, return_final_states=True, final_states_out=buffer
    )
    assert states is buffer and torch.equal(buffer, x[..., -3:])


@pytest.mark.parametrize('size', [3, 6])
def test_update_continues_a_sequence(conv, size):
    x, weight, bias = (v.detach() for v in (rand(2, 3, 11), rand(3, 4), rand(3)))
    want = conv.causal_conv1d_fn(x, weight, bias, activation='silu')
    buffer, got = torch.zeros(2, 3, size), []
    for t in range(7):
        got.append(conv.causal_conv1d_update(x[..., t], buffer, weight, bias, 'silu'))
    assert torch.equal(buffer, x[..., 7 - size : 7])
    got = [
        torch.stack(got, -1),
        conv.causal_conv1d_update(x[..., 7:], buffer, weight, bias, 'silu'),
    ]
    torch.testing.assert_close(torch.cat(got, -1), want)


@pytest.mark.parametrize('dtypes', [(torch.bfloat16, torch.float32), (torch.float32,) * 2])
def test_the_extension(dtypes):
    from . import networks

    x, weight, bias = rand(2, 3, 8).to(dtypes[0]), rand(3, 4).to(dtypes[1]), rand(3).to(dtypes[1])
    leaves = [v.detach().requires_grad_() for v in (x, weight, bias)]
    exact = [v.detach().double().requires_grad_() for v in leaves]
    got, want = networks.Convolution.apply(*leaves), recurrence.causal_conv1d(*exact, silu=True)
    grad = rand(2, 3, 8, seed=5).detach().to(got.dtype)
    grads = torch.autograd.grad(got, leaves, grad)
    expected = torch.autograd.grad(want, exact, grad.double())
    assert [v.dtype for v in (got, *grads)] == [dtypes[0], dtypes[0], dtypes[1], dtypes[1]]
    tolerance = 1e-5 if dtypes[0] == torch.float32 else 2e-2
    names = ['out', 'x', 'weight', 'bias']
    recurrence.compare(names, [got, *grads], [want, *expected], tolerance)


def test_gradients_of_states():
    from causal_conv1d.cpp_functions import (
        causal_conv1d_bwd_function,
        causal_conv1d_fwd_function,
        causal_conv1d_update_function,
    )

    x, weight, before = rand(2, 3, 5), rand(3, 4), rand(2, 3, 3, seed=1)
    exact = [v.detach().double().requires_grad_() for v in (x, weight, before)]
    want = recurrence.causal_conv1d(exact[0], exact[1], None, exact[2])
    after = torch.empty(2, 3, 3)
    got = causal_conv1d_fwd_function(x, weight, None, None, before, after, False)
    assert not got.requires_grad and torch.equal(after, x[..., -3:])
    grad, grad_after = rand(2, 3, 5, seed=2).detach(), rand(2, 3, 3, seed=3).detach()
    grads = causal_conv1d_bwd_function(
        x, weight, None, grad, None, before, grad_after, None, True, False
    )
    loss = (want * grad.double()).sum() + (exact[0][..., -3:] * grad_after.double()).sum()
    expected = torch.autograd.grad(loss, exact)
    assert grads[2] is None
    recurrence.compare(
        ['out', 'x', 'weight', 'states'], [got, *grads[:2], grads[3]], [want, *expected], 1e-5
    )
    args = x, weight, None, grad, None, before, None, None, False, False
    assert causal_conv1d_bwd_function(*args)[3] is None
    buffer = before.detach().clone()
    args = x.detach(), buffer, weight, None, False
    recurrence.compare(['out'], [causal_conv1d_update_function(*args)], [want], 1e-5)
    assert torch.equal(buffer, x[..., -3:])


def test_the_extension_takes_the_arguments_of_all_its_versions():
    import causal_conv1d_cuda as cuda

    x, weight, bias = (v.detach() for v in (rand(2, 3, 8), rand(3, 4), rand(3)))
    forms = ((), (None,), (None, None, None))
    got = [cuda.causal_conv1d_fwd(x, weight, bias, *optional, True) for optional in forms]
    assert torch.equal(got[0], got[2]) and torch.equal(got[1], got[2])
    results = []
    for optional, more in (((), ()), ((None,), ()), ((None, None, None), (False,))):
        grad_x = torch.empty_like(x)
        grads = cuda.causal_conv1d_bwd(x, weight, bias, x, *optional, grad_x, *more, True)
        assert grads[0] is grad_x
        results.append(grads)
    assert [len(grads) for grads in results] == [3, 3, 4]
    for grads in results[:2]:
        assert all(torch.equal(a, b) for a, b in zip(grads, results[2][:3], strict=True))
    seq_idx = torch.zeros(2, 8, dtype=torch.int32)
    for call in (
        lambda: cuda.causal_conv1d_fwd(x, weight, bias, seq_idx, True),
        lambda: cuda.causal_conv1d_bwd(x, weight, bias, x, seq_idx, None, True),
    ):
        with pytest.raises(NotImplementedError, match='seq_idx'):
            call()
    with pytest.raises(TypeError, match='missing 1 required positional argument'):
        cuda.causal_conv1d_bwd(x, weight, bias, x, None, None, None, None, True)


def test_the_activation_of_older_versions_by_position(conv):
    x, weight, bias = rand(2, 3, 8), rand(3, 4), rand(3)
    want = conv.causal_conv1d_fn(x, weight, bias, activation='silu')
    assert torch.equal(conv.causal_conv1d_fn(x, weight, bias, 'silu'), want)
    assert torch.equal(conv.causal_conv1d_fn(x, weight, bias, None, 'silu'), want)


def test_update_keeps_no_graph_in_its_buffer(conv):
    x, weight, buffer = rand(2, 3), rand(3, 4), torch.zeros(2, 3, 3)
    y = conv.causal_conv1d_update(x, buffer, weight)
    assert y.requires_grad and not buffer.requires_grad
    assert torch.equal(buffer[..., -1], x)
    buffer = torch.zeros(2, 3, 0)
    torch.testing.assert_close(
        conv.causal_conv1d_update(x, buffer, weight[:, :1]), x * weight[:, 0]
    )


def test_no_positions(conv):
    x, weight = torch.zeros(2, 3, 0), rand(3, 4)
    with pytest.raises(ValueError, match='x must have at least one position'):
        conv.causal_conv1d_fn(x, weight)
    with pytest.raises(ValueError, match='x must have at least one position'):
        conv.causal_conv1d_update(x, torch.zeros(2, 3, 3), weight)


def test_what_is_not_there(conv):
    x, weight = rand(2, 3, 5).detach(), rand(3, 4)
    with pytest.raises(
        NotImplementedError, match=r'packed sequences \(seq_idx\) are not supported'
    ):
        conv.causal_conv1d_fn(x, weight, seq_idx=torch.zeros(2, 5, dtype=torch.int32))
    with pytest.raises(ValueError, match="activation must be one of .*, but got 'relu'"):
        conv.causal_conv1d_fn(x, weight, activation='relu')
    for name in ('cache_seqlens', 'conv_state_indices'):
        with pytest.raises(NotImplementedError, match=rf'buffers \({name}\) are not supported by'):
            conv.causal_conv1d_update(x, torch.zeros(2, 3, 3), weight, **{name: torch.zeros(2)})
