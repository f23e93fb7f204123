"""The scans in PyTorch's FlopCounterMode."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mmvmamba.nn import SS2D
from mmvmamba.ops import has_kernel, selective_scan, ss2d_scan
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


@needs_native
@pytest.mark.parametrize('skip_and_gate', [(False, False), (True, True)])
def test_the_count_does_not_depend_on_the_backend(skip_and_gate):
    x, proj = torch.empty(1, 3, 5, 16), torch.empty(1, 3, 5, 4, 5)
    weights = [torch.empty(4, 16, *tail) for tail in ((1,), (), (2,), ())]
    u, A, B, D = torch.empty(2, 4, 9), torch.empty(4, 3), torch.empty(2, 3, 9), torch.empty(4)
    optional = [v if given else None for given, v in zip(skip_and_gate, (D, u), strict=True)]
    counts = []
    for backend in ('native', 'triton'):
        with FlopCounterMode(display=False) as counter:
            for scan, inputs in (
                (ss2d_scan, (x, proj, *weights)),
                (selective_scan, (u, u, A, B, B, *optional)),
            ):
                values = [v if v is None else v.to('meta').requires_grad_() for v in inputs]
                scan(*values, backend=backend).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0
