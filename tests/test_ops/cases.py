"""Inputs for the scans, pairs of settings, and what the tests measure an error with."""

import itertools
import math
import random
import statistics

import pytest
import torch

ALL_ORDERS = {
    'cross': (0, 1, 2, 3),
    'unidirectional': (0, 0, 0, 0),
    'bidirectional': (0, 0, 2, 2),
}
#: The dtypes of the CUDA kernels.
HALF = {'dtype': [torch.float32, torch.float16, torch.bfloat16, torch.float64]}
#: The least and the most blocks, and as little shared memory as the smallest GPUs have: settings of
#: the emulator.
SPLITS = {'blocks': [1, 512], 'seed': [0, 1], 'shared': [64 * 1024, 99 * 1024]}
REGIMES = ('plain', 'dt_30', 'dt_far', 'A_near_0', 'A_-1e4', 'x_limit')


def pairwise(factors, allowed=lambda case: True):
    """Few cases that hold every allowed pair of values of any two factors; always the same ones."""
    rng, names = random.Random(0), list(factors)

    def pairs(case):
        return {((a, case[a]), (b, case[b])) for a, b in itertools.combinations(names, 2)}

    wanted = {
        ((a, x), (b, y))
        for a, b in itertools.combinations(names, 2)
        for x in factors[a]
        for y in factors[b]
    }
    cases = []
    while wanted:
        seed = min(wanted, key=repr)
        best, gain = None, 0
        for _ in range(60):
            case = {name: rng.choice(values) for name, values in factors.items()} | dict(seed)
            if allowed(case) and len(pairs(case) & wanted) > gain:
                best, gain = case, len(pairs(case) & wanted)
        wanted.discard(seed)  # also where no case is allowed to hold it
        if best is not None:
            wanted -= pairs(best)
            cases.append(best)
    return cases


def native_cases(factors, small, draws, fast=17_000, fast_states=math.inf):
    """Pairwise cases; those of more than ``fast`` positions or states in all draws are slow."""
    for case in pairwise(factors, small):
        length = case['size'][0] * case['size'][1] if 'size' in case else case['length']
        positions = draws(case) * length
        states = positions * case['d_state'] * case['channels'] * case['batch']
        marks = [pytest.mark.slow] if positions > fast or states > fast_states else []
        yield pytest.param(case, marks=marks, id=case_id(case))


def kernel_cases(module):
    """The cases of the CUDA kernels, the same in the emulator and on a GPU.

    Errors are compared with chance in them: a case that passes in the emulator, which runs the
    very code, passes on a GPU.
    """
    return native_cases(module.FACTORS | HALF | SPLITS, module.small, module.draws, 600, 150_000)


def case_id(case):
    return '-'.join(str(v).removeprefix('torch.').replace(' ', '') for v in case.values())


def strided(value, layout):
    """The same values in other memory: 'dense', 'permuted', 'sliced' or 'offset'."""
    if layout == 'permuted':  # the last dimension is the slowest
        value = value.movedim(-1, 0).contiguous().movedim(0, -1)
    elif layout == 'sliced':  # every other element of a larger tensor
        value = value.repeat_interleave(2, dim=-1)[..., ::2]
    elif layout == 'offset':  # a view that starts inside a storage
        value = torch.cat([torch.zeros_like(value), value])[value.shape[0] :]
    return value


def move(value, device):
    """Move a tensor with its strides and its offset, which ``Tensor.to`` does not keep."""
    whole = value if value._base is None else value._base
    return whole.to(device).as_strided(value.shape, value.stride(), value.storage_offset())


