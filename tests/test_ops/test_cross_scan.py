"""cross_scan and cross_merge."""

import pytest
import torch

from mmvmamba.ops import SCAN_PATTERNS, cross_merge, cross_scan

from .definition import positions

PATTERNS = [*SCAN_PATTERNS, (1,), (3, 2), (0, 0, 1, 3, 2), (1, 'snake_reversed', 'hilbert')]


@pytest.mark.parametrize('pattern', PATTERNS, ids=str)
@pytest.mark.parametrize('size', [(1, 1), (2, 5), (4, 1), (1, 3)], ids=str)
def test_sequences_follow_the_path(size, pattern):
    x = torch.arange(2 * 3 * size[0] * size[1], dtype=torch.float32).view(2, 3, *size)
    sequences = cross_scan(x, pattern)
    orders = SCAN_PATTERNS.get(pattern, pattern)
    assert sequences.shape == (2, len(orders), 3, size[0] * size[1])
    for k, order in enumerate(orders):
        for place, (h, w) in enumerate(positions(order, *size)):
            assert torch.equal(sequences[:, k, :, place], x[:, :, h, w])


@pytest.mark.parametrize('pattern', PATTERNS, ids=str)
def test_merge_is_the_transpose(pattern):
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    sequences = cross_scan(x, pattern)
    ys = torch.randn_like(sequences)
    (transposed,) = torch.autograd.grad(sequences, x, ys)
    torch.testing.assert_close(cross_merge(ys, 4, 5, pattern), transposed)


@pytest.mark.parametrize('pattern', PATTERNS, ids=str)
def test_merge_of_scan_multiplies_by_the_directions(pattern):
    x = torch.randn(0, 3, 2, 2) if pattern == (1,) else torch.randn(2, 3, 4, 5)
    merged = cross_merge(cross_scan(x, pattern), *x.shape[2:], pattern)
    torch.testing.assert_close(merged, x * len(SCAN_PATTERNS.get(pattern, pattern)))


@pytest.mark.parametrize(
    ('call', 'error', 'name'),
    [
        (lambda: cross_scan(torch.randn(2, 3, 4)), ValueError, 'x'),
        (lambda: cross_scan(torch.ones(1, 2, 3, 4, dtype=torch.int64)), TypeError, 'x'),
        (lambda: cross_scan(None), TypeError, 'x'),
        (lambda: cross_scan(torch.randn(1, 2, 3, 4), 'spiral'), ValueError, 'pattern'),
        (lambda: cross_scan(torch.randn(1, 2, 3, 4), (4,)), ValueError, 'pattern'),
        (lambda: cross_scan(torch.randn(1, 2, 3, 4), ()), ValueError, 'pattern'),
        (lambda: cross_scan(torch.randn(1, 2, 3, 4), 1), TypeError, 'pattern'),
        (lambda: cross_merge(torch.randn(1, 3, 2, 12), 3, 4), ValueError, 'ys'),
        (lambda: cross_merge(torch.randn(1, 4, 2, 12), 3, 5), ValueError, 'ys'),
    ],
)
def test_bad_arguments(call, error, name):
    with pytest.raises(error, match=rf'^{name} '):
        call()
