"""Forward pass of the scans in Triton: summaries of the subchunks, their combination, the outputs.

A sweep works along one axis of the map and serves a direction that walks it forwards, one that
walks it backwards, or both. ``k0`` and ``k1`` are their indices, -1 where there is none.
"""

import triton
import triton.language as tl

from .tiles import (
    LN2,
    LOG2E,
    decay_of_rows,
    in_walk_order,
    load_rank_weights,
    load_state_weights,
    rank_time_step,
    scan_rows,
    single_state_row,
    softplus,
    subchunk_positions,
    weight_units,
)

#: Integer arguments, for whose values no kernel is specialized: a new size compiles nothing.
INTEGERS = ['k0', 'k1', 'length', 'line', 'step', 'subchunks', 'chunks', 'items', 'repeat',
            'samples', 'backwards']  # fmt: skip


@triton.jit
def program_channels(channels: tl.constexpr, groups: tl.constexpr, BC: tl.constexpr):
    """Return the group of a program, its channels (BC), and which of them exist."""
    group_blocks: tl.constexpr = (channels // groups + BC - 1) // BC
    block = tl.program_id(0) % (groups * group_blocks)
    group = block // group_blocks
    within = (block % group_blocks) * BC + tl.arange(0, BC)
    return group, group * (channels // groups) + within, within < channels // groups


@triton.jit
def program_item(channels: tl.constexpr, groups: tl.constexpr, BC: tl.constexpr):
    """Return the number of a program among those of its channels.

    It stands for a chunk of T subchunks of a sample, or for several of them.
    """
    return tl.program_id(0) // (groups * ((channels // groups + BC - 1) // BC))


@triton.jit
def load_tiles(values, positions, exists, c, valid, channels: tl.constexpr, J: tl.constexpr):
    """Load the J tiles (T, BC) of a sample's map."""
    tiles = ()
    for j in tl.static_range(J):
        tiles = tiles + (
            tl.load(
                values + (positions[j] * channels)[:, None] + c[None, :],
                mask=exists[j][:, None] & valid[None, :],
                other=0.0,
            ),
        )
    return tiles


@triton.jit
def store_sum(total, sums, out, mask, FIRST: tl.constexpr, LAST: tl.constexpr):
    """Add a tile to the sums of the sweeps before this one; the last sweep stores the result."""
    if not FIRST:
        total += tl.load(sums, mask=mask, other=0.0)
    if LAST:
        tl.store(out, (total * LN2).to(out.dtype.element_ty), mask)
    else:
        tl.store(sums, total, mask)


@triton.jit
def position_rows(first, positions, stride: tl.constexpr, J: tl.constexpr):
    """Return pointers (T) to the rows of one direction at J positions."""
    rows = ()
    for j in tl.static_range(J):
        rows = rows + (first + positions[j] * stride,)
    return rows


@triton.jit
def load_direction(
    weight, bias, A, k, c, valid, channels: tl.constexpr, R: tl.constexpr, S: tl.constexpr,
    dtype: tl.constexpr,
):  # fmt: skip
    """Load the parameters of a direction: dt_weight in two parts, dt_bias and A of the first state.

    Direction -1, which does not exist, gets those of direction 0, which are not used.
    """
    k = tl.maximum(k, 0)
    high, low = load_rank_weights(weight + k * channels * R, c, valid, R, dtype)
    b = tl.load(bias + k * channels + c, mask=valid, other=0.0) * LOG2E
    a = tl.load(A + (k * channels + c) * S, mask=valid, other=0.0)[None, :]
    return high, low, b, a


@triton.jit
def time_step(
    given, rows, exists, high, low, b, j: tl.constexpr, R: tl.constexpr, SOFTPLUS: tl.constexpr,
    EXACT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return time step j of each subchunk (T, BC): from R ranks, or as it is given if R is 0.

    A given step that does not exist is zero, so that the last state is that of the last position.
    From ranks it is softplus(b): beyond the end x, B, C and grad y are zero, so that a walk that
    begins there keeps a state of zero, and of one that ends there nothing is read.
    """
    if R > 0:
        dt = rank_time_step(rows[j], exists[j], high, low, b, R, EXACT, PRECISION)
    else:
        dt = given[j].to(tl.float32) * LOG2E + b[None, :]
        if SOFTPLUS:
            dt = softplus(dt, EXACT)
        dt = tl.where(exists[j][:, None], dt, 0.0)
    return dt


@triton.jit
def shared_time_steps(
    given, rows, exists, high, low, b, R: tl.constexpr, S: tl.constexpr, J: tl.constexpr,
    SOFTPLUS: tl.constexpr, EXACT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return the J time steps of a direction that several states share; zeros for a single one."""
    out = ()
    for j in tl.static_range(J):
        if S > 1:
            dt = time_step(given, rows, exists, high, low, b, j, R, SOFTPLUS, EXACT, PRECISION)
        else:
            dt = tl.zeros([exists[j].shape[0], b.shape[0]], tl.float32)
        out = out + (dt,)
    return out


@triton.jit
def walk_inputs(
    proj, n, k, group, positions, exists, xs, given, high, low, b, length, stride: tl.constexpr,
    BACKWARDS: tl.constexpr, R: tl.constexpr, S: tl.constexpr, J: tl.constexpr,
    SOFTPLUS: tl.constexpr, EXACT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return what a direction reads, in the order of its walk.

    These are the pointers to its rows of ``proj``, which positions exist, x, the given time steps
    and those that several states share.
    """
    row_index = k if R > 0 else group
    first = proj + n * length * stride + row_index * (R + 2 * S)
    rows = in_walk_order(position_rows(first, positions, stride, J), J, BACKWARDS)
    inside = in_walk_order(exists, J, BACKWARDS)
    us = in_walk_order(xs, J, BACKWARDS)
    deltas = in_walk_order(given, 0 if R > 0 else J, BACKWARDS)
    dts = shared_time_steps(deltas, rows, inside, high, low, b, R, S, J, SOFTPLUS, EXACT, PRECISION)
    return rows, inside, us, deltas, dts


@triton.jit
def constant_weights(
    B, C, B_const, C_const, c, valid, s, S: tl.constexpr, CONST_B: tl.constexpr,
    CONST_C: tl.constexpr,
):  # fmt: skip
    """Replace B or C of state s (T, BC) where it depends only on the channel."""
    if CONST_B:
        B = tl.load(B_const + c * S + s, mask=valid, other=0.0)[None, :] + tl.zeros_like(B)
    if CONST_C:
        C = tl.load(C_const + c * S + s, mask=valid, other=0.0)[None, :] + tl.zeros_like(C)
    return B, C


@triton.jit
def step_terms(
    dts, given, rows, exists, high, low, b, units, B_const, C_const, c, valid, s, j: tl.constexpr,
    R: tl.constexpr, S: tl.constexpr, SOFTPLUS: tl.constexpr, CONST_B: tl.constexpr,
    CONST_C: tl.constexpr, EXACT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return the time step, B and C of state s at position j of each subchunk (T, BC)."""
    if S == 1 and R > 0:
        dt, B, C = single_state_row(rows[j], exists[j], high, low, b, units, R, EXACT, PRECISION)
    else:
        if S == 1:
            dt = time_step(given, rows, exists, high, low, b, j, R, SOFTPLUS, EXACT, PRECISION)
        else:
            dt = dts[j]
        B, C = load_state_weights(rows[j], exists[j], s, units, R, S, PRECISION)
        B, C = constant_weights(B, C, B_const, C_const, c, valid, s, S, CONST_B, CONST_C)
    return dt, B, C


@triton.jit
def load_skip(D, k0, k1, c, valid, channels: tl.constexpr):
    """Load the sum of a sweep's skip weights (BC), in the units of the states."""
    d = tl.load(D + k0 * channels + c, mask=valid & (k0 >= 0), other=0.0)
    return (d + tl.load(D + k1 * channels + c, mask=valid & (k1 >= 0), other=0.0)) * LOG2E


@triton.jit
def carry_pointer(
    carry, n, k, s, q, c, subchunks, channels: tl.constexpr, K: tl.constexpr, S: tl.constexpr
):
    """Return pointers (T, BC) into the carries (N, K, S, Q, C) of subchunks q."""
    first = ((n * K + k) * S + s) * subchunks * channels
    return carry + first + (q.to(tl.int64) * channels)[:, None] + c[None, :]


@triton.jit
def load_carry(
    carry, n, k, s, q, c, valid, subchunks, channels: tl.constexpr, K: tl.constexpr,
    S: tl.constexpr,
):  # fmt: skip
    """Load the carries (T, BC) of subchunks q, zero where there is no such subchunk."""
    mask = ((q >= 0) & (q < subchunks))[:, None] & valid[None, :]
    return tl.load(
        carry_pointer(carry, n, k, s, q, c, subchunks, channels, K, S), mask=mask, other=0.0
    )


@triton.jit(do_not_specialize=INTEGERS)
def summary_kernel(
    x, delta, proj, weight, bias, A, B_const, C_const, steps, ends,
    k0, k1, length, line, step, subchunks, chunks, items, repeat,
    channels: tl.constexpr, groups: tl.constexpr, K: tl.constexpr, R: tl.constexpr,
    S: tl.constexpr, COLUMNS: tl.constexpr, SHORT_LINES: tl.constexpr, SOFTPLUS: tl.constexpr,
    CONST_B: tl.constexpr, CONST_C: tl.constexpr, T: tl.constexpr, J: tl.constexpr,
    BC: tl.constexpr, EXACT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Store the sum of each subchunk's time steps and its state at the end, started from zero."""
    group, c, valid = program_channels(channels, groups, BC)
    stride: tl.constexpr = (K if R > 0 else groups) * (R + 2 * S)
    dtype: tl.constexpr = proj.dtype.element_ty
    units = weight_units(R, S, BC, dtype)
    high0, low0, b0, a0 = load_direction(weight, bias, A, k0, c, valid, channels, R, S, dtype)
    high1, low1, b1, a1 = load_direction(weight, bias, A, k1, c, valid, channels, R, S, dtype)
    first_item = program_item(channels, groups, BC) * repeat
    for item in range(first_item, tl.minimum(first_item + repeat, items)):
        n = (item // chunks).to(tl.int64)
        q = (item % chunks) * T + tl.arange(0, T)
        positions, exists = subchunk_positions(q, length, line, step, J, COLUMNS, SHORT_LINES)
        sample = n * length * channels
        xs = load_tiles(x + sample, positions, exists, c, valid, channels, J)
        given = load_tiles(delta + sample, positions, exists, c, valid, channels, 0 if R > 0 else J)
        mask = (q < subchunks)[:, None] & valid[None, :]
        for side in tl.static_range(2):
            k = k1 if side else k0
            high = high1 if side else high0
            low = low1 if side else low0
            b = b1 if side else b0
            if k >= 0:
                rows, inside, us, deltas, dts = walk_inputs(
                    proj, n, k, group, positions, exists, xs, given, high, low, b, length, stride,
                    side == 1, R, S, J, SOFTPLUS, EXACT, PRECISION,
                )  # fmt: skip
                for s in range(S):
                    a = a1 if side else a0
                    if S > 1:
                        a = tl.load(A + (k * channels + c) * S + s, mask=valid, other=0.0)[None, :]
                    h = tl.zeros([T, BC], tl.float32)
                    total = tl.zeros([T, BC], tl.float32)
                    for j in tl.static_range(J):
                        dt, B, _ = step_terms(
                            dts, deltas, rows, inside, high, low, b, units, B_const, C_const, c,
                            valid, s, j, R, S, SOFTPLUS, CONST_B, CONST_C, EXACT, PRECISION,
                        )  # fmt: skip
                        h = tl.exp2(a * dt) * h + dt * (B * us[j].to(tl.float32))
                        total += dt
                    tl.store(carry_pointer(ends, n, k, s, q, c, subchunks, channels, K, S), h, mask)
                    if s == 0:
                        tl.store(
                            carry_pointer(steps, n, k, 0, q, c, subchunks, channels, K, 1),
                            total, mask,
                        )  # fmt: skip


@triton.jit
def walk_offset(index, subchunks, reverse, channels: tl.constexpr):
    """Return the offset (T, 1) of subchunks in the order in which a direction meets them."""
    q = tl.where(reverse, subchunks - 1 - index, index)
    return (q.to(tl.int64) * channels)[:, None]


@triton.jit(do_not_specialize=INTEGERS)
def combine_kernel(
    steps, ends, A, last_state, subchunks, backwards,
    channels: tl.constexpr, K: tl.constexpr, S: tl.constexpr, LAST_STATE: tl.constexpr,
    T: tl.constexpr, J: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Turn the ends of subchunks started from zero into those of the whole walk, in place.

    Bit k of ``backwards`` is set if direction k, or the gradient that flows against it, meets the
    last subchunk first.
    """
    blocks = tl.cdiv(channels, BC)
    program = tl.program_id(0)
    c = (program % blocks) * BC + tl.arange(0, BC)
    s = (program // blocks) % S
    k = (program // (blocks * S)) % K
    n = (program // (blocks * S * K)).to(tl.int64)
    valid = c < channels
    a = tl.load(A + (k * channels + c) * S + s, mask=valid, other=0.0)[None, :]
    steps = carry_pointer(steps, n, k, 0, tl.zeros([T], tl.int32), c, subchunks, channels, K, 1)
    ends = carry_pointer(ends, n, k, s, tl.zeros([T], tl.int32), c, subchunks, channels, K, S)
    carry = tl.zeros([BC], tl.float32)
    reverse = ((backwards >> k) & 1) != 0
    row = tl.arange(0, T)
    for first in range(0, subchunks, T * J):
        decays = ()
        states = ()
        p = tl.full([T, BC], 1.0, tl.float32)
        h = tl.zeros([T, BC], tl.float32)
        for j in tl.static_range(J):
            index = first + row * J + j
            mask = (index < subchunks)[:, None] & valid[None, :]
            offset = walk_offset(index, subchunks, reverse, channels)
            decays = decays + (tl.exp2(a * tl.load(steps + offset, mask=mask, other=0.0)),)
            states = states + (tl.load(ends + offset, mask=mask, other=0.0),)
            p *= decays[j]
            h = decays[j] * h + states[j]
        is_first = row[:, None] == 0
        h, after = scan_rows(p, tl.where(is_first, h + p * carry[None, :], h), False)
        h = tl.where(is_first, carry[None, :], h)
        for j in tl.static_range(J):
            index = first + row * J + j
            mask = (index < subchunks)[:, None] & valid[None, :]
            h = decays[j] * h + states[j]
            tl.store(ends + walk_offset(index, subchunks, reverse, channels), h, mask)
        carry = tl.sum(tl.where(row[:, None] == T - 1, after, 0.0), 0)
    if LAST_STATE:
        tl.store(last_state + (n * channels + c) * S + s, carry * LN2, valid)


@triton.jit(do_not_specialize=INTEGERS)
def scan_kernel(
    x, delta, proj, weight, bias, A, B_const, C_const, D, ends, sums, out, last_state,
    k0, k1, length, line, step, subchunks, chunks,
    channels: tl.constexpr, groups: tl.constexpr, K: tl.constexpr, R: tl.constexpr,
    S: tl.constexpr, COLUMNS: tl.constexpr, SHORT_LINES: tl.constexpr,
    FIRST: tl.constexpr, LAST: tl.constexpr, WHOLE: tl.constexpr, LAST_STATE: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    CONST_B: tl.constexpr, CONST_C: tl.constexpr, T: tl.constexpr, J: tl.constexpr,
    BC: tl.constexpr, EXACT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add the outputs of a sweep's directions to the sums of the sweeps before it.

    The first sweep starts the sums, the last one stores the output. ``WHOLE``: a chunk is the whole
    sequence, so the states between its subchunks are found here.
    """
    group, c, valid = program_channels(channels, groups, BC)
    stride: tl.constexpr = (K if R > 0 else groups) * (R + 2 * S)
    dtype: tl.constexpr = proj.dtype.element_ty
    units = weight_units(R, S, BC, dtype)
    item = program_item(channels, groups, BC)
    n = (item // chunks).to(tl.int64)
    q = (item % chunks) * T + tl.arange(0, T)
    positions, exists = subchunk_positions(q, length, line, step, J, COLUMNS, SHORT_LINES)
    sample = n * length * channels
    xs = load_tiles(x + sample, positions, exists, c, valid, channels, J)
    given = load_tiles(delta + sample, positions, exists, c, valid, channels, 0 if R > 0 else J)
    d = load_skip(D, k0, k1, c, valid, channels)
    ys = ()
    for j in tl.static_range(J):
        ys = ys + (d[None, :] * xs[j].to(tl.float32),)

    for side in tl.static_range(2):
        k = k1 if side else k0
        # A branch also keeps the compiler from loading both directions' rows at once.
        if k >= 0:
            high, low, b, a = load_direction(weight, bias, A, k, c, valid, channels, R, S, dtype)
            rows, inside, us, deltas, dts = walk_inputs(
                proj, n, k, group, positions, exists, xs, given, high, low, b, length, stride,
                side == 1, R, S, J, SOFTPLUS, EXACT, PRECISION,
            )  # fmt: skip
            sums_y = in_walk_order(ys, J, side == 1)
            for s in range(S):
                if S > 1:
                    a = tl.load(A + (k * channels + c) * S + s, mask=valid, other=0.0)[None, :]
                h = tl.zeros([T, BC], tl.float32)
                if not WHOLE:
                    before = q + 1 if side else q - 1
                    h = load_carry(ends, n, k, s, before, c, valid, subchunks, channels, K, S)
                p = tl.full([T, BC], 1.0, tl.float32)
                local = ()
                reach = ()
                for j in tl.static_range(J):
                    dt, B, C = step_terms(
                        dts, deltas, rows, inside, high, low, b, units, B_const, C_const, c, valid,
                        s, j, R, S, SOFTPLUS, CONST_B, CONST_C, EXACT, PRECISION,
                    )  # fmt: skip
                    decay = tl.exp2(a * dt)
                    h = decay * h + dt * (B * us[j].to(tl.float32))
                    local = local + (sums_y[j] + C * h,)
                    if WHOLE:
                        p *= decay
                        reach = reach + (C * p,)
                sums_y = local
                if WHOLE:
                    h, after = scan_rows(decay_of_rows(p, exists), h, side == 1)
                    sums_y = ()
                    for j in tl.static_range(J):
                        sums_y = sums_y + (local[j] + reach[j] * h,)
                    if LAST_STATE:
                        end = tl.where(tl.arange(0, T)[:, None] == T - 1, after, 0.0)
                        state = last_state + (n * channels + c) * S + s
                        tl.store(state, tl.sum(end, 0) * LN2, valid)
            ys = in_walk_order(sums_y, J, side == 1)

    for j in tl.static_range(J):
        offset = sample + (positions[j] * channels)[:, None] + c[None, :]
        mask = exists[j][:, None] & valid[None, :]
        store_sum(ys[j], sums + offset, out + offset, mask, FIRST, LAST)
