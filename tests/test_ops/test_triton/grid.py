"""Cases for the Triton kernels in the interpreter, which takes 0.1 s for a tile and state."""

import functools
import math

import pytest
import torch

from mmvmamba.ops import selective_scan, ss2d_scan
from mmvmamba.ops.scan_orders import resolve_pattern

from ..cases import Maker, case_id, pairwise, run, selective_inputs, ss2d_inputs
from . import comparison

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
REGIMES = ['plain', 'dt_30', 'dt_far', 'A_near_0', 'A_-1e4', 'x_limit']
FORMS = ['shared', 'grouped', 'all', 'constant']
SS2D = {
    # One position, lines shorter than a subchunk, whole sequences, and several chunks.
    'size': [(1, 1), (1, 9), (9, 1), (3, 5), (7, 7), (14, 14), (5, 60), (31, 13), (2, 150)],
    'pattern': ['cross', 'unidirectional', 'bidirectional', (1,), (3, 0), (2, 2, 1), (0, 1, 2)],
    'd_state': [1, 2, 16, 17],
    'rank': [1, 6, 14, 15, 16, 48],  # 14, 15: B or C at the end of a slice of 16
    'channels': [1, 5, 17, 40, 96],
    'batch': [1, 3],
    'layout': ['dense', 'permuted', 'sliced', 'offset'],
    'dtype': DTYPES,
    'wide': [True, False],
    'regime': REGIMES,
}
SEQUENCE = {
    'length': [1, 9, 65, 300],
    'd_state': [1, 2, 16, 17],
    'batch': [1, 3],
    'channels': [2, 6, 34, 80],
    'B': FORMS,
    'C': FORMS,
    'D': [True, False],
    'z': [True, False],
    'bias': [True, False],
    'softplus': [True, False],
    'layout': ['dense', 'permuted', 'sliced', 'offset'],
    'dtype': DTYPES,
    'regime': REGIMES,
}


def ss2d_work(case):
    """Count the tiles of a case times their directions and states."""
    chunks = math.ceil(math.prod(case['size']) / 80)
    blocks = math.ceil(case['channels'] / 64)
    directions = len(resolve_pattern(case['pattern']))
    return case['batch'] * chunks * blocks * directions * (case['d_state'] + 1) // 2


def sequence_work(case):
    """As ss2d_work, for one direction."""
    groups = {'grouped': 2, 'all': case['channels']}
    groups = max(groups.get(case[name], 1) for name in 'BC')
    blocks = groups * math.ceil(case['channels'] / groups / 64)
    return case['batch'] * math.ceil(case['length'] / 80) * blocks * (case['d_state'] + 1) // 2


def cases(factors, work, fast, most):
    """Pairwise cases of up to ``most`` units of work; those of more than ``fast`` are slow."""
    for case in pairwise(factors, lambda case: work(case) <= most):
        marks = [pytest.mark.slow] if work(case) > fast else []
        yield pytest.param(case, marks=marks, id=case_id(case))


def make(case, seed=0):
    """Return the function of a case, its inputs, and its options."""
    case = dict(case)
    if 'size' in case:
        height, width = case.pop('size')
        acc = Maker(case['dtype']).acc
        options = {'pattern': case['pattern'], 'out_dtype': acc if case.pop('wide') else None}
        return ss2d_scan, ss2d_inputs(height, width, seed=seed, **case), options
    options = {'delta_softplus': case['softplus']}
    return selective_scan, selective_inputs(seed=seed, **case), options


def reference(function):
    """Return the fast reference of a function."""
    from .. import test_selective_scan, test_ss2d_scan

    module = test_ss2d_scan if function is ss2d_scan else test_selective_scan
    return module.chunked


def check(case, execute=run):
    """Compare the kernels with float64."""
    function, inputs, options = make(case)
    got = execute(functools.partial(function, backend='triton'), inputs, **options)
    wide = options | ({'out_dtype': None} if 'out_dtype' in options else {})
    exact = execute(reference(function), inputs, torch.float64, **wide)
    eager = None
    if case['dtype'] == torch.float32:
        eager = execute(reference(function), inputs, **options)
    comparison.assert_close(got, exact, case['dtype'], eager)


@torch.no_grad()
def outputs(function, inputs, dtype=None, **options):
    """Return the output by name, as cases.run does with the gradients."""
    inputs = {k: v if v is None or dtype is None else v.to(dtype) for k, v in inputs.items()}
    return {'out': function(**inputs, **options)}
