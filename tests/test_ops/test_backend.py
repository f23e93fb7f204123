"""Bad arguments: an error that names the argument, never a crash. The choice of a backend."""

import random
from types import SimpleNamespace

import pytest
import torch

from mmvmamba.ops import ExtensionUnavailableWarning, has_kernel, selective_scan, ss2d_scan
from mmvmamba.ops import backend as backends
from mmvmamba.ops.backend import AUTO_ORDER, choose_backend

from .cases import selective_inputs, ss2d_inputs

BACKENDS = pytest.mark.parametrize(
    'backend',
    [
        pytest.param(
            'native',
            marks=pytest.mark.skipif(not has_kernel('ss2d_scan', 'cpu'), reason='not built'),
        ),
        'reference',
    ],
)
native_only = pytest.mark.skipif(not has_kernel('ss2d_scan', 'cpu'), reason='no native kernel')
CHANGES = {
    'no tensor': (lambda v: v.tolist(), TypeError),
    'integers': (lambda v: v.long(), TypeError),
    'complex': (lambda v: v.to(torch.complex64), TypeError),
    'rank up': (lambda v: v[None], ValueError),
    'rank down': (lambda v: v[0], ValueError),
    'first size': (lambda v: torch.cat([v, v[:1]]), ValueError),
    'last size': (lambda v: torch.cat([v, v[..., :1]], dim=-1), ValueError),
    'meta': (lambda v: v.to('meta'), ValueError),
    'quantized': (lambda v: torch.quantize_per_tensor(v, 0.1, 0, torch.quint8), TypeError),
    'sparse': (lambda v: v.to_sparse(), TypeError),
    'nested': (lambda v: torch.nested.nested_tensor([v.flatten()]), TypeError),
    'jagged': (lambda v: torch.nested.nested_tensor([v], layout=torch.jagged), TypeError),
}
if torch.backends.mkldnn.is_available():
    CHANGES['mkldnn'] = (lambda v: v.to_mkldnn(), TypeError)
# The first input decides what the others must be, and A how many states there are.
FREE = {('x', 'first size'), ('x', 'last size'), ('x', 'meta'), ('A', 'last size'),
        ('dt_weight', 'last size'), ('u', 'first size'), ('u', 'last size'), ('u', 'meta'),
        ('B', 'rank up'), ('B', 'rank down'), ('C', 'rank up'), ('C', 'rank down')}  # fmt: skip


@pytest.mark.filterwarnings('ignore:The PyTorch API of nested tensors')
@BACKENDS
@pytest.mark.parametrize('change', list(CHANGES))
@pytest.mark.parametrize('name', ['x', 'proj', 'dt_weight', 'dt_bias', 'A', 'D'])
def test_ss2d_scan_names_the_argument(name, change, backend):
    alter, error = CHANGES[change]
    inputs = ss2d_inputs(dtype=torch.float32)
    # Where the first input or A is what is off, another argument is the one that disagrees.
    message = r'^\w+ (must|has)' if (name, change) in FREE else rf'^{name} must'
    with pytest.raises(error, match=message):
        ss2d_scan(**{**inputs, name: alter(inputs[name])}, backend=backend)


@pytest.mark.filterwarnings('ignore:The PyTorch API of nested tensors')
@BACKENDS
@pytest.mark.parametrize('change', list(CHANGES))
@pytest.mark.parametrize('name', ['u', 'delta', 'A', 'B', 'C', 'D', 'z', 'delta_bias'])
def test_selective_scan_names_the_argument(name, change, backend):
    alter, error = CHANGES[change]
    inputs = selective_inputs(dtype=torch.float32)
    message = r'^\w+ (must|has)' if (name, change) in FREE else rf'^{name} must'
    with pytest.raises(error, match=message):
        selective_scan(**{**inputs, name: alter(inputs[name])}, backend=backend)


