"""Bounds for the errors of the Triton kernels."""

import torch

from ..cases import relative_error

#: What a result in float32 may lose: the polynomial of softplus, 8.4e-6, is in each time step, and
#: 2^-16 of dt_weight in bfloat16, where large products cancel.
OUTPUT = {torch.float16: 2e-5, torch.bfloat16: 6e-5}
#: A gradient is a sum of products of numbers that were rounded to half precision, to 4.9e-4 or
#: 3.9e-3 at worst, and their errors hardly cancel where there are few of them.
GRADIENT = {torch.float16: 1e-3, torch.bfloat16: 8e-3}


def assert_close(got, exact, dtype, eager=None):
    """Check results by name against float64, for inputs of a dtype.

    In float32, where the kernels form all products with its digits: at most four times the error of
    the reference in float32, as a time step in units of log2(e) is rounded once more before it is
    multiplied with a large A, and the error of a single draw is chance; plus 16 ulp for sums of few
    terms, which may cancel. Otherwise the bounds above, plus the rounding to the dtype of the
    result.
    """
    assert got.keys() == exact.keys()
    excess = []
    for name, value in got.items():
        limit = torch.finfo(value.dtype).max / 2
        places = exact[name].abs() < limit
        assert value[places].isfinite().all(), f'{name} is not finite'
        error = relative_error(value, exact[name])
        if dtype == torch.float32:
            bound = 4 * relative_error(eager[name], exact[name]) + 16 * torch.finfo(dtype).eps
        else:
            bound = (OUTPUT if name == 'out' else GRADIENT)[dtype]
            if value.dtype == dtype:
                bound += torch.finfo(dtype).eps / 2
        if not error <= bound:
            excess.append(f'{name}: {error:.3g}, allowed {bound:.3g}')
    assert not excess, '; '.join(excess)
