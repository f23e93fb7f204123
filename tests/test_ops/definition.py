"""Definition of the scans: NumPy loops in float64, independent of the package."""

import numpy as np


def softplus(x):
    return np.where(x > 20, x, np.log1p(np.exp(np.minimum(x, 20))))


def silu(x):
    return x / (1 + np.exp(-x))


def diagonal(height, width):
    return [
        (i, total - i)
        for total in range(height + width - 1)
        for i in range(height)
        if 0 <= total - i < width
    ]


def snake(height, width):
    found = []
    for i in range(height):
        row = [(i, j) for j in range(width)]
        found += row if i % 2 == 0 else row[::-1]
    return found


def local_window(height, width, size=7):
    return [
        (i, j)
        for top in range(0, height, size)
        for left in range(0, width, size)
        for i in range(top, min(top + size, height))
        for j in range(left, min(left + size, width))
    ]


def hilbert(height, width):
    """The curve of the smallest square of a power of two, by its quadrants."""

    def curve(side):
        if side == 1:
            return [(0, 0)]
        part, half = curve(side // 2), side // 2
        return [
            *((j, i) for i, j in part),
            *((i + half, j) for i, j in part),
            *((i + half, j + half) for i, j in part),
            *((half - 1 - j, side - 1 - i) for i, j in part),
        ]

    side = 1
    while side < max(height, width):
        side *= 2
    return [(i, j) for i, j in curve(side) if i < height and j < width]


PATHS = {'diagonal': diagonal, 'snake': snake, 'local_window': local_window, 'hilbert': hilbert}


def positions(order, height, width):
    """Positions (h, w) in the order of a direction."""
    if isinstance(order, str) and order.endswith('_reversed'):
        return positions(order.removesuffix('_reversed'), height, width)[::-1]
    if isinstance(order, str) and order.endswith('_transposed'):
        path = positions(order.removesuffix('_transposed'), width, height)
        return [(i, j) for j, i in path]
    if order in PATHS:
        return PATHS[order](height, width)
    rows = [(i, j) for i in range(height) for j in range(width)]
    columns = [(i, j) for j in range(width) for i in range(height)]
    return {0: rows, 1: columns, 2: rows[::-1], 3: columns[::-1]}[order]


def scan_channel(x, dt, A, B, C):
    """One channel: x, dt (L), A (S), B, C (L, S). Returns y (L) and the last state (S)."""
    h = np.zeros(len(A))
    y = np.zeros(len(x))
    for t in range(len(x)):
        h = np.exp(dt[t] * A) * h + dt[t] * B[t] * x[t]
        y[t] = C[t] @ h
    return y, h


def ss2d_scan(x, proj, dt_weight, dt_bias, A, D, orders):
    """x (N, H, W, C), proj (N, H, W, K, R + 2S), orders (K): the sum over directions."""
    N, H, W, C = x.shape
    R, S = dt_weight.shape[2], A.shape[2]
    out = np.zeros(x.shape)
    for n, k, c in np.ndindex(N, len(orders), C):
        path = positions(orders[k], H, W)
        u = np.array([x[n, i, j, c] for i, j in path])
        p = np.array([proj[n, i, j, k] for i, j in path])
        dt = softplus(p[:, :R] @ dt_weight[k, c] + dt_bias[k, c])
        y, _ = scan_channel(u, dt, A[k, c], p[:, R : R + S], p[:, R + S :])
        for (i, j), value in zip(path, y + D[k, c] * u, strict=True):
            out[n, i, j, c] += value
    return out


def _per_channel(value, n, d, channels, length):
    """B or C of one sample and channel as (L, S), from any of the three forms."""
    if value.ndim == 2:
        return np.tile(value[d], (length, 1))
    if value.ndim == 3:
        return value[n].T
    return value[n, d // (channels // value.shape[1])].T


def selective_scan(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False):
    """u, delta (N, D, L). Returns y (N, D, L) and the last state (N, D, S)."""
    N, channels, L = u.shape
    out, last = np.zeros(u.shape), np.zeros((N, channels, A.shape[1]))
    for n in range(N):
        for d in range(channels):
            dt = delta[n, d] + (0 if delta_bias is None else delta_bias[d])
            dt = softplus(dt) if delta_softplus else dt
            weights = [_per_channel(v, n, d, channels, L) for v in (B, C)]
            y, last[n, d] = scan_channel(u[n, d], dt, A[d], *weights)
            y = y + (0 if D is None else D[d] * u[n, d])
            out[n, d] = y * (1 if z is None else silu(z[n, d]))
    return out, last