@BACKENDS
@pytest.mark.parametrize(
    ('name', 'make', 'options'),
    [
        ('proj', lambda i: {'proj': i['proj'].bfloat16()}, {}),
        ('out_dtype', lambda i: {}, {'out_dtype': torch.float64}),
        ('out_dtype', lambda i: {}, {'out_dtype': torch.int32}),
    ],
)
def test_ss2d_scan_dtypes_must_agree(name, make, options, backend):
    inputs = ss2d_inputs(dtype=torch.float32)
    with pytest.raises(TypeError, match=f'^{name} must'):
        ss2d_scan(**{**inputs, **make(inputs)}, **options, backend=backend)


@BACKENDS
@pytest.mark.parametrize('name', ['delta', 'B', 'C', 'z'])
def test_selective_scan_dtypes_must_agree(name, backend):
    inputs = selective_inputs(dtype=torch.float32)
    with pytest.raises(TypeError, match=f'^{name} must be torch.float32'):
        selective_scan(**{**inputs, name: inputs[name].bfloat16()}, backend=backend)


@BACKENDS
@pytest.mark.parametrize('sizes', [{'d_state': 0}, {'d_state': 257}])
def test_number_of_states(sizes, backend):
    with pytest.raises(ValueError, match='^A must have 1 to 256 states'):
        ss2d_scan(**ss2d_inputs(**{'rank': 1, **{'d_state': 1}}) | _states(sizes), backend=backend)
    inputs = selective_inputs(d_state=1)
    wide = {k: inputs[k].expand(*_wide(k, inputs[k], sizes['d_state'])) for k in 'ABC'}
    wide = {k: torch.zeros(_wide(k, inputs[k], sizes['d_state'])) for k in wide}
    with pytest.raises(ValueError, match='^A must have 1 to 256 states'):
        selective_scan(**{**inputs, **wide}, backend=backend)


def _states(sizes):
    inputs = ss2d_inputs(rank=1, d_state=1)
    S = sizes['d_state']
    shape = (*inputs['proj'].shape[:-1], 1 + 2 * S)
    return {
        'proj': torch.zeros(shape, dtype=torch.float64),
        'A': torch.zeros(*inputs['A'].shape[:2], S, dtype=torch.float64),
    }


def _wide(name, value, d_state):
    shape = list(value.shape)
    shape[-1 if name == 'A' else -2] = d_state
    return shape


@BACKENDS
@pytest.mark.parametrize('sizes', [{'height': 0}, {'width': 0}, {'channels': 0}])
def test_empty_maps(sizes, backend):
    inputs = ss2d_inputs(**sizes)
    with pytest.raises(ValueError, match='^x must have a height, width and channels'):
        ss2d_scan(**inputs, backend=backend)


@BACKENDS
def test_empty_rank(backend):
    inputs = ss2d_inputs(rank=1)
    inputs['dt_weight'] = inputs['dt_weight'][..., :0]
    inputs['proj'] = inputs['proj'][..., 1:]
    with pytest.raises(ValueError, match='^dt_weight must have a rank'):
        ss2d_scan(**inputs, backend=backend)


@BACKENDS
@pytest.mark.parametrize('groups', [0, 3])
def test_groups_must_divide_the_channels(groups, backend):
    inputs = selective_inputs()
    inputs['B'] = torch.zeros(2, groups, 2, 9, dtype=torch.float64)
    with pytest.raises(ValueError, match=f'^the number of groups of B must .* got {groups}$'):
        selective_scan(**inputs, backend=backend)


@pytest.mark.parametrize(
    'pattern', ['spiral', (), (4,), (-1,), (0.0, 1.0), [True], ('0',)], ids=str
)
def test_unknown_patterns(pattern):
    with pytest.raises(ValueError, match='^pattern must'):
        ss2d_scan(**ss2d_inputs(pattern='cross'), pattern=pattern)


@pytest.mark.parametrize('pattern', [None, 3, 1.5, torch.tensor([0])], ids=str)
def test_patterns_of_a_wrong_type(pattern):
    with pytest.raises(TypeError, match='^pattern must'):
        ss2d_scan(**ss2d_inputs(), pattern=pattern)


@pytest.mark.parametrize('backend', ['cuda', '', None, 1])
def test_unknown_backends(backend):
    with pytest.raises(ValueError, match='^backend must be one of'):
        ss2d_scan(**ss2d_inputs(), backend=backend)
    with pytest.raises(ValueError, match='^backend must be one of'):
        selective_scan(**selective_inputs(), backend=backend)


