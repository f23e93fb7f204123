"""The building blocks of the Triton kernels, each in a kernel of its own in the interpreter."""

import numpy as np
import pytest
import torch

from .. import definition

NUMBERS = torch.cat([torch.linspace(-30, 30, 1021), torch.tensor([-1e4, 1e4, 0.0])])


@pytest.mark.parametrize(('exact', 'bound'), [(True, 3e-7), (False, 1e-5)])
def test_softplus_and_its_slope(triton_on_cpu, exact, bound):
    """Arguments and values are in units of log2(e); where a value vanishes, so does its slope."""
    steps, slopes = torch.empty_like(NUMBERS), torch.empty_like(NUMBERS)
    triton_on_cpu.probes.softplus_probe[(1,)](NUMBERS, steps, slopes, N=1024, EXACT=exact)
    v = NUMBERS.double() * np.log(2)
    want = v.clamp(min=0) + torch.log1p(torch.exp(-v.abs()))
    got = steps.double() * np.log(2)
    normal = want > 1e-37
    assert ((got - want).abs() / want)[normal].max() < bound
    assert (got[~normal] == 0).all() and (slopes[~normal] == 0).all()
    slope = torch.sigmoid(v)
    # From 7e-4 on, the fast form is a difference of numbers close to one.
    wide = bound if exact else 4e-4
    assert ((slopes.double() - slope).abs() / slope)[normal].max() < wide


@pytest.mark.parametrize('columns', [False, True], ids=['rows', 'columns'])
@pytest.mark.parametrize('size', [(1, 1), (1, 9), (9, 1), (3, 5), (2, 31), (7, 7), (8, 8)], ids=str)
@pytest.mark.parametrize('steps', [4, 5, 8])
def test_positions_are_those_of_the_definition(triton_on_cpu, size, steps, columns):
    height, width = size
    length = height * width
    out = torch.full((16, steps), -1, dtype=torch.int64)
    exist = torch.empty(16, steps, dtype=torch.int8)
    triton_on_cpu.probes.positions_probe[(1,)](
        out, exist, length, height if columns else width, width, T=16, J=steps, COLUMNS=columns,
        SHORT_LINES=columns and height < steps,
    )  # fmt: skip
    path = definition.positions(1 if columns else 0, height, width)
    assert exist.flatten().tolist() == [1] * length + [0] * (16 * steps - length)
    assert out.flatten()[:length].tolist() == [h * width + w for h, w in path]


@pytest.mark.parametrize('backwards', [False, True])
def test_scan_rows(triton_on_cpu, backwards):
    generator = torch.Generator().manual_seed(0)
    p, h = torch.rand(2, 16, 4, generator=generator)
    before, after = torch.empty_like(p), torch.empty_like(p)
    triton_on_cpu.probes.scan_rows_probe[(1,)](p, h, before, after, T=16, BC=4, BACKWARDS=backwards)
    state = torch.zeros(4)
    for row in reversed(range(16)) if backwards else range(16):
        torch.testing.assert_close(before[row], state)
        state = p[row] * state + h[row]
        torch.testing.assert_close(after[row], state)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_products_of_the_interpreter_are_right(triton_on_cpu, dtype):
    """Without the fixture's help, bfloat16 operands are taken for integers."""
    a, b = torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    out = torch.empty(16, 16)
    triton_on_cpu.probes.dot_probe[(1,)](a, b, out, N=16)
    torch.testing.assert_close(out, a.float() @ b.float())


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
def test_numbers_of_the_interpreter_are_rounded_to_nearest(triton_on_cpu, dtype):
    """Without the fixture's help, bfloat16 is cut off."""
    out = torch.empty(1024, dtype=dtype)
    triton_on_cpu.probes.round_probe[(1,)](NUMBERS, out, N=1024)
    assert torch.equal(out, NUMBERS.to(dtype))
