"""Compilation of the Triton kernels for GPUs that are not here."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from mmvmamba.ops import triton

launch = pytest.importorskip('mmvmamba.ops.triton.launch')
compilation = pytest.importorskip('mmvmamba.ops.triton.compilation')
REASON = triton.package_error() or (triton.interprets() and 'the interpreter compiles nothing')
pytestmark = pytest.mark.skipif(bool(REASON), reason=str(REASON))

TARGETS = {
    'sm_80': launch.GPUTarget('cuda', 80, 32),
    'sm_90': launch.GPUTarget('cuda', 90, 32),
    'sm_100': launch.GPUTarget('cuda', 100, 32),
    'gfx942': launch.GPUTarget('hip', 'gfx942', 64),
}
ALL_ORDERS = (0, 1, 2, 3)
#: Height, width, channels, rank, states, dtype and orders of scans of a map.
MAPS = [
    *((size, size, 96 * scale, 6 * scale, 1, 'float16', ALL_ORDERS)
      for size, scale in ((56, 1), (28, 2), (14, 4), (7, 8))),
    *((size, size, 96, 6, 1, dtype, ALL_ORDERS)
      for size in (56, 14) for dtype in ('float32', 'bfloat16')),
    (56, 56, 768, 48, 1, 'float16', (1, 3)),
    (56, 56, 768, 48, 1, 'float32', (1, 3)),
    (3, 100, 20, 15, 1, 'float16', ALL_ORDERS),
    *((size, 20, 64, 4, states, dtype, (1, 3))
      for size in (5, 20) for states in (2, 16) for dtype in ('float16', 'float32')),
]  # fmt: skip
#: Length, channels, groups, states, dtype, and whether B and C depend on the position.
SEQUENCES = [
    (200, 64, 1, 1, 'float16', True, True),
    (64, 64, 1, 1, 'float32', True, True),
    (200, 64, 2, 16, 'bfloat16', True, True),
    (200, 64, 2, 16, 'float32', True, True),
    (200, 64, 1, 16, 'float16', False, True),
    (200, 64, 2, 16, 'float16', True, False),
    (200, 64, 1, 2, 'float32', False, False),
]


def meta(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device='meta')


def compile_scan(scan, target, last_state=None):
    """Compile the kernels of a forward and a backward."""
    out = torch.empty_like(scan.x)
    for item in launch.plan_forward(scan, out, last_state):
        assert item.compile(target).asm
    for item in launch.plan_backward(scan, out, launch.Gradients.allocate(scan)):
        assert item.compile(target).asm


def compile_map(H, W, C, R, S, dtype, orders, target):
    K, dtype = len(orders), getattr(torch, dtype)
    x, proj = meta(2, H, W, C, dtype=dtype), meta(2, H, W, K, R + 2 * S, dtype=dtype)
    params = (meta(K, C, R), meta(K, C), meta(K, C, S), meta(K, C))
    compile_scan(launch.ss2d_scan_inputs(x, proj, *params, orders, target), target)


# What sm_90 compiles is also counted, in test_sass.py.
@pytest.mark.parametrize(
    'target', ['gfx942', *(pytest.param(t, marks=pytest.mark.slow) for t in ('sm_80', 'sm_100'))]
)
def test_compiles_without_a_gpu(target):
    compile_map(56, 56, 96, 6, 1, 'float16', (0, 2), TARGETS[target])


@pytest.mark.slow
@pytest.mark.parametrize('target', TARGETS)
@pytest.mark.parametrize('case', MAPS, ids=str)
def test_compiles_any_map(case, target):
    compile_map(*case, TARGETS[target])


@pytest.mark.slow
@pytest.mark.parametrize('target', TARGETS)
@pytest.mark.parametrize('case', SEQUENCES, ids=str)
def test_compiles_any_sequence(case, target):
    L, D, G, S, dtype, *varies = case
    dtype = getattr(torch, dtype)
    u = meta(2, D, L, dtype=dtype)
    B, C = (meta(2, G, S, L, dtype=dtype) if v else meta(D, S) for v in varies)
    args = (u, u, meta(D, S), B, C, meta(D), meta(D), True, TARGETS[target])
    compile_scan(launch.selective_scan_inputs(*args), TARGETS[target], meta(2, D, S))


def record(dtype=torch.float16, device='meta'):
    """Record a forward and a backward of a map that needs each kernel."""
    x = torch.empty(1, 9, 40, 32, dtype=dtype, device=device)
    proj = torch.empty(1, 9, 40, 1, 4, dtype=dtype, device=device)
    sizes = (1, 32, 2), (1, 32), (1, 32, 1), (1, 32)
    inputs = (x, proj, *(torch.empty(size, device=device) for size in sizes), (0,))
    with launch.recording() as launches:
        y = launch.ss2d_scan_forward(*inputs, torch.float32)
        # As autograd does, in another thread.
        thread = threading.Thread(target=launch.ss2d_scan_backward, args=(y, *inputs))
        thread.start()
        thread.join()
    return launches


def test_recorded_launches(monkeypatch):
    launches = record(device='cpu')
    names = [item.kernel.__name__ for item in launches]
    assert names == [
        'summary_kernel', 'combine_kernel', 'scan_kernel',
        'backward_summary_kernel', 'combine_kernel', 'combine_kernel', 'backward_kernel',
    ]  # fmt: skip
    tensors = [v for item in launches for v in item.args.values() if isinstance(v, torch.Tensor)]
    assert tensors and all(v.is_meta for v in tensors)
    ran = []
    monkeypatch.setattr(launch.Launch, 'run', lambda self: ran.append(self))
    launch._run(iter(launches))
    assert ran == launches
    with launch.recording() as outer, launch.recording():
        launch._run(iter(launches))
    assert outer == []


FIRST_RUN = """
import sys, torch, triton
from mmvmamba.ops.triton import launch
sys.path.insert(0, sys.argv[1])
from test_ops.test_triton.test_compilation import TARGETS, record
triton.runtime.driver.set_active(launch._AbsentGPU(TARGETS['sm_90']))
for item in reversed(record()):
    args = {
        name: torch.empty(16, dtype=v.dtype) if isinstance(v, torch.Tensor) else v
        for name, v in item.args.items()
    }
    item.kernel.warmup(grid=item.grid, **args, **item.constants, **item.options)
"""


def test_compilation_in_processes(tmp_path, monkeypatch):
    """A first run with real tensors, in another process and order, compiles nothing."""
    monkeypatch.setenv('TRITON_CACHE_DIR', str(tmp_path))

    def files():
        return {path for path in tmp_path.rglob('*') if path.is_file()}

    found = list(compilation.compile_kernels(record(), TARGETS['sm_90'], processes=6))
    assert sorted(name for name, _ in found) == [
        'backward_kernel', 'backward_summary_kernel', 'combine_kernel', 'scan_kernel',
        'summary_kernel',
    ]  # fmt: skip
    assert [error for _, error in found if error is not None] == []
    before = files()
    assert len([path for path in before if path.suffix == '.cubin']) == 5
    tests = str(Path(__file__).parents[2])
    subprocess.run([sys.executable, '-c', FIRST_RUN, tests], check=True)
    assert files() == before


def test_errors_of_a_compilation_in_processes():
    combine = record()[1]
    broken = combine._replace(constants=combine.constants | {'BC': 3})
    ((name, error),) = compilation.compile_kernels([broken, broken], TARGETS['sm_90'])
    assert name == 'combine_kernel' and 'CompilationError' in error
    assert list(compilation.compile_kernels([], TARGETS['sm_90'])) == []
