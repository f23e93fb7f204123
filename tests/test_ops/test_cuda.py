"""The native and the Triton kernels on a GPU: the emulator's grid, and GPU-only behavior.

With MMVMAMBA_REQUIRE_CUDA=1 it is an error if neither can run, see conftest.py.
"""

import functools
import threading
from pathlib import Path

import pytest
import torch

import mmvmamba
from mmvmamba import info
from mmvmamba.nn import SS2D
from mmvmamba.ops import selective_scan, ss2d_scan
from mmvmamba.ops.backend import AUTO_ORDER, TRITON_DTYPES, why_not
from mmvmamba.ops.selective_scan import scan_chunked
from mmvmamba.ops.ss2d_scan import ss2d_scan_reference

from . import test_selective_scan as selective
from . import test_ss2d_scan as ss2d
from .cases import (
    HALF,
    SPLITS,
    kernel_cases,
    move,
    run,
    selective_inputs,
    ss2d_inputs,
)

pytestmark = pytest.mark.cuda
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason='there is no GPU')
needs_two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason='needs two GPUs')
REASONS = {name: why_not(name, 'ss2d_scan', torch.device('cuda', 0)) for name in AUTO_ORDER['cuda']}


def with_backend(name, *values, marks=(), **options):
    """Return a parameter that is skipped where the kernels of its backend cannot run."""
    reason = f'the {name} kernels of {Path(mmvmamba.__file__).parent} cannot run on a GPU: '
    skip = pytest.mark.skipif(REASONS[name] is not None, reason=reason + str(REASONS[name]))
    return pytest.param(name, *values, marks=[skip, *marks], **options)


BACKENDS = pytest.mark.parametrize('backend', [with_backend(name) for name in REASONS])
NARROW = [torch.float16, torch.bfloat16]


def with_dtypes(dtypes):
    """Parametrize over the backends, each with the dtypes that it takes."""
    return pytest.mark.parametrize(
        ('backend', 'dtype'),
        [
            with_backend(name, dtype, id=f'{name}-{dtype}')
            for name in REASONS
            for dtype in dtypes
            if name == 'native' or dtype in TRITON_DTYPES
        ],
    )


def with_cases(module):
    """Parametrize over backends and cases of the emulator, without its own settings.

    Each case compiles several Triton kernels, which takes seconds, so every other one is slow.
    """
    found = []
    for index, parameter in enumerate(kernel_cases(module)):
        case = {k: v for k, v in parameter.values[0].items() if k not in SPLITS}
        for name in REASONS:
            if name == 'native' or case['dtype'] in TRITON_DTYPES:
                slow = [pytest.mark.slow] if name == 'triton' and index % 2 else []
                marks = [*parameter.marks, *slow]
                found.append(with_backend(name, case, marks=marks, id=f'{name}-{parameter.id}'))
    return pytest.mark.parametrize(('backend', 'case'), found)


OPS = {
    'ss2d_scan': (ss2d_scan, lambda **kw: ss2d_inputs(20, 33, **kw)),
    'selective_scan': (
        functools.partial(selective_scan, delta_softplus=True),
        lambda **kw: selective_inputs(660, **kw),
    ),
}
BOTH = pytest.mark.parametrize('op', list(OPS))


def function_of(op, backend):
    return functools.partial(OPS[op][0], backend=backend)


def inputs_of(op, dtype=torch.float32, **settings):
    return OPS[op][1](channels=40, dtype=dtype, **settings)


def on(device, inputs):
    return {k: v if v is None else move(v, device) for k, v in inputs.items()}


def run_on_gpu(function, inputs, device='cuda', **options):
    """As ``cases.run``, with the same gradient; results on the CPU."""
    result = run(function, on(device, inputs), **options)
    return {name: value.cpu() for name, value in result.items()}


def tolerance(backend, dtype):
    """Kernels compute in the digits of 16-bit I/O; Triton's in float32's for the other types."""
    if backend != 'triton' and dtype.itemsize > 2:
        return {}
    return dict(ulps=16 if dtype == torch.float32 else 2, precision=dtype)


