"""The CUDA kernels on a GPU: the host harness's grid, and GPU-only behavior.

With MMVMAMBA_REQUIRE_CUDA=1 it is an error if they cannot run, see conftest.py.
"""

import functools
import threading
from pathlib import Path

import pytest
import torch

import mmvmamba
from mmvmamba.info import why_not_native
from mmvmamba.nn import SS2D
from mmvmamba.ops import selective_scan, ss2d_scan
from mmvmamba.ops.ss2d_scan import ss2d_scan_reference

from . import test_selective_scan as selective
from . import test_ss2d_scan as ss2d
from .cases import (
    HALF,
    SPLITS,
    kernel_cases,
    run,
    selective_inputs,
    ss2d_inputs,
)

REASON = why_not_native(torch.device('cuda', 0))
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(
        REASON is not None,
        reason=f'the CUDA kernels of {Path(mmvmamba.__file__).parent} cannot run: {REASON}',
    ),
]
native_ss2d_scan = functools.partial(ss2d_scan, backend='native')
native_selective_scan = functools.partial(selective_scan, backend='native')
OPS = {
    'ss2d_scan': (native_ss2d_scan, lambda **kw: ss2d_inputs(20, 33, **kw)),
    'selective_scan': (
        functools.partial(native_selective_scan, delta_softplus=True),
        lambda **kw: selective_inputs(660, **kw),
    ),
}
BOTH = pytest.mark.parametrize('op', list(OPS))


def on(device, inputs):
    return {k: v if v is None else v.to(device) for k, v in inputs.items()}


def run_on_gpu(function, inputs, device='cuda', **options):
    """As ``cases.run``, with the same gradient; results on the CPU."""
    result = run(function, on(device, inputs), **options)
    return {name: value.cpu() for name, value in result.items()}


def without_splits(case):
    """A case without the settings of the host harness."""
    return {name: value for name, value in case.items() if name not in SPLITS}


@pytest.mark.parametrize('case', list(kernel_cases(ss2d)))
def test_ss2d_scan_is_as_exact_as_eager(case):
    native = functools.partial(run_on_gpu, native_ss2d_scan)
    ss2d.compare_with_eager(without_splits(case), native)


@pytest.mark.parametrize('case', list(kernel_cases(selective)))
def test_selective_scan_is_as_exact_as_eager(case):
    native = functools.partial(run_on_gpu, native_selective_scan)
    selective.compare_with_eager(without_splits(case), native)


@BOTH
@pytest.mark.parametrize('dtype', HALF['dtype'], ids=str)
def test_deterministic_to_the_last_bit(op, dtype):
    function, make = OPS[op]
    inputs = make(d_state=3, channels=40, batch=5, dtype=dtype)
    first = run_on_gpu(function, inputs)
    for _ in range(100):
        for name, value in run_on_gpu(function, inputs).items():
            assert torch.equal(value, first[name]), name


@BOTH
def test_on_another_stream(op):
    """The work waits for what its stream has queued, and nothing else."""
    function, make = OPS[op]
    inputs = make(channels=40)
    want = run_on_gpu(function, inputs)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10**8)  # what follows must wait for it
        late = {k: v.pin_memory().to('cuda', non_blocking=True) for k, v in inputs.items()}
        result = run(function, late)
    stream.synchronize()
    for name, value in want.items():
        assert torch.equal(result[name].cpu(), value), name


@BOTH
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason='needs two GPUs')
def test_on_a_device_that_is_not_the_current_one(op):
    function, make = OPS[op]
    inputs = make(channels=40)
    with torch.cuda.device(0):
        result = run_on_gpu(function, inputs, device='cuda:1')
    for name, value in run_on_gpu(function, inputs, device='cuda:0').items():
        assert torch.equal(result[name], value), name


@BOTH
def test_in_a_cuda_graph(op):
    function, make = OPS[op]
    static = {k: v.requires_grad_() for k, v in on('cuda', make(channels=40)).items()}

    def step():
        y = function(**static)
        return y, *torch.autograd.grad(y.sum(), list(static.values()))

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()
    with torch.no_grad():
        for name, value in make(channels=40, seed=7).items():
            static[name].copy_(value)
    graph.replay()
    torch.cuda.synchronize()
    for got, want in zip(results, step(), strict=True):
        assert torch.equal(got, want)


