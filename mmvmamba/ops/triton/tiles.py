"""Building blocks of the Triton kernels: positions, loads, time steps and scans of a tile.

A sequence is cut into subchunks of J consecutive positions, and a program works on T of them, one
for each row of a tile (T, BC) of BC channels. Tile j holds position j of every subchunk, so that
the recurrence along a subchunk is arithmetic on whole tiles, without any exchange between threads.

Positions are counted along an axis of the map: a = h W + w along rows, a = w H + h along columns.
A direction walks its axis forwards or, with ``BACKWARDS``, backwards.

Time steps are in units of log2(e), so that every exponential is a power of two, which GPUs compute
in one instruction: ``dt`` stands for log2(e) dt. States then stand for h / ln 2, as their input is
dt B x. Outputs and gradients are multiplied by ln 2 where they are stored.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def softplus(v, EXACT: tl.constexpr):
    """Return log2(1 + 2^v), which is max(v, 0) + log2(1 + t) with t = 2^-|v|.

    log2(1 + t) / t is a minimax polynomial on [0, 1] with a relative error of 8.4e-6, or for
    ``EXACT`` of 4.5e-8, which is below the rounding of float32.
    """
    t = tl.exp2(-tl.abs(v))
    if EXACT:
        p = 0.028637541 - 0.0046794696 * t
        p = p * t - 0.082173541
        p = p * t + 0.1529794
        p = p * t - 0.22081558
        p = p * t + 0.28386552
        p = p * t - 0.36001257
        p = p * t + 0.48084978
        p = p * t - 0.72134612
        p = p * t + 1.442695034
    else:
        p = 0.146033055 - 0.034435961 * t
        p = p * t - 0.30303638
        p = p * t + 0.46917415
        p = p * t - 0.72042618
        p = p * t + 1.44268292
    return t * p + tl.maximum(v, 0.0)


@triton.jit
def softplus_slope(dt, EXACT: tl.constexpr):
    """Return the derivative of softplus from its value, 1 - 2^-dt.

    Where the difference cancels, the series of 1 - e^-d takes its place.
    """
    d = dt * LN2
    slope = 1 - tl.exp2(-dt)
    if EXACT:
        series = 1 - d * (1 / 2 - d * (1 / 6 - d * (1 / 24 - d * (1 / 120 - d / 720))))
        return tl.where(d < 0.25, d * series, slope)
    return tl.where(d < 7e-4, d, slope)


# ---- positions ----


@triton.jit
def subchunk_positions(
    q, length, line, step, J: tl.constexpr, COLUMNS: tl.constexpr, SHORT_LINES: tl.constexpr
):
    """Return the J positions of each subchunk q (T) in image order, and which of them exist.

    Along columns a line of ``line`` = H positions has a stride of ``step`` = W; ``SHORT_LINES``: it
    has fewer than J. Positions are of 64 bits: along rows they differ by constants, which the
    compiler makes part of an address.
    """
    a = q * J
    positions = ()
    exists = ()
    for j in tl.static_range(J):
        if COLUMNS:
            h = a % line + j
            ends = h // line if SHORT_LINES else (h >= line).to(tl.int32)  # lines that end before
            p = (a // line + h * step + ends * (1 - line * step)).to(tl.int64)
        else:
            p = a.to(tl.int64) + j
        positions = positions + (p,)
        exists = exists + (a + j < length,)
    return positions, exists


# ---- rows of proj: the R low-rank time steps, then S values of B, then S of C ----


@triton.jit
def load_columns(rows, exists, first, end: tl.constexpr):
    """Load 16 columns of each row from ``first`` on, those before ``end``, as (T, 16)."""
    column = first + tl.arange(0, 16)
    mask = exists[:, None] & (column < end)[None, :]
    return tl.load(rows[:, None] + column[None, :], mask=mask, other=0.0)


@triton.jit
def load_row(rows, exists, end: tl.constexpr):
    """Load the columns of each row before ``end``, in slices (T, 16)."""
    slices = ()
    for i in tl.static_range((end + 15) // 16):
        slices = slices + (load_columns(rows, exists, i * 16, end),)
    return slices


@triton.jit
def unit_row(row: tl.constexpr, BC: tl.constexpr, dtype: tl.constexpr):
    """Return (16, BC) with ones in one row: a product with it copies a column to all channels.

    A copy through shared memory takes more instructions.
    """
    r = tl.arange(0, 16)[:, None] + tl.zeros([16, BC], tl.int32)
    return tl.where(r == row, 1.0, 0.0).to(dtype)


@triton.jit
def weight_units(R: tl.constexpr, S: tl.constexpr, BC: tl.constexpr, dtype: tl.constexpr):
    """Return the unit rows for :func:`load_state_weights`, which a program makes once."""
    if S == 1:
        return unit_row(R % 16, BC, dtype), unit_row((R + 1) % 16, BC, dtype)
    else:
        return unit_row(0, BC, dtype), unit_row(1, BC, dtype)


@triton.jit
def load_state_weights(
    rows, exists, s, units, R: tl.constexpr, S: tl.constexpr, PRECISION: tl.constexpr
):
    """Return B and C of state s at each row's position, for all channels (T, BC)."""
    if S == 1:
        values_B = load_columns(rows, exists, R // 16 * 16, R + 2)
        values_C = values_B
        if (R + 1) % 16 == 0:
            values_C = load_columns(rows, exists, R + 1, R + 2)
    else:
        r = tl.arange(0, 16)
        mask = exists[:, None] & (r < 2)[None, :]
        values_B = tl.load(rows[:, None] + (R + s + S * r)[None, :], mask=mask, other=0.0)
        values_C = values_B
    B = tl.dot(values_B, units[0], input_precision=PRECISION)
    C = tl.dot(values_C, units[1], input_precision=PRECISION)
    return B, C


@triton.jit
def load_rank_weights(weight, c, valid, R: tl.constexpr, dtype: tl.constexpr):
    """Load dt_weight (R, BC), in units of log2(e), in slices of 16 ranks.

    Returns the slices rounded to the dtype and, in half precision, the errors of this rounding.
    Both lose 2^-16 of a weight in bfloat16, and 2^-22 in float16 if the weight is not tiny.
    """
    high = ()
    low = ()
    for i in tl.static_range((R + 15) // 16):
        r = i * 16 + tl.arange(0, 16)
        mask = (r < R)[:, None] & valid[None, :]
        w = tl.load(weight + (c * R)[None, :] + r[:, None], mask=mask, other=0.0) * LOG2E
        if dtype == tl.float16:
            w = tl.clamp(w, -65504.0, 65504.0)
        rounded = w.to(dtype)
        high = high + (rounded,)
        low = low + ((w - rounded.to(tl.float32)).to(dtype),)
    return high, low


@triton.jit
def rank_product(values, high, low, v, PRECISION: tl.constexpr):
    """Add the product of low-rank values (T, 16) and a slice of dt_weight to v (T, BC)."""
    v = tl.dot(values, high, v, input_precision=PRECISION)
    if values.dtype != tl.float32:
        v = tl.dot(values, low, v)
    return v


@triton.jit
def rank_time_step(
    rows, exists, high, low, bias, R: tl.constexpr, EXACT: tl.constexpr, PRECISION: tl.constexpr
):
    """Return softplus(dt_weight r + bias) at each row's position (T, BC)."""
    v = tl.zeros([rows.shape[0], bias.shape[0]], tl.float32) + bias[None, :]
    values = load_row(rows, exists, R)
    for i in tl.static_range((R + 15) // 16):
        v = rank_product(values[i], high[i], low[i], v, PRECISION)
    return softplus(v, EXACT)


@triton.jit
def single_state_row(
    rows, exists, high, low, bias, units, R: tl.constexpr, EXACT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Return the time step, B and C of a scan with one state, all from one copy of each row."""
    BC: tl.constexpr = bias.shape[0]
    v = tl.zeros([rows.shape[0], BC], tl.float32) + bias[None, :]
    values = load_row(rows, exists, R + 2)
    for i in tl.static_range((R + 15) // 16):
        v = rank_product(values[i], high[i], low[i], v, PRECISION)
    B = tl.dot(values[R // 16], units[0], input_precision=PRECISION)
    C = tl.dot(values[(R + 1) // 16], units[1], input_precision=PRECISION)
    return softplus(v, EXACT), B, C


# ---- tuples of J tiles ----


@triton.jit
def in_walk_order(values, J: tl.constexpr, BACKWARDS: tl.constexpr):
    """Put J values in the order of a walk, or back in the order of the axis."""
    out = ()
    for j in tl.static_range(J):
        out = out + (values[J - 1 - j if BACKWARDS else j],)
    return out


@triton.jit
def zero_tiles(J: tl.constexpr, T: tl.constexpr, BC: tl.constexpr):
    """Return J tiles of zeros."""
    out = ()
    for _ in tl.static_range(J):
        out = out + (tl.zeros([T, BC], tl.float32),)
    return out


# ---- scans over the rows of a tile ----


@triton.jit
def decay_of_rows(p, exists):
    """Replace the decay of rows beyond the end by 1.

    A scan multiplies it with states of zero, and for a positive A it may be infinite.
    """
    return tl.where(exists[0][:, None], p, 1.0)


@triton.jit
def combine_states(p1, h1, p2, h2):
    """Return one step that has the effect of two: h <- p2 (p1 h + h1) + h2."""
    return p1 * p2, p2 * h1 + h2


@triton.jit
def scan_rows(p, h, BACKWARDS: tl.constexpr):
    """Return the state before and after each row (T, BC) of a walk that starts from zero.

    A row multiplies the state by p and adds h.
    """
    T: tl.constexpr = p.shape[0]
    _, after = tl.associative_scan((p, h), 0, combine_states, reverse=BACKWARDS)
    row = tl.arange(0, T)[:, None] + tl.zeros(p.shape, tl.int32)
    if BACKWARDS:
        before = tl.gather(after, tl.minimum(row + 1, T - 1), 0)
        return tl.where(row == T - 1, 0.0, before), after
    before = tl.gather(after, tl.maximum(row - 1, 0), 0)
    return tl.where(row == 0, 0.0, before), after