@with_cases(ss2d)
def test_ss2d_scan_is_as_exact_as_eager(backend, case):
    scan = functools.partial(run_on_gpu, functools.partial(ss2d_scan, backend=backend))
    ss2d.compare_with_eager(case, scan, **tolerance(backend, case['dtype']))


@with_cases(selective)
def test_selective_scan_is_as_exact_as_eager(backend, case):
    scan = functools.partial(run_on_gpu, functools.partial(selective_scan, backend=backend))
    selective.compare_with_eager(case, scan, **tolerance(backend, case['dtype']))


@BOTH
@with_dtypes(HALF['dtype'])
def test_deterministic_to_the_last_bit(op, backend, dtype):
    function = function_of(op, backend)
    inputs = inputs_of(op, dtype, d_state=3, batch=5)
    first = run_on_gpu(function, inputs)
    for _ in range(100):
        for name, value in run_on_gpu(function, inputs).items():
            assert torch.equal(value, first[name]), name


@BOTH
@BACKENDS
def test_on_another_stream(op, backend):
    """The work waits for what its stream has queued, and nothing else."""
    function, inputs = function_of(op, backend), inputs_of(op)
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
@BACKENDS
@needs_two_gpus
def test_on_a_device_that_is_not_the_current_one(op, backend):
    function, inputs = function_of(op, backend), inputs_of(op)
    with torch.cuda.device(0):
        result = run_on_gpu(function, inputs, device='cuda:1')
    for name, value in run_on_gpu(function, inputs, device='cuda:0').items():
        assert torch.equal(result[name], value), name


@BOTH
@BACKENDS
def test_in_a_cuda_graph(op, backend):
    function = function_of(op, backend)
    static = {k: v.requires_grad_() for k, v in on('cuda', inputs_of(op)).items()}

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
        for name, value in inputs_of(op, seed=7).items():
            static[name].copy_(value)
    graph.replay()
    torch.cuda.synchronize()
    for got, want in zip(results, step(), strict=True):
        assert torch.equal(got, want)


@BOTH
@BACKENDS
def test_no_synchronization(op, backend):
    function = function_of(op, backend)
    inputs = {k: v.requires_grad_() for k, v in on('cuda', inputs_of(op)).items()}
    function(**inputs).sum().backward()
    torch.cuda.set_sync_debug_mode('error')
    try:
        function(**inputs).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode('default')


@BACKENDS
def test_threads_with_different_shared_memory(backend):
    """A launch of one host thread must not take shared memory from another's."""
    scan = functools.partial(ss2d_scan, backend=backend)
    sizes = dict(channels=64, dtype=torch.float32)
    calls = [on('cuda', ss2d_inputs(5, 7, 1, rank, **sizes)) for rank in (1, 64)]
    wanted = [scan(**inputs) for inputs in calls]
    failures = []

    def work(index):
        try:
            with torch.cuda.stream(torch.cuda.Stream()):
                for _ in range(500):
                    got = scan(**calls[index % 2])
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


@BACKENDS
@pytest.mark.parametrize('mode', ['default', pytest.param('max-autotune', marks=pytest.mark.slow)])
def test_compiled(backend, mode):
    torch.manual_seed(0)
    module = SS2D(16, backend=backend).cuda()
    x = torch.randn(2, 9, 13, 16, device='cuda')
    grad = torch.randn_like(x)
    leaves = {'x': x.requires_grad_(), **dict(module.named_parameters())}

    def step(forward):
        y = forward(x)
        return y, *torch.autograd.grad(y, list(leaves.values()), grad)

    want = step(module)
    got = step(torch.compile(module, mode=mode, fullgraph=True))
    for name, value, expected in zip(['y', *leaves], got, want, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-4, msg=name)