@pytest.mark.parametrize('backend', ['auto', 'reference'])
def test_meta_tensors_give_shapes(backend):
    maps = {k: v.to('meta') for k, v in ss2d_inputs(dtype=torch.bfloat16).items()}
    y = ss2d_scan(**maps, out_dtype=torch.float32, backend=backend)
    assert (y.shape, y.dtype, y.device.type) == ((2, 3, 5, 5), torch.float32, 'meta')
    sequences = {k: v.to('meta') for k, v in selective_inputs().items()}
    y, state = selective_scan(**sequences, return_last_state=True, backend=backend)
    assert (y.shape, state.shape, y.device.type) == ((2, 4, 9), (2, 4, 2), 'meta')


# ---- the choice of a backend --------------------------------------------------------------------


@pytest.fixture
def gpu(monkeypatch):
    """Inputs on a GPU as far as the choice reads them, and reasons why kernels cannot run there."""
    reasons = {'native': None, 'triton': None}
    monkeypatch.setattr(backends, 'has_kernel', lambda op, device: True)
    monkeypatch.setattr(backends, 'extension_error', lambda *_: reasons['native'])
    monkeypatch.setattr(backends, 'architecture_error', lambda index: reasons['native'])
    monkeypatch.setattr(backends, 'triton_error', lambda device: reasons['triton'])
    backends.warn_no_kernel.cache_clear()
    yield reasons
    backends.warn_no_kernel.cache_clear()


def choose(backend, dtype=torch.float32, device='cuda:0', directions=4):
    value = SimpleNamespace(device=torch.device(device), dtype=dtype)
    return choose_backend('ss2d_scan', backend, value, directions)


def test_every_backend_of_a_device_has_its_question():
    assert {name for order in AUTO_ORDER.values() for name in order} == set(backends._WHY_NOT)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_triton_comes_first_on_a_gpu(gpu, dtype):
    assert choose('auto', dtype) == 'triton'
    gpu['triton'] = 'it is too old'
    assert choose('auto', dtype) == 'native'
    gpu.update(native='it was not built', triton=None)
    assert choose('auto', dtype) == 'triton'


def test_what_triton_does_not_take_is_left_to_the_native_kernels(gpu):
    assert choose('auto', torch.float64) == 'native'
    message = r"^backend='triton' cannot run ss2d_scan on cuda: the kernels for cuda take float32"
    with pytest.raises(RuntimeError, match=message):
        choose('triton', torch.float64)
    assert choose('auto', directions=31) == 'triton'
    assert choose('auto', directions=32) == 'native'
    with pytest.raises(RuntimeError, match='the kernels support up to 31 directions, not 32'):
        choose('triton', directions=32)


def test_an_export_to_onnx_without_the_extension_takes_the_pytorch_form(gpu, monkeypatch):
    gpu['native'] = 'it was not built'
    monkeypatch.setattr(torch.onnx, 'is_in_onnx_export', lambda: True)
    with pytest.warns(UserWarning, match='ONNX has no equivalent'):
        assert choose('auto') == 'chunked'


def test_a_named_backend_runs_or_says_why_not(gpu):
    for name in ('native', 'triton', 'reference'):
        assert choose(name) == name
    for name in ('native', 'triton'):
        gpu[name] = 'it is broken'
        message = f'^backend={name!r} cannot run ss2d_scan on cuda: it is broken$'
        with pytest.raises(RuntimeError, match=message):
            choose(name)


def test_one_warning_names_every_backend(gpu):
    gpu.update(native='it was not built', triton='it is too old')
    message = (
        '^mmvmamba: no triton kernel for cuda: it is too old; no native kernel for cuda: it was '
        r'not built\. Falling back to a much slower PyTorch implementation\.$'
    )
    with pytest.warns(ExtensionUnavailableWarning, match=message) as caught:
        assert [choose('auto'), choose('auto')] == ['chunked'] * 2
    assert len(caught) == 1


def test_a_cpu_has_native_kernels_alone(gpu):
    assert choose('auto', device='cpu') == 'native'
    with pytest.warns(ExtensionUnavailableWarning, match='take float32, bfloat16, float64, not'):
        assert choose('auto', torch.float16, 'cpu') == 'chunked'
    assert choose('triton', device='cpu') == 'triton'  # where the interpreter is on


