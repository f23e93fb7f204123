"""mamba_ssm.ops.triton.layer_norm against its formulas."""

import pytest
import torch

from . import recurrence


@pytest.fixture
def norms():
    import mamba_ssm.ops.triton.layer_norm as norms

    return norms


def rand(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(dtype).requires_grad_()


def formula(x, weight, bias, residual, eps, rms):
    total = x if residual is None else x + residual
    centered = total if rms else total - total.mean(-1, keepdim=True)
    y = centered / (centered.square().mean(-1, keepdim=True) + eps).sqrt() * weight
    return y if bias is None else y + bias, total


@pytest.mark.parametrize('residual', [True, False])
@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('name', ['layer_norm_fn', 'rms_norm_fn'])
def test_norms(norms, name, bias, residual):
    tensors = dict(
        x=rand(2, 3, 7),
        weight=rand(7, seed=1),
        bias=rand(7, seed=2) if bias else None,
        residual=rand(2, 3, 7, seed=3) if residual else None,
    )
    exact = recurrence.doubles(tensors)
    got = getattr(norms, name)(*tensors.values(), eps=1e-3, prenorm=True)
    want = formula(*exact.values(), 1e-3, name == 'rms_norm_fn')
    names = [n for n, v in tensors.items() if v is not None]
    weights = [rand(2, 3, 7, seed=s).detach() for s in (4, 5)]
    loss = sum((v * w).sum() for v, w in zip(got, weights, strict=True))
    grads = torch.autograd.grad(loss, [tensors[n] for n in names])
    loss = sum((v * w).sum() for v, w in zip(want, weights, strict=True))
    expected = torch.autograd.grad(loss, [exact[n] for n in names])
    recurrence.compare(['y', 'sum', *names], [*got, *grads], [*want, *expected], 1e-5)
    alone = getattr(norms, name)(*tensors.values(), eps=1e-3)
    assert torch.equal(alone, got[0])


@pytest.mark.parametrize(
    ('residual', 'in_fp32', 'want'),
    [
        (None, False, torch.bfloat16),
        (None, True, torch.float32),
        (torch.float32, False, torch.float32),
        (torch.bfloat16, True, torch.bfloat16),
    ],
)
def test_dtype_of_the_sum(norms, residual, in_fp32, want):
    x = rand(2, 7, dtype=torch.bfloat16)
    residual = None if residual is None else rand(2, 7, seed=1, dtype=residual)
    y, total = norms.RMSNorm(7)(x, residual, prenorm=True, residual_in_fp32=in_fp32)
    assert y.dtype == torch.bfloat16 and total.dtype == want


def test_module(norms):
    module = norms.RMSNorm(7, eps=1e-2)
    assert list(module.state_dict()) == ['weight'] and module.bias is None
    x = rand(2, 7)
    want = formula(x.double(), torch.ones(7), None, None, 1e-2, True)[0]
    recurrence.compare(['y'], [module(x)], [want], 1e-6)


def test_arguments_by_position(norms):
    x, weight, bias, residual = rand(2, 7), rand(7, seed=1), rand(7, seed=2), rand(2, 7, seed=3)
    args = (None, None, None, 1e-2, 0.0, None, True)
    for name in ('layer_norm_fn', 'rms_norm_fn'):
        got = getattr(norms, name)(x, weight, bias, residual, *args)
        want = formula(x, weight, bias, residual, 1e-2, name == 'rms_norm_fn')
        recurrence.compare(['y', 'sum'], got, want, 1e-5)


def test_what_is_not_there(norms):
    settings = {name: rand(7) for name in ('x1', 'weight1', 'bias1', 'rowscale')}
    for name, value in {**settings, 'dropout_p': 0.1, 'return_dropout_mask': True}.items():
        for function in (norms.layer_norm_fn, norms.rms_norm_fn):
            with pytest.raises(NotImplementedError, match=f'{name} is not supported by this'):
                function(rand(2, 7), rand(7), None, **{name: value})
    with pytest.raises(NotImplementedError, match='dropout_p is not supported'):
        norms.RMSNorm(7, dropout_p=0.1)
