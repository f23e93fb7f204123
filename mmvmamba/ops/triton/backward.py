"""Backward pass of the scans in Triton: summaries of the subchunks both ways, and the gradients.

The forward saves nothing. The states and the gradients between subchunks come from one pass over
the map, and the gradients of the inputs from a second one, in sweeps like those of the forward.

With g the gradient of the state h, which flows against the walk:
g_t = C_t dy_t + a_{t+1} g_{t+1}, a = exp(dt A), d dt = g (B x + A a h_{t-1}).
"""

import triton
import triton.language as tl

from .forward import (
    INTEGERS,
    carry_pointer,
    constant_weights,
    load_carry,
    load_direction,
    load_skip,
    load_tiles,
    position_rows,
    program_channels,
    program_item,
    step_terms,
    store_sum,
    walk_inputs,
)
from .tiles import (
    LN2,
    decay_of_rows,
    in_walk_order,
    load_state_weights,
    scan_rows,
    softplus_slope,
    subchunk_positions,
    weight_units,
    zero_tiles,
)


@triton.jit
def subchunk_ends(
    us, dys, dts, deltas, rows, inside, high, low, b, a, units, B_const, C_const, c, valid, s,
    R: tl.constexpr, S: tl.constexpr, J: tl.constexpr, SOFTPLUS: tl.constexpr,
    CONST_B: tl.constexpr, CONST_C: tl.constexpr, EXACT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Walk each subchunk from zero.

    Returns its sum of time steps, its product of decays, the state at its end and the gradient of
    the state before it.
    """
    total = tl.zeros([inside[0].shape[0], b.shape[0]], tl.float32)
    p = total + 1.0
    h = total
    g = total
    for j in tl.static_range(J):
        dt, B, C = step_terms(
            dts, deltas, rows, inside, high, low, b, units, B_const, C_const, c, valid, s, j, R, S,
            SOFTPLUS, CONST_B, CONST_C, EXACT, PRECISION,
        )  # fmt: skip
        decay = tl.exp2(a * dt)
        h = decay * h + dt * (B * us[j].to(tl.float32))
        p *= decay
        g += p * (C * dys[j].to(tl.float32))
        total += dt
    return total, p, h, g


@triton.jit(do_not_specialize=INTEGERS)
def backward_summary_kernel(
    x, delta, proj, weight, bias, A, B_const, C_const, grad_y, steps, ends, grad_ends,
    k0, k1, length, line, step, subchunks, chunks, items, repeat,
    channels: tl.constexpr, groups: tl.constexpr, K: tl.constexpr, R: tl.constexpr,
    S: tl.constexpr, COLUMNS: tl.constexpr, SHORT_LINES: tl.constexpr, SOFTPLUS: tl.constexpr,
    CONST_B: tl.constexpr, CONST_C: tl.constexpr, T: tl.constexpr, J: tl.constexpr,
    BC: tl.constexpr, EXACT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Store the sum of each subchunk's time steps, its last state and the gradient before it.

    All start from zero, as in :func:`subchunk_ends`.
    """
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
        dys = load_tiles(grad_y + sample, positions, exists, c, valid, channels, J)
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
                grads = in_walk_order(dys, J, side == 1)
                for s in range(S):
                    a = a1 if side else a0
                    if S > 1:
                        a = tl.load(A + (k * channels + c) * S + s, mask=valid, other=0.0)[None, :]
                    total, _, h, g = subchunk_ends(
                        us, grads, dts, deltas, rows, inside, high, low, b, a, units, B_const,
                        C_const, c, valid, s, R, S, J, SOFTPLUS, CONST_B, CONST_C, EXACT, PRECISION,
                    )  # fmt: skip
                    offset = carry_pointer(0, n, k, s, q, c, subchunks, channels, K, S)
                    tl.store(ends + offset, h, mask)
                    tl.store(grad_ends + offset, g, mask)
                    if s == 0:
                        tl.store(
                            carry_pointer(steps, n, k, 0, q, c, subchunks, channels, K, 1),
                            total, mask,
                        )  # fmt: skip


@triton.jit
def store_step_gradient(ddt, dt, grad_steps, mask, SOFTPLUS: tl.constexpr, EXACT: tl.constexpr):
    """Store the gradient of the argument of softplus, or of the time step, and return it."""
    if SOFTPLUS:
        ddt *= softplus_slope(dt, EXACT)
    tl.store(grad_steps, ddt.to(grad_steps.dtype.element_ty), mask)
    return ddt


@triton.jit
def add_channels(values, N: tl.constexpr, dtype: tl.constexpr, PRECISION: tl.constexpr):
    """Return the sums of values (T, BC) over the channels, broadcast to N columns.

    The values are rounded to the dtype. A product with ones takes fewer instructions than an
    addition across threads.
    """
    ones = tl.full([values.shape[1], N], 1.0, dtype)
    return tl.dot(values.to(dtype), ones, input_precision=PRECISION)


@triton.jit
def store_weight_gradients(
    dB, dC, grad_row, exists, s, S: tl.constexpr, dtype: tl.constexpr, PRECISION: tl.constexpr
):
    """Store the gradients of B and C of state s at each row's position."""
    # Triton splits a chain of products among the warps as it does the first: by rows if that one is
    # at least as high as wide, else by columns. N gives this product the same form; otherwise every
    # warp would compute all of it.
    T: tl.constexpr = dB.shape[0]
    N: tl.constexpr = 2 * T if dB.shape[1] > T else 16
    r = tl.arange(0, N)[None, :]
    sums_B = add_channels(dB, N, dtype, PRECISION)
    sums_C = add_channels(dC, N, dtype, PRECISION)
    tl.store(
        grad_row[:, None] + (s + S * r),
        tl.where(r == 0, sums_B, sums_C) * LN2,
        exists[:, None] & (r < 2),
    )


@triton.jit(do_not_specialize=INTEGERS)
def backward_kernel(
    x, delta, proj, weight, bias, A, B_const, C_const, D, grad_y, ends, grad_ends,
    sums, grad_x, grad_steps, proj_parts, param_parts, D_parts,
    k0, k1, length, line, step, subchunks, chunks, samples,
    channels: tl.constexpr, groups: tl.constexpr, K: tl.constexpr, R: tl.constexpr,
    S: tl.constexpr, COLUMNS: tl.constexpr, SHORT_LINES: tl.constexpr,
    FIRST: tl.constexpr, LAST: tl.constexpr, WHOLE: tl.constexpr, SOFTPLUS: tl.constexpr,
    CONST_B: tl.constexpr, CONST_C: tl.constexpr, T: tl.constexpr, J: tl.constexpr,
    BC: tl.constexpr, EXACT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add the gradients of a sweep's directions to the sums of the sweeps before it.

    The gradients of the time steps, ``grad_steps`` (K, N, L, C), are left to matrix products. Sums
    over channels leave a part for each block of channels: ``proj_parts`` (blocks, N, L, K, 2 S).
    Sums over positions leave a part for each sample and chunk: ``param_parts`` (parts, K, rows, C)
    with a row for dt_bias, S for A and, if they are constant, S for B and S for C; ``D_parts``
    (parts, C), the same for all directions.
    """
    ROWS: tl.constexpr = 1 + S + (S if CONST_B else 0) + (S if CONST_C else 0)
    stride: tl.constexpr = (K if R > 0 else groups) * (R + 2 * S)
    part_stride: tl.constexpr = (K if R > 0 else groups) * 2 * S
    dtype: tl.constexpr = proj.dtype.element_ty
    group, c, valid = program_channels(channels, groups, BC)
    units = weight_units(R, S, BC, dtype)
    part = program_item(channels, groups, BC).to(tl.int64)
    n = part // chunks
    q = (part % chunks).to(tl.int32) * T + tl.arange(0, T)
    block = (tl.program_id(0) % ((channels // groups + BC - 1) // BC)).to(tl.int64)
    positions, exists = subchunk_positions(q, length, line, step, J, COLUMNS, SHORT_LINES)
    sample = n * length * channels
    xs = load_tiles(x + sample, positions, exists, c, valid, channels, J)
    dys = load_tiles(grad_y + sample, positions, exists, c, valid, channels, J)
    given = load_tiles(delta + sample, positions, exists, c, valid, channels, 0 if R > 0 else J)
    d = load_skip(D, k0, k1, c, valid, channels)
    dxs = ()
    dD = tl.zeros([T, BC], tl.float32)
    for j in tl.static_range(J):
        dy = dys[j].to(tl.float32)
        dxs = dxs + (d[None, :] * dy,)
        if FIRST:
            dD += dy * xs[j].to(tl.float32)
    if FIRST:
        tl.store(D_parts + part * channels + c, tl.sum(dD, 0), valid)

    for side in tl.static_range(2):
        k = k1 if side else k0
        if k >= 0:
            high, low, b, a = load_direction(weight, bias, A, k, c, valid, channels, R, S, dtype)
            rows, inside, us, deltas, dts = walk_inputs(
                proj, n, k, group, positions, exists, xs, given, high, low, b, length, stride,
                side == 1, R, S, J, SOFTPLUS, EXACT, PRECISION,
            )  # fmt: skip
            walk_positions = in_walk_order(positions, J, side == 1)
            row_index = k if R > 0 else group
            grad_rows = position_rows(
                proj_parts + (block * samples + n) * length * part_stride + row_index * 2 * S,
                walk_positions, part_stride, J,
            )  # fmt: skip
            grad_step = grad_steps + (k * samples + n) * length * channels
            params = param_parts + (part * K + k) * ROWS * channels + c
            grads = in_walk_order(dys, J, side == 1)
            sums_dx = in_walk_order(dxs, J, side == 1)
            ddts = zero_tiles(J, T, BC)
            dbias = tl.zeros([T, BC], tl.float32)
            for s in range(S):
                if S > 1:
                    a = tl.load(A + (k * channels + c) * S + s, mask=valid, other=0.0)[None, :]
                if WHOLE:
                    _, p, h, g = subchunk_ends(
                        us, grads, dts, deltas, rows, inside, high, low, b, a, units, B_const,
                        C_const, c, valid, s, R, S, J, SOFTPLUS, CONST_B, CONST_C, EXACT, PRECISION,
                    )  # fmt: skip
                    p = decay_of_rows(p, exists)
                    h, _ = scan_rows(p, h, side == 1)
                    g, _ = scan_rows(p, g, side == 0)
                else:
                    before = q + 1 if side else q - 1
                    after = q - 1 if side else q + 1
                    h = load_carry(ends, n, k, s, before, c, valid, subchunks, channels, K, S)
                    g = load_carry(grad_ends, n, k, s, after, c, valid, subchunks, channels, K, S)
                # Along the walk: the state before each position.
                hs = ()
                steps = ()
                for j in tl.static_range(J):
                    dt, B, _ = step_terms(
                        dts, deltas, rows, inside, high, low, b, units, B_const, C_const, c, valid,
                        s, j, R, S, SOFTPLUS, CONST_B, CONST_C, EXACT, PRECISION,
                    )  # fmt: skip
                    hs = hs + (h,)
                    steps = steps + (dt,)
                    h = tl.exp2(a * dt) * h + dt * (B * us[j].to(tl.float32))
                # Against the walk: the gradients, those of the last position first.
                dA = tl.zeros([T, BC], tl.float32)
                dB_const = tl.zeros([T, BC], tl.float32)
                dC_const = tl.zeros([T, BC], tl.float32)
                new_dxs = ()
                new_ddts = ()
                for i in tl.static_range(J):
                    B, C = load_state_weights(
                        rows[J - 1 - i], inside[J - 1 - i], s, units, R, S, PRECISION
                    )
                    B, C = constant_weights(
                        B, C, B_const, C_const, c, valid, s, S, CONST_B, CONST_C
                    )
                    u = us[J - 1 - i].to(tl.float32)
                    dy = grads[J - 1 - i].to(tl.float32)
                    dt = steps[J - 1 - i]
                    dC = dy * h
                    h = hs[J - 1 - i]
                    g += C * dy
                    gdt = g * dt
                    dB = gdt * u
                    new_dxs = (sums_dx[J - 1 - i] + gdt * B,) + new_dxs
                    ddt = g * (B * u)
                    g *= tl.exp2(a * dt)
                    slope = g * h
                    dA += dt * slope
                    ddt += ddts[J - 1 - i] + (a * LN2) * slope
                    if CONST_B:
                        dB_const += dB
                        dB = tl.zeros([T, BC], tl.float32)
                    if CONST_C:
                        dC_const += dC
                        dC = tl.zeros([T, BC], tl.float32)
                    store_weight_gradients(
                        dB, dC, grad_rows[J - 1 - i], inside[J - 1 - i], s, S, dtype, PRECISION
                    )
                    if S == 1:
                        offset = (walk_positions[J - 1 - i] * channels)[:, None] + c[None, :]
                        mask = inside[J - 1 - i][:, None] & valid[None, :]
                        dbias += store_step_gradient(
                            ddt, dt, grad_step + offset, mask, SOFTPLUS, EXACT
                        )
                    new_ddts = (ddt,) + new_ddts
                sums_dx = new_dxs
                ddts = new_ddts
                tl.store(params + (1 + s) * channels, tl.sum(dA, 0) * (LN2 * LN2), valid)
                if CONST_B:
                    tl.store(params + (1 + S + s) * channels, tl.sum(dB_const, 0) * LN2, valid)
                if CONST_C:
                    tl.store(params + (ROWS - S + s) * channels, tl.sum(dC_const, 0) * LN2, valid)
            if S > 1:
                for j in tl.static_range(J):
                    offset = (walk_positions[j] * channels)[:, None] + c[None, :]
                    mask = inside[j][:, None] & valid[None, :]
                    dbias += store_step_gradient(
                        ddts[j], dts[j], grad_step + offset, mask, SOFTPLUS, EXACT
                    )
            tl.store(params, tl.sum(dbias, 0), valid)
            dxs = in_walk_order(sums_dx, J, side == 1)

    for j in tl.static_range(J):
        offset = sample + (positions[j] * channels)[:, None] + c[None, :]
        mask = exists[j][:, None] & valid[None, :]
        store_sum(dxs[j], sums + offset, grad_x + offset, mask, FIRST, LAST)