def test_a_device_of_another_kind(gpu, monkeypatch):
    monkeypatch.setattr(backends, 'has_kernel', lambda op, device: False)
    gpu['native'] = 'there are no kernels for mps'
    with pytest.warns(ExtensionUnavailableWarning, match='there are no kernels for mps'):
        assert choose('auto', device='mps') == 'chunked'


def test_the_meta_device_needs_no_kernel(gpu):
    gpu['triton'] = 'a GPU is required'
    assert choose('auto', torch.float64, 'meta') == choose('native', device='meta') == 'native'
    gpu['native'] = 'it was not built'
    assert choose('auto', torch.float64, 'meta') == choose('triton', device='meta') == 'triton'


def test_an_export_to_onnx_holds_the_op_that_is_translated(gpu, monkeypatch):
    monkeypatch.setattr(torch.onnx, 'is_in_onnx_export', lambda: True)
    assert [choose(name) for name in ('auto', 'native', 'triton')] == ['native'] * 3
    assert choose('reference') == 'reference'


@pytest.mark.parametrize('op', ['ss2d_scan', 'selective_scan'])
def test_triton_on_meta_tensors(op):
    function, make = {
        'ss2d_scan': (ss2d_scan, ss2d_inputs),
        'selective_scan': (selective_scan, selective_inputs),
    }[op]
    inputs = [v.to('meta').requires_grad_() for v in make(dtype=torch.float16).values()]
    y = function(*inputs, backend='triton')
    grads = torch.autograd.grad(y.sum(), inputs)
    for got, like in ((y, inputs[0]), *zip(grads, inputs, strict=True)):
        assert (got.shape, got.dtype, got.device.type) == (like.shape, like.dtype, 'meta')


# ---- the ops below the public functions -------------------------------------------------------


def _ss2d_call(**changes):
    inputs = ss2d_inputs(5, 26, dtype=torch.float32)
    args = {**inputs, 'orders': [0, 1, 2, 3], 'out_dtype': torch.float32, 'save_states': True}
    return torch.ops.mmvmamba.ss2d_scan(**{**args, **changes})


def _ss2d_backward(**changes):
    inputs = ss2d_inputs(5, 26, dtype=torch.float32)
    y, states = _ss2d_call()
    args = {'grad_y': y, **inputs, 'states': states, 'orders': [0, 1, 2, 3]}
    return torch.ops.mmvmamba.ss2d_scan_backward(**{**args, **changes})


def _selective_call(**changes):
    inputs = selective_inputs(130, dtype=torch.float32, B='grouped', C='grouped')
    args = {**inputs, 'delta_softplus': True, 'save_states': True}
    return torch.ops.mmvmamba.selective_scan(**{**args, **changes})


def _selective_backward(**changes):
    inputs = selective_inputs(130, dtype=torch.float32, B='grouped', C='grouped')
    y, _, states = _selective_call()
    args = {'grad_out': y, **inputs, 'states': states, 'delta_softplus': True}
    return torch.ops.mmvmamba.selective_scan_backward(**{**args, **changes})


