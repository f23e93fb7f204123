"""The scans in PyTorch's FlopCounterMode."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mmvmamba.nn import SS2D
from mmvmamba.ops import has_kernel, ss2d_scan
from mmvmamba.ops.flops import ss2d_scan_cost

needs_native = pytest.mark.skipif(
    not has_kernel('ss2d_scan', 'cpu'), reason='the native extension is not built'
)
#: The kernel, and PyTorch's own ops in its place.
BACKENDS = pytest.mark.parametrize(
    'backend', [pytest.param('native', marks=needs_native), 'reference']
)


@BACKENDS
def test_flop_counter_mode_counts_forward_and_backward(backend):
    """Two for a multiply-add, as it counts everything; a backward is two forwards."""
    module = SS2D(8, conv_kernel=0, d_state=2, ssm_ratio=2.0, backend=backend)
    x = torch.rand(1, 3, 5, 8, requires_grad=True)
    with FlopCounterMode(display=False) as forward:
        y = module(x)
    with FlopCounterMode(display=False) as backward:
        y.sum().backward()
    C, R, S = 16, 1, 2
    products = 15 * (8 * C + 4 * C * (R + 2 * S) + C * 8)
    scan = 15 * 4 * C * (R + 9 * S + 1)
    assert scan == ss2d_scan_cost((1, 3, 5, C), (4, C, R), (4, C, S))
    assert forward.get_total_flops() == 2 * (products + scan)
    assert backward.get_total_flops() == 4 * (products + scan)
    if backend == 'reference':
        return
    ops = torch.ops.mmvmamba
    assert forward.get_flop_counts()['Global'][ops.ss2d_scan] == 2 * scan
    assert backward.get_flop_counts()['Global'][ops.ss2d_scan_backward] == 4 * scan


@needs_native
def test_flop_counter_mode_on_the_meta_device():
    x = torch.empty(1, 3, 5, 16, device='meta')
    inner = torch.empty(1, 3, 5, 4, 5, device='meta')
    weights = [torch.empty(4, 16, *tail, device='meta') for tail in ((1,), (), (2,), ())]
    with FlopCounterMode(display=False) as counter:
        ss2d_scan(x, inner, *weights)
    assert counter.get_total_flops() == 2 * ss2d_scan_cost((1, 3, 5, 16), (4, 16, 1), (4, 16, 2))
