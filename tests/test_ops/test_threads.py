"""The same bits for any number of threads; the same numbers from any build of the kernels."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmvmamba.ops import has_kernel, selective_scan, ss2d_scan

from .cases import run, selective_inputs, ss2d_inputs

pytestmark = pytest.mark.skipif(not has_kernel('ss2d_scan', 'cpu'), reason='no native kernel')
THREADS = (1, 2, 3, 5)


@pytest.fixture
def set_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def assert_identical(make_result, set_threads):
    results = []
    for threads in THREADS:
        set_threads(threads)
        results.append(make_result())
    for threads, result in zip(THREADS, results, strict=True):
        for name, value in results[0].items():
            assert torch.equal(result[name], value), f'{name} differs with {threads} threads'


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize('d_state', [1, 5])
@pytest.mark.parametrize(('batch', 'channels'), [(1, 200), (3, 17), (20, 8)])
def test_ss2d_scan(batch, channels, d_state, dtype, set_threads):
    inputs = ss2d_inputs(9, 23, d_state, 6, batch, channels, dtype)
    assert_identical(lambda: run(ss2d_scan, inputs, backend='native'), set_threads)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize('form', ['shared', 'grouped', 'constant'])
@pytest.mark.parametrize(('batch', 'channels'), [(1, 200), (3, 18), (20, 8)])
def test_selective_scan(batch, channels, form, dtype, set_threads):
    inputs = selective_inputs(207, 5, batch, channels, form, form, dtype=dtype)
    options = {'delta_softplus': True, 'backend': 'native'}
    assert_identical(lambda: run(selective_scan, inputs, **options), set_threads)


CHECK_BUILD = """
import torch
from mmvmamba.ops import selective_scan, ss2d_scan
g = torch.Generator().manual_seed(0)
n = lambda *s: torch.randn(*s, generator=g, dtype=torch.float64)
N, H, W, C, R, S, K = 2, 9, 17, 21, 19, {d_state}, 4
maps = [n(N, H, W, C), n(N, H, W, K, R + 2 * S), n(K, C, R), n(K, C), -n(K, C, S).exp(), n(K, C)]
L = H * W
lines = [n(N, C, L), n(N, C, L), -n(C, S).exp(), n(N, S, L), n(N, 3, S, L), n(C), n(N, C, L), n(C)]
for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
    for op, inputs, options in ((ss2d_scan, maps, {{}}), (selective_scan, lines,
                                                          {{'delta_softplus': True}})):
        results = []
        for backend in ('native', 'reference'):
            leaves = [v.to(dtype).requires_grad_() for v in inputs]
            y = op(*leaves, **options, backend=backend)
            y.sum().backward()
            results.append([y, *(v.grad for v in leaves)])
        for i, (a, b) in enumerate(zip(*results)):
            assert (a - b).abs().max() <= tolerance * b.abs().max(), (op, dtype, i)
print('agrees', torch.backends.cpu.get_cpu_capability())
"""


CAPABILITIES = ('default', 'avx2', 'avx512')


def run_build(capability, code, folder):
    """Run a program by the kernels of an instruction set; return the last line of its output."""
    best = torch.backends.cpu.get_cpu_capability().lower()
    if capability != 'default' and (
        best not in CAPABILITIES or CAPABILITIES.index(capability) > CAPABILITIES.index(best)
    ):
        pytest.skip(f'this processor has {best}')
    result = subprocess.run(
        [sys.executable, '-c', code],
        env={**os.environ, 'ATEN_CPU_CAPABILITY': capability},
        cwd=folder,  # not the source tree, whose package would be found before an installed one
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout.splitlines()[-1].lower()


@pytest.mark.parametrize('d_state', [1, 5])
@pytest.mark.parametrize('capability', CAPABILITIES)
def test_builds_for_other_processors(capability, d_state, tmp_path):
    line = run_build(capability, CHECK_BUILD.format(d_state=d_state), tmp_path)
    assert line.split() == ['agrees', capability]


# Without conftest.py, which imports OpenMMLab, and without the slow checks of the registration,
# which are the same for all builds.
TEST_BUILD = """
import os
import sys
import pytest
import torch
os.environ.pop('PYTEST_ADDOPTS', None)
options = ['--noconftest', '--capture=sys', '-p', 'no:cacheprovider', '-k', 'not registered']
status = pytest.main([*options, {tests!r}])
print('passes', torch.ops.mmvmamba.cpu_isa())
sys.exit(status)
"""


@pytest.mark.parametrize('capability', CAPABILITIES)
def test_fused_ops_of_other_builds(capability, tmp_path):
    if capability == torch.ops.mmvmamba.cpu_isa():
        pytest.skip('test_fused_ops.py itself runs this build')
    tests = Path(__file__).with_name('test_fused_ops.py')
    line = run_build(capability, TEST_BUILD.format(tests=str(tests)), tmp_path)
    assert line.split() == ['passes', capability]