ZEROS = torch.zeros(3)
BAD_CALLS = [
    (_ss2d_call, 'orders', []),
    (_ss2d_call, 'orders', [0, 1, 2, 7]),
    (_ss2d_call, 'orders', [0, 1, 2, -1]),
    (_ss2d_call, 'proj', [0]),
    (_ss2d_call, 'out_dtype', torch.float64),
    (_ss2d_call, 'x', ZEROS),
    (_ss2d_call, 'A', ZEROS),
    (_ss2d_call, 'A', torch.zeros(4, 5, 0)),
    (_ss2d_call, 'D', torch.zeros(4, 5, dtype=torch.float64)),
    (_ss2d_call, 'dt_bias', torch.zeros(3, 5)),
    (_ss2d_backward, 'states', torch.zeros(0)),
    (_ss2d_backward, 'states', torch.zeros(4, 4)),
    (_ss2d_backward, 'states', torch.zeros(2 * 4 * 3 * 2 * 5, dtype=torch.float64)),
    (_ss2d_backward, 'grad_y', ZEROS),
    (_ss2d_backward, 'grad_y', torch.zeros(2, 5, 26, 5, dtype=torch.float64)),
    (_ss2d_backward, 'orders', [0, 1, 2, 9]),
    (_selective_call, 'u', ZEROS),
    (_selective_call, 'A', torch.zeros(4, 0)),
    (_selective_call, 'B', torch.zeros(2, 2, 130)),
    (_selective_call, 'B', torch.zeros(2, 0, 2, 130)),
    (_selective_call, 'C', torch.zeros(2, 4, 2, 130)),
    (_selective_call, 'D', ZEROS),
    (_selective_call, 'z', ZEROS),
    (_selective_call, 'delta_bias', torch.zeros(4).double()),
    (_selective_backward, 'states', torch.zeros(0)),
    (_selective_backward, 'states', torch.zeros(7, 7)),
    (_selective_backward, 'grad_out', ZEROS),
    (_selective_backward, 'grad_out', torch.zeros(2, 4, 130).double()),
]


@native_only
@pytest.mark.parametrize(('call', 'name', 'value'), BAD_CALLS)
def test_direct_calls_are_checked(call, name, value):
    with pytest.raises(RuntimeError, match=rf'\b{name}\b|states must be at least 1|groups'):
        call(**{name: value})


@native_only
@pytest.mark.parametrize('call', [_ss2d_call, _selective_call])
def test_direct_calls_refuse_other_dtypes(call):
    inputs = ss2d_inputs() if call is _ss2d_call else selective_inputs(130)
    with pytest.raises(RuntimeError, match='float32, bfloat16 or float64|must be'):
        call(**{k: v.half() for k, v in inputs.items()})


def _junk_tensors():
    """Tensors that no kernel expects, and some that one argument or the other may be."""
    zeros = torch.zeros
    return [
        zeros(()), zeros(0), zeros(3), zeros(4, 5), zeros(2, 4, 130), zeros(4, 5, 2),
        zeros(2, 5, 26, 5), zeros(0, 5, 26, 5), zeros(2, 5, 26, 4, 6), zeros(1 << 20),
        zeros(4, 5, dtype=torch.float64), zeros(4, 5).bfloat16(), zeros(4, 5).half(),
        zeros(4, 5, dtype=torch.int64), zeros(4, 5, dtype=torch.bool), zeros(4, 5).cfloat(),
        zeros(4, 5).to_sparse(), zeros(4, 5).to_sparse_csr(), zeros(4, 5, device='meta'),
        zeros(1).expand(1 << 20, 1 << 20, 1 << 10, 4), zeros(5, 4).T, zeros(2, 5, 26, 10)[..., ::2],
        torch.tensor([float('nan')]).expand(4, 5), zeros(4, 5).cfloat().conj().imag,
        torch.nested.nested_tensor([zeros(2), zeros(3)]),
        torch.quantize_per_tensor(zeros(4, 5), 1.0, 0, torch.qint8),
    ]  # fmt: skip


@native_only
@pytest.mark.parametrize('call', [_ss2d_call, _ss2d_backward, _selective_call, _selective_backward])
@pytest.mark.filterwarnings('ignore')
def test_direct_calls_with_junk_never_crash(call):
    """Each call returns or raises; a crash would end the process."""
    rng, junk, refused = random.Random(0), _junk_tensors(), 0
    names = {
        '_ss2d': ('x', 'proj', 'dt_weight', 'dt_bias', 'A', 'D'),
        '_selective': ('u', 'delta', 'A', 'B', 'C', 'D', 'z', 'delta_bias'),
    }[call.__name__.rpartition('_')[0]]
    if call in (_ss2d_backward, _selective_backward):
        names += ('states', 'grad_y' if call is _ss2d_backward else 'grad_out')
    for _ in range(200):
        chosen = rng.sample(names, rng.choice([1, 1, 2, len(names)]))
        try:
            call(**{name: rng.choice(junk) for name in chosen})
        except Exception:  # of the kernels, or of the shape functions for meta tensors
            refused += 1
    assert refused > 150