class Maker:
    """Random tensors of a dtype, drawn in float64, so that a seed means the same in each dtype."""

    def __init__(self, dtype, seed=0):
        self.dtype = dtype
        self.acc = torch.float64 if dtype == torch.float64 else torch.float32
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape, std=1.0, mean=0.0):
        values = torch.randn(shape, generator=self.generator, dtype=torch.float64)
        return (values * std + mean).to(self.dtype)

    def param(self, *shape, std=1.0, mean=0.0):
        values = torch.randn(shape, generator=self.generator, dtype=torch.float64)
        return (values * std + mean).to(self.acc)

    def rates(self, *shape, regime='plain'):
        scale = {'A_near_0': 1e-7, 'A_-1e4': 1e4}.get(regime, 1.0)
        values = torch.rand(shape, generator=self.generator, dtype=torch.float64)
        return (-scale * (0.5 + values)).to(self.acc)

    def at_limit(self, x):
        """Puts the largest number of the type into each sample and channel-like row."""
        flat = x.flatten(1)
        if flat.numel():
            flat[:, flat.shape[1] // 2] = torch.finfo(self.dtype).max * 0.9
        return flat.view_as(x)


def time_step_std(regime):
    """Standard deviation of a time step before softplus.

    At the limit of x the steps stay below one: eager and the kernels form dt x first, which the
    type must hold.
    """
    return {'dt_30': 30.0, 'dt_far': 3e3, 'x_limit': 0.3}.get(regime, 1.0)


def ss2d_inputs(
    height=3, width=5, d_state=2, rank=2, batch=2, channels=5, dtype=torch.float64, pattern='cross',
    regime='plain', layout='dense', seed=0,
):  # fmt: skip
    make, K = Maker(dtype, seed), len(ALL_ORDERS.get(pattern, pattern))
    x = make.normal(batch, height, width, channels)
    # Low-rank steps of order one; B and C such that a sum over the states is, too.
    proj = make.normal(batch, height, width, K, rank + 2 * d_state, std=0.5 * d_state**-0.25)
    scale = 0.1 if regime == 'x_limit' else 1.0
    inputs = {
        'x': make.at_limit(x) if regime == 'x_limit' else x,
        'proj': proj * scale,
        'dt_weight': make.param(K, channels, rank, std=rank**-0.5 * time_step_std(regime)),
        'dt_bias': make.param(K, channels, std=time_step_std(regime), mean=-2.0),
        'A': make.rates(K, channels, d_state, regime=regime),
        'D': make.param(K, channels) * scale,
    }
    return {name: strided(value, layout) for name, value in inputs.items()}


def selective_inputs(
    length=9, d_state=2, batch=2, channels=4, B='shared', C='shared', D=True, z=True, bias=True,
    softplus=True, dtype=torch.float64, regime='plain', layout='dense', seed=0,
):  # fmt: skip
    make = Maker(dtype, seed)
    scale = 0.1 if regime == 'x_limit' else 1.0
    std = d_state**-0.25 * scale
    u = make.normal(batch, channels, length)
    delta = make.normal(batch, channels, length, std=time_step_std(regime), mean=-2.0)
    shapes = {
        'shared': (batch, d_state, length),
        'grouped': (batch, 2, d_state, length),
        'all': (batch, channels, d_state, length),
        'constant': (channels, d_state),
    }
    inputs = {
        'u': make.at_limit(u) if regime == 'x_limit' else u,
        'delta': delta if softplus else delta.abs() * 0.1,
        'A': make.rates(channels, d_state, regime=regime),
        'B': make.normal(*shapes[B], std=std),
        'C': make.normal(*shapes[C], std=std),
        'D': make.param(channels) * scale if D else None,
        'z': make.normal(batch, channels, length) if z else None,
        'delta_bias': make.param(channels, std=0.1).abs() if bias else None,
    }
    return {k: v if v is None else strided(v, layout) for k, v in inputs.items()}


def run(function, inputs, dtype=None, seed=1, **options):
    """Output and gradients by name, all in float64; inputs are cast to ``dtype`` where given."""
    leaves = {
        name: value if value is None else value.detach().to(dtype or value.dtype).requires_grad_()
        for name, value in inputs.items()
    }
    out = function(**leaves, **options)
    generator = torch.Generator().manual_seed(seed)
    grad = torch.randn(out.shape, generator=generator, dtype=torch.float64) * 0.1
    # Rounded to the narrow type first: every precision gets the same gradient.
    out.backward(grad.to(torch.bfloat16).to(out.dtype).to(out.device))
    given = {k: v for k, v in leaves.items() if v is not None}
    # Nothing depends on some inputs of an empty sequence: no gradient is one of zeros.
    grads = {
        f'grad_{k}': torch.zeros_like(v) if v.grad is None else v.grad for k, v in given.items()
    }
    return {'out': out.detach(), **grads}


def relative_error(value, exact):
    """Root mean square of the error over that of the exact value, at finite places.

    A maximum of ratios would be decided by places where terms cancel; a root mean square over the
    tensor is not.
    """
    exact = exact.double()
    places = exact.isfinite() & (exact.abs() < torch.finfo(value.dtype).max)
    error = (value.double() - exact)[places]
    scale = exact[places].abs().max() if places.any() else torch.tensor(1.0)
    # Products of numbers below this are subnormal, which have fewer digits.
    info = torch.finfo(value.dtype)
    scale = scale.clamp(min=info.tiny / info.eps)
    # Divided first: the square of a number at the limit of float32 is fine, of float64 is not.
    return ((error / scale).norm() / (exact[places] / scale).norm().clamp(min=1.0)).item()


def assert_as_exact_as_eager(native, eager, exact, ulps=4, precision=None):
    """Finite wherever the exact result is, and at most twice eager's error plus a few ulp.

    Of several draws the medians of the errors are compared: what a single draw's sums lose where
    their terms cancel is chance, and the worst draw's is chance above all: it may be 32 times
    eager's worst. For float64 ``exact`` is no more exact than the others: all agree to 1e-11.

    Args:
        native (list): The results of several draws, each by name.
        eager (Iterable): Of one or more forms in the same precision, each as ``native``; one after
            the other is asked for until one's error allows that of ``native``.
        exact (list): As ``native``, in float64.
        ulps (int): The least error that is allowed. Defaults to 4.
        precision (torch.dtype, optional): Whose ulp counts where it is larger than the result's.
    """
    for got, want in zip(native, exact, strict=True):
        for name in want:
            places = want[name].abs() < 0.5 * torch.finfo(got[name].dtype).max
            assert got[name][places].isfinite().all(), f'{name} is not finite'
    excess = ['there is no eager result']
    for form in eager:
        excess = _excess(native, form, exact, ulps, precision)
        if not excess:
            break
    assert not excess, '; '.join(excess)


def _excess(native, eager, exact, ulps, precision):
    """Where an error is larger than eager's allows, in words."""
    out = []
    for name in exact[0]:
        dtype = native[0][name].dtype
        least = ulps * max(torch.finfo(d).eps for d in (dtype, precision or dtype))
        errors, allowed = (
            [relative_error(got[name], want[name]) for got, want in zip(form, exact, strict=True)]
            for form in (native, eager)
        )
        allowed = [error if error == error else 0.0 for error in allowed]  # eager failed
        for which, factor in ((statistics.median, 2), (max, 32)):
            bound = 1e-11 if dtype == torch.float64 else factor * which(allowed) + least
            if not which(errors) <= bound:
                out.append(f'{name}: {which.__name__} {which(errors):.3g}, allowed {bound:.3g}')
    return out
