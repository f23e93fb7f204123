"""Compilation of the Triton kernels for GPUs that are not here."""

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
    'target', ['sm_80', pytest.param('sm_100', marks=pytest.mark.slow), 'gfx942']
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


def record(dtype, out_dtype=torch.float32):
    """Record a forward and a backward of a map that needs each kernel."""
    inputs = (meta(1, 9, 40, 32, dtype=dtype), meta(1, 9, 40, 1, 4, dtype=dtype), meta(1, 32, 2),
              meta(1, 32), meta(1, 32, 1), meta(1, 32), (0,))  # fmt: skip
    with launch.recording() as launches:
        y = launch.ss2d_scan_forward(*inputs, out_dtype)
        launch.ss2d_scan_backward(y, *inputs)
    return launches


def test_recorded_launches():
    launches = record(torch.float16)
    names = [item.kernel.__name__ for item in launches]
    assert names == [
        'summary_kernel', 'combine_kernel', 'scan_kernel',
        'backward_summary_kernel', 'combine_kernel', 'combine_kernel', 'backward_kernel',
    ]  # fmt: skip
    tensors = [v for item in launches for v in item.args.values() if isinstance(v, torch.Tensor)]
    assert all(v.is_meta for v in tensors)
    with launch.recording() as outer, launch.recording():
        pass
    assert outer == []


def test_compilation_in_processes(tmp_path, monkeypatch):
    """Each kernel is compiled once, and is what a first run looks for; errors are returned."""
    monkeypatch.setenv('TRITON_CACHE_DIR', str(tmp_path))
    combine = record(torch.float16)[1]
    broken = combine._replace(constants=combine.constants | {'BC': 3})
    target = TARGETS['sm_90']
    found = dict(compilation.compile_kernels([combine, combine], target, processes=1))
    assert found == {'combine_kernel': None}
    files = {path for path in Path(tmp_path).rglob('*') if path.is_file()}
    assert [path for path in files if path.suffix == '.cubin']
    combine.compile(target)
    assert {path for path in Path(tmp_path).rglob('*') if path.is_file()} == files
    ((_, error),) = compilation.compile_kernels([broken], target)
    assert 'CompilationError' in error
    assert list(compilation.compile_kernels([], target)) == []
