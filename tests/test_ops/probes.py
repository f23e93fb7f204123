"""Kernels that store what a building block of the Triton kernels returns."""

import triton
import triton.language as tl

from mmvmamba.ops.triton import tiles


@triton.jit
def softplus_probe(v, steps, slopes, N: tl.constexpr, EXACT: tl.constexpr):
    i = tl.arange(0, N)
    dt = tiles.softplus(tl.load(v + i), EXACT)
    tl.store(steps + i, dt)
    tl.store(slopes + i, tiles.softplus_slope(dt, EXACT))


@triton.jit
def positions_probe(
    out, exist, length, line, step, T: tl.constexpr, J: tl.constexpr, COLUMNS: tl.constexpr,
    SHORT_LINES: tl.constexpr,
):  # fmt: skip
    q = tl.arange(0, T)
    positions, exists = tiles.subchunk_positions(q, length, line, step, J, COLUMNS, SHORT_LINES)
    for j in tl.static_range(J):
        tl.store(out + q * J + j, positions[j])
        tl.store(exist + q * J + j, exists[j].to(tl.int8))


@triton.jit
def scan_rows_probe(
    p, h, before, after, T: tl.constexpr, BC: tl.constexpr, BACKWARDS: tl.constexpr
):  # fmt: skip
    i = tl.arange(0, T)[:, None] * BC + tl.arange(0, BC)[None, :]
    start, end = tiles.scan_rows(tl.load(p + i), tl.load(h + i), BACKWARDS)
    tl.store(before + i, start)
    tl.store(after + i, end)


@triton.jit
def dot_probe(a, b, out, N: tl.constexpr):
    i = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    tl.store(out + i, tl.dot(tl.load(a + i), tl.load(b + i)))


@triton.jit
def round_probe(values, out, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(out + i, tl.load(values + i).to(out.dtype.element_ty))