@with_dtypes(NARROW)
def test_autocast_keeps_the_scan_wide(backend, dtype):
    torch.manual_seed(0)
    module = SS2D(32, backend=backend).cuda()
    x = torch.randn(2, 9, 13, 32, device='cuda')
    with torch.autocast('cuda', dtype):
        got = module(x)
    assert got.dtype == dtype
    torch.testing.assert_close(got.float(), module(x), rtol=0.05, atol=0.05)


def check_long_sequence(function, length, dtype, device):
    """Compare a scan of one channel in two directions with float64 on the same device."""
    inputs = on(device, ss2d_inputs(1, length, 1, 1, 1, 1, dtype, pattern=(0, 2)))
    got = run(function, inputs, pattern=(0, 2), out_dtype=torch.float32)
    exact = functools.partial(ss2d_scan_reference, scan=scan_chunked)
    want = run(exact, inputs, torch.float64, pattern=(0, 2))
    for name, value in got.items():
        assert value.isfinite().all(), name
        scale = want[name].abs().max()
        error = ((value.double() - want[name]).abs().max() / scale).item()
        # Sums over the positions add terms that were rounded to the dtype of the inputs.
        terms = dtype if name not in ('out', 'grad_x', 'grad_proj') else torch.float32
        allowed = 2 * torch.finfo(value.dtype).eps + 4 * torch.finfo(terms).eps + 1e-4
        assert error < allowed, name


@with_dtypes(NARROW)
def test_very_long_sequences_stay_finite_and_exact(backend, dtype):
    """Four million positions."""
    check_long_sequence(functools.partial(ss2d_scan, backend=backend), 2**22, dtype, 'cuda')


@BACKENDS
def test_more_than_2_to_the_31_elements(backend):
    """With 32-bit offsets, equal samples would give different results."""
    if torch.cuda.mem_get_info()[0] < 60 * 2**30:
        pytest.skip('needs 60 GiB of memory')
    N, H, W, C = 43, 1024, 512, 96
    one = on('cuda', ss2d_inputs(H, W, 1, 1, 1, C, torch.float16, pattern=(1,)))
    many = one | {k: one[k].repeat(N, *[1] * (one[k].dim() - 1)) for k in ('x', 'proj')}
    assert many['x'].numel() > 2**31
    scan = functools.partial(ss2d_scan, pattern=(1,), backend=backend)
    grad = torch.randn_like(one['x']) / 16

    def step(inputs):
        leaves = {name: value.requires_grad_() for name, value in inputs.items()}
        y = scan(**leaves)
        grads = torch.autograd.grad(y, list(leaves.values()), grad.expand_as(y))
        return dict(zip(['y', *leaves], [y.detach(), *grads], strict=True))

    want = step(one)
    for name, value in step(many).items():
        # The parameters' gradients are sums over the samples.
        value = value if name in ('y', 'x', 'proj') else value / N
        error = (value - want[name]).abs().amax() / want[name].abs().amax()
        assert error < 2e-3, name


@needs_gpu
def test_auto_takes_the_first_backend_that_can_run():
    inputs = on('cuda', inputs_of('ss2d_scan'))
    first = next((name for name, reason in REASONS.items() if reason is None), 'reference')
    assert torch.equal(ss2d_scan(**inputs), ss2d_scan(**inputs, backend=first))


@pytest.mark.parametrize('backend', [with_backend('triton')])
def test_warm_up(backend, capsys):
    info.main(['--warm-up', '--dtype', 'bfloat16'])
    assert capsys.readouterr().out.count('stage') == 12


@needs_gpu
def test_reference_on_the_gpu_is_the_one_on_the_cpu():
    inputs = ss2d_inputs(5, 7)
    want = run(ss2d_scan_reference, inputs)
    for name, value in run_on_gpu(ss2d_scan_reference, inputs).items():
        torch.testing.assert_close(value, want[name], rtol=1e-10, atol=1e-12, msg=name)


@needs_gpu
def test_tensors_on_two_devices_are_named():
    inputs = on('cuda', ss2d_inputs())
    with pytest.raises(ValueError, match='A must be on cuda'):
        ss2d_scan(**inputs | {'A': inputs['A'].cpu()})
