"""The ops of a block's inference on a CPU against PyTorch in float64."""

import pytest
import torch
import torch.nn.functional as F

from mmvmamba.ops import extension_error, fused_ops

pytestmark = pytest.mark.skipif(extension_error() is not None, reason='needs the native extension')

DTYPES = (torch.float32, torch.bfloat16)
#: Relative and absolute tolerances: a rounding of the result and of the sums before it.
TOLERANCES = {torch.float32: (2e-6, 2e-6), torch.bfloat16: (8e-3, 8e-3)}
#: Blocks of four vectors, whole vectors and a rest, whichever a vector's size; less than a vector.
CHANNELS = (100, 96, 77, 48, 17, 5, 3, 1)
NAN, INF = float('nan'), float('inf')


def draw(*shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(dtype)


def assert_close(got, want, dtype, **options):
    assert got.dtype == dtype
    rtol, atol = TOLERANCES[dtype]
    torch.testing.assert_close(got.double(), want, rtol=rtol, atol=atol, **options)


def parameters(channels, dtype=torch.float32):
    return [draw(channels, seed=seed, dtype=dtype) for seed in (1, 2, 3)]


@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('channels', CHANNELS)
def test_layer_norm(channels, dtype):
    weight, bias, _ = parameters(channels)
    x = draw(3, 5, channels, dtype=dtype)
    want = F.layer_norm(x.double(), (channels,), weight.double(), bias.double(), 1e-5)
    assert_close(fused_ops.layer_norm(x, weight, bias, 1e-5), want, dtype)


def test_layer_norm_of_large_and_shifted_values():
    x = draw(4, 64) * 1e4 + 1e6
    weight, bias, _ = parameters(64)
    want = F.layer_norm(x.double(), (64,), weight.double(), bias.double(), 1e-6)
    got = fused_ops.layer_norm(x, weight, bias, 1e-6)
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('channels', [48, 17, 3])
def test_layer_norm_of_what_is_not_finite(channels, dtype):
    weight, bias, _ = parameters(channels)
    x = draw(9, channels, dtype=dtype)
    x[1, 0], x[3, -1], x[5, channels // 2], x[7] = NAN, INF, -INF, 0
    want = F.layer_norm(x.double(), (channels,), weight.double(), bias.double(), 1e-5)
    assert want[1:6:2].isnan().all()
    got = fused_ops.layer_norm(x, weight, bias, 1e-5)
    assert_close(got, want, dtype, equal_nan=True)


@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('channels', CHANNELS)
def test_add_layer_norm(channels, dtype):
    shift, weight, bias = parameters(channels, dtype)
    x, y = draw(7, channels, dtype=dtype), draw(7, channels, dtype=dtype, seed=9)
    total = torch.empty_like(x)
    got = fused_ops.add_layer_norm(total, x, y, shift, weight, bias, 1e-5)
    added = x.double() + y.double()
    assert_close(total, added + shift.double(), dtype)
    want = F.layer_norm(added, (channels,), weight.double(), bias.double(), 1e-5)
    assert_close(got, want, dtype)


@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('channels', CHANNELS)
def test_bias_gelu(channels, dtype):
    bias, *_ = parameters(channels)
    x = draw(3, 4, channels, dtype=dtype) * 3
    want = F.gelu(x.double() + bias.double())
    got = fused_ops.bias_gelu_(x, bias)
    assert got is x
    assert_close(got, want, dtype)


def test_gelu_over_its_range():
    x = torch.linspace(-20, 20, 100_001)
    got = fused_ops.bias_gelu_(x.clone()[None], torch.zeros_like(x))[0]
    want = F.gelu(x.double())
    # The error of Phi(x) is that of float32, 6e-8.
    assert ((got - want).abs() <= 1.2e-7 * (1 + x.abs())).all()


def special_rows(channels, dtype):
    """Rows between random ones: each holds a special value in all its channels; -inf in row 5."""
    values = torch.tensor([NAN, INF, -INF, 0.0, 3e38, -3e38, 1e-38, -1e-38], dtype=dtype)
    x = draw(2 * len(values) + 1, channels, dtype=dtype)
    x[1::2] = values[:, None]
    return x


@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('channels', CHANNELS)
def test_gelu_of_special_values(channels, dtype):
    x = special_rows(channels, dtype)
    want = F.gelu(x.double())
    assert want[5].isnan().all()  # -inf * 0, as here
    got = fused_ops.bias_gelu_(x.clone(), torch.zeros(channels))
    assert_close(got, want, dtype, equal_nan=True)


@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('size', [(1, 1), (1, 2), (1, 11), (4, 1), (2, 6), (5, 13)], ids=str)
@pytest.mark.parametrize('channels', CHANNELS)
def test_depthwise_silu(channels, size, dtype):
    x = draw(2, *size, channels, dtype=dtype)
    weight = draw(channels, 1, 3, 3, seed=4)
    for bias in (None, draw(channels, seed=5)):
        want = F.conv2d(
            x.double().permute(0, 3, 1, 2),
            weight.double(),
            None if bias is None else bias.double(),
            padding=1,
            groups=channels,
        )
        got = fused_ops.depthwise_silu(x, weight, bias)
        assert_close(got, F.silu(want).permute(0, 2, 3, 1), dtype)


def test_silu_over_its_range():
    x = torch.linspace(-120, 120, 24_001)
    got = fused_ops.depthwise_silu(x.view(1, 1, 1, -1), identity(x.numel())).flatten()
    # It is 0 below -87.
    torch.testing.assert_close(got.double(), F.silu(x.double()), rtol=1e-6, atol=1e-35)


def identity(channels):
    """A weight whose convolution returns its input."""
    weight = torch.zeros(channels, 1, 3, 3)
    weight[:, :, 1, 1] = 1
    return weight


@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('channels', CHANNELS)
def test_silu_of_special_values(channels, dtype):
    x = special_rows(channels, dtype)
    want = F.silu(x.double())
    assert want[5].isnan().all()
    want[5] = 0  # the limit, where PyTorch has -inf / inf
    # Maps of one position: there are no neighbors whose products with 0 would be NaN.
    got = fused_ops.depthwise_silu(x[:, None, None], identity(channels)).flatten(1)
    assert_close(got, want, dtype, equal_nan=True)


def test_what_is_not_finite_stays_among_its_neighbors():
    x, weight = draw(2, 6, 9, 17), draw(17, 1, 3, 3, seed=4)
    x[0, 2, 3, 16], x[1, 5, 8, 0] = NAN, INF
    want = F.silu(F.conv2d(x.double().permute(0, 3, 1, 2), weight.double(), padding=1, groups=17))
    got = fused_ops.depthwise_silu(x, weight)
    finite = want.permute(0, 2, 3, 1).isfinite()
    assert (~finite).sum() == 9 + 4
    assert_close(got[finite], want.permute(0, 2, 3, 1)[finite], torch.float32)
    assert got[0, 1:4, 2:5, 16].isnan().all()


def test_a_strided_map_and_an_empty_one():
    weight, bias, shift = parameters(24)
    x = draw(3, 24, 4).transpose(1, 2)
    want = F.layer_norm(x.double(), (24,), weight.double(), bias.double(), 1e-5)
    assert_close(fused_ops.layer_norm(x, weight, bias, 1e-5), want, torch.float32)
    empty = torch.empty(0, 24)
    assert fused_ops.layer_norm(empty, weight, bias, 1e-5).shape == (0, 24)
    assert fused_ops.bias_gelu_(empty, bias).shape == (0, 24)
    total = torch.empty(0, 24)
    got = fused_ops.add_layer_norm(total, empty, empty, shift, weight, bias, 1e-5)
    assert got.shape == (0, 24)
    taps = draw(24, 1, 3, 3)
    assert fused_ops.depthwise_silu(torch.empty(0, 3, 4, 24), taps).shape == (0, 3, 4, 24)


def test_results_do_not_depend_on_the_threads():
    x, weight = draw(2, 37, 40, 96), draw(96, 1, 3, 3)
    scale, bias, _ = parameters(96)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            results.append(
                (
                    fused_ops.layer_norm(x, scale, bias, 1e-5),
                    fused_ops.bias_gelu_(x.clone(), bias),
                    fused_ops.depthwise_silu(x, weight, bias),
                )
            )
    finally:
        torch.set_num_threads(threads)
    for one, three in zip(*results, strict=True):
        assert torch.equal(one, three)


def test_they_are_registered_in_full():
    ops = torch.ops.mmvmamba
    x, y = draw(2, 3, 12), draw(2, 3, 12, seed=7)
    weight, bias, shift = parameters(12)
    # Without gradients there is no autograd to check.
    checks = ('test_schema', 'test_faketensor')
    cases = (
        (ops.layer_norm, (x, weight, bias, 1e-5)),
        (ops.add_layer_norm, (torch.empty_like(x), x, y, shift, weight, bias, 1e-5)),
        (ops.bias_gelu_, (x.clone(), bias)),
        (ops.depthwise_silu, (draw(1, 3, 4, 12), draw(12, 1, 3, 3), bias)),
    )
    for op, args in cases:
        torch.library.opcheck(op.default, args, test_utils=checks)


@pytest.mark.parametrize(
    ('call', 'match'),
    [
        (lambda o: o.layer_norm(draw(2, 3).double(), draw(3), draw(3), 1e-5), 'float32 or bfloat'),
        (lambda o: o.layer_norm(draw(2, 3), draw(4), draw(3), 1e-5), 'weight must have shape'),
        (lambda o: o.bias_gelu_(draw(3, 2).T, draw(3)), 'contiguous'),
        (lambda o: o.depthwise_silu(draw(2, 3, 4), draw(4, 1, 3, 3), None), '4 dimensions'),
        (lambda o: o.depthwise_silu(draw(1, 2, 3, 4), draw(4, 1, 5, 5), None), 'weight must have'),
        (
            lambda o: o.add_layer_norm(
                draw(2, 3), draw(2, 3), draw(3, 2), draw(3), draw(3), draw(3), 1e-5
            ),
            'y must have shape',
        ),
    ],
)
def test_wrong_arguments(call, match):
    with pytest.raises(RuntimeError, match=match):
        call(torch.ops.mmvmamba)


def test_where_they_can_run():
    x = draw(2, 3)
    assert fused_ops.can_run(x)
    assert fused_ops.can_run(x.bfloat16())
    assert not fused_ops.can_run(x.double())
    assert not fused_ops.can_run(x.half())
    assert not fused_ops.can_run(x.to('meta'))