def test_no_synchronization():
    inputs = {k: v.requires_grad_() for k, v in on('cuda', ss2d_inputs(20, 33)).items()}
    native_ss2d_scan(**inputs).sum().backward()
    torch.cuda.set_sync_debug_mode('error')
    try:
        native_ss2d_scan(**inputs).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode('default')


def test_threads_with_different_shared_memory():
    """A launch of one host thread must not take shared memory from another's."""
    calls = [on('cuda', ss2d_inputs(5, 7, 1, rank, channels=64)) for rank in (1, 64)]
    wanted = [native_ss2d_scan(**inputs) for inputs in calls]
    failures = []

    def work(index):
        try:
            with torch.cuda.stream(torch.cuda.Stream()):
                for _ in range(500):
                    got = native_ss2d_scan(**calls[index % 2])
                torch.cuda.current_stream().synchronize()
            assert torch.equal(got, wanted[index % 2])
        except Exception as error:
            failures.append(error)

    torch.cuda.synchronize()
    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures


@pytest.mark.slow
def test_compiled_with_max_autotune():
    torch.manual_seed(0)
    module = SS2D(16).cuda()
    x = torch.randn(2, 9, 13, 16, device='cuda')
    want = module(x)
    got = torch.compile(module, mode='max-autotune', fullgraph=True)(x)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
def test_autocast_keeps_the_scan_wide(dtype):
    torch.manual_seed(0)
    module = SS2D(32).cuda()
    x = torch.randn(2, 9, 13, 32, device='cuda')
    with torch.autocast('cuda', dtype):
        got = module(x)
    assert got.dtype == dtype
    torch.testing.assert_close(got.float(), module(x), rtol=0.05, atol=0.05)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
def test_very_long_sequences_stay_finite_and_exact(dtype):
    """Four million positions, one channel, beside float64 on the same GPU."""
    inputs = on('cuda', ss2d_inputs(1, 2**22, 1, 1, 1, 1, dtype, pattern=(0, 2)))
    got = run(native_ss2d_scan, inputs, pattern=(0, 2), out_dtype=torch.float32)
    want = run(native_ss2d_scan, inputs, torch.float64, pattern=(0, 2))
    for name, value in got.items():
        assert value.isfinite().all(), name
        scale = want[name].abs().max()
        error = ((value.double() - want[name]).abs().max() / scale).item()
        assert error < 2 * torch.finfo(value.dtype).eps + 1e-4, name


@pytest.mark.slow
def test_more_than_2_to_the_31_elements():
    free, _ = torch.cuda.mem_get_info()
    if free < 60 * 2**30:
        pytest.skip('needs 60 GiB of memory')
    N, H, W, C = 43, 1024, 512, 96  # 2.16e9 elements
    x = torch.zeros(N, H, W, C, dtype=torch.float16, device='cuda')
    proj = torch.zeros(N, H, W, 1, 3, dtype=torch.float16, device='cuda')
    small = ss2d_inputs(H, W, 1, 1, 1, C, torch.float16, pattern=(1,))
    x[-1:], proj[-1:] = small['x'].cuda(), small['proj'].cuda()
    assert x.numel() > 2**31
    params = {k: v.cuda() for k, v in small.items() if k not in ('x', 'proj')}
    y = native_ss2d_scan(x, proj, **params, pattern=(1,))
    want = native_ss2d_scan(**on('cuda', small), pattern=(1,))
    torch.testing.assert_close(y[-1:], want, rtol=1e-3, atol=1e-3)
    assert not y[:-1].any()


def test_reference_on_the_gpu_is_the_one_on_the_cpu():
    inputs = ss2d_inputs(5, 7)
    want = run(ss2d_scan_reference, inputs)
    for name, value in run_on_gpu(ss2d_scan_reference, inputs).items():
        torch.testing.assert_close(value, want[name], rtol=1e-10, atol=1e-12, msg=name)


def test_tensors_on_two_devices_are_named():
    inputs = on('cuda', ss2d_inputs())
    with pytest.raises(ValueError, match='A must be on cuda'):
        ss2d_scan(**inputs | {'A': inputs['A'].cpu()})
