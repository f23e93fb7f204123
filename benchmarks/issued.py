"""Count the instructions that the CUDA scans issue, by walking through their machine code.

Compiles the kernels of ``ss2d_scan`` with one state and float16 I/O for sm_90 and follows one
thread of each row of a block to its exit. Integers and predicates are evaluated; values from memory
and floating point are unknown, and branches on them are not taken. Counts are over the elements of
the map times the directions. Needs nvcc and cuobjdump, no GPU.

Examples:
    python benchmarks/issued.py
    python benchmarks/issued.py --ranks 6 12 24 48 --lanes 32 --markdown
"""

import argparse
import logging
import os
import re
import shutil
import struct
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import common
import numpy as np
import torch
from gpu_steps.sweeps import read_usage
from machine_code import KINDS, NO_CUOBJDUMP, cuobjdump, kind_of, split_functions

CSRC = Path(__file__).parents[1] / 'csrc'
SOURCE = """
#include "scan_kernel.cuh"
#include "scan_forward.h"
#include "scan_backward.h"
namespace mmvmamba {
using Half = torch::headeronly::Half;
template __global__ void scan_kernel<ForwardScan<Half, 1, false, LANES>>(const ScanForward);
template __global__ void scan_kernel<ForwardScan<Half, 1, true, LANES>>(const ScanForward);
template __global__ void scan_kernel<BackwardScan<Half, 1, false, LANES>>(const ScanBackward);
template __global__ void scan_kernel<BackwardScan<Half, 1, true, LANES>>(const ScanBackward);
}
"""
COLUMNS = ('kernel', 'rank', 'instructions', *KINDS, 'registers', 'stack')
SHAPE = dict(N=2, H=32, W=32, C=192, K=4)
#: Positions of a thread in a chunk of 64.
TILES = dict(forward=16, backward=8)
LINE = re.compile(r'^\s*/\*([0-9a-f]{4,})\*/\s+(@!?U?P[T\d]\s+)?([A-Z][\w.]*)\s*([^;]*);', re.M)
M = 0xFFFFFFFF


class Line(NamedTuple):
    """An instruction: its predicate, opcode, operands and the address of the next."""

    predicate: str | None
    opcode: str
    operands: list[str]
    following: int | None


def read_lines(text):
    """Read the disassembly of a function, by address."""
    found = [(int(address, 16), *rest) for address, *rest in LINE.findall(text)]
    after = [address for address, *_ in found[1:]] + [None]
    return {
        address: Line(
            predicate.strip()[1:] or None,
            opcode,
            [o.strip().replace('.reuse', '') for o in operands.split(',')]
            if operands.strip()
            else [],
            following,
        )
        for (address, predicate, opcode, operands), following in zip(found, after, strict=True)
    }


def f32(b):
    """The float of 32 bits."""
    return np.array(b, dtype=np.uint32).view(np.float32)[()]


def bits(f):
    """The 32 bits of a float."""
    return int(np.array(f, dtype=np.float32).view(np.uint32)[()])


def s32(x):
    """A signed number from 32 bits."""
    return x - (1 << 32) if x >> 31 else x


def s64(x):
    """A signed number from 64 bits."""
    return x - (1 << 64) if x >> 63 else x


def walk(code, const, tid, limit=20_000_000):
    """Follow a thread to its exit.

    Args:
        code (Mapping[int, Line]): The function.
        const (bytes): The constant bank, with the arguments.
        tid (int): The thread in its block.
        limit (int): Instructions after which a walk is given up.

    Returns:
        Counter: How often the instruction at each address issued.
    """
    R = {}
    P = {'PT': True, 'UPT': True}
    L = {}
    where = Counter()

    def rd(o):
        if o is None:
            return None
        neg = inv = False
        if o[0] == '-' and not o[1].isdigit():
            neg = True
            o = o[1:]
        elif o[0] == '~':
            inv = True
            o = o[1:]
        if o[0] == '|':
            return None
        if o in ('RZ', 'URZ'):
            v = 0
        elif o[0] in 'RU' and o[1] in '0123456789R':
            v = R.get(o, 0)
        elif o.startswith('c['):
            off = int(re.search(r'\[(0x[0-9a-f]+)\]$', o)[1], 16)
            v = struct.unpack_from('<I', const, off)[0]
        elif o.startswith('0x') or o.startswith('-0x'):
            v = int(o, 16) & M
        else:
            try:
                v = int(o) & M
            except ValueError:
                try:
                    v = bits(
                        float(
                            o.replace('+INF', 'inf').replace('-INF', '-inf').replace('QNAN', 'nan')
                        )
                    )
                except ValueError:
                    raise NotImplementedError(f'operand {o}') from None
        if v is None:
            return None
        if neg:
            return (1 << 32) - v
        if inv:
            return v ^ M
        return v

    def nxt(o):
        if o in ('RZ', 'URZ'):
            return o
        m = re.match(r'(U?R)(\d+)', o)
        return m[1] + str(int(m[2]) + 1)

    def pair(o):
        if o in ('RZ', 'URZ'):
            return 0
        if o.startswith('c['):
            off = int(re.search(r'\[(0x[0-9a-f]+)\]$', o)[1], 16)
            return struct.unpack_from('<Q', const, off)[0]
        if o.startswith('0x') or o[0] == '-':
            return int(o, 16) & M
        lo, hi = R.get(o, 0), R.get(nxt(o), 0)
        return None if lo is None or hi is None else lo | hi << 32

    def wr(o, v):
        if o not in ('RZ', 'URZ'):
            R[o] = None if v is None else v & M

    def wrp(o, v):
        wr(o, v)
        if o not in ('RZ', 'URZ'):
            wr(nxt(o), None if v is None else v >> 32)

    def pd(o):
        if o[0] == '!':
            v = P.get(o[1:])
            return None if v is None else not v
        return P.get(o)

    def wp(o, v):
        if o not in ('PT', 'UPT'):
            P[o] = v

    def isp(o):
        return re.fullmatch(r'!?U?P[T\d]', o) is not None

    pc = 0
    steps = 0
    while True:
        pr, op, ops, following = code[pc]
        parts = op.split('.')
        here = pc
        where[pc] += 1
        steps += 1
        if steps > limit:
            raise RuntimeError(f'no exit after {limit} instructions')
        pc = following
        b = parts[0]
        act = True
        if pr is not None and b != 'BRA' and b != 'EXIT':
            act = pd(pr)
            if act is None:
                # unknown predicate: destination unknown for plain ops
                if b in (
                    'STG',
                    'STS',
                    'STL',
                    'LDG',
                    'FADD',
                    'SHFL',
                    'FMUL',
                    'FFMA',
                    'FSEL',
                    'FMNMX',
                ):
                    act = True
                else:
                    act = '?'
            if act is False:
                continue
        c = b[1:] if b[0] == 'U' else b
        if c in ('BRA', 'EXIT'):
            t = True if pr is None else pd(pr)
            cond = ops[:-1]
            if c == 'BRA':
                for o in cond:
                    v = pd(o)
                    t = None if v is None or t is None else (t and v)
                if '.DIV' in op:
                    t = False
                if t:
                    pc = int(ops[-1].split()[-1], 16)
            else:
                if t:
                    break
            continue
        if c in (
            'BSSY',
            'BSYNC',
            'NOP',
            'BAR',
            'WARPSYNC',
            'BREAK',
            'DEPBAR',
            'STG',
            'STS',
            'ST',
            'YIELD',
            'MEMBAR',
        ):
            continue
        if c == 'CALL':
            pc = int(ops[-1].split()[-1], 16)
            continue
        if c == 'RET':
            pc = rd(ops[0].split()[0])
            continue
        if c == 'MOV':
            v = rd(ops[1])
            wr(ops[0], v)
        elif c == 'LDC':
            m = re.match(r'c\[0x0\]\[(?:(U?R\w+)\+?)?(-?0x[0-9a-f]+)?\]', ops[1])
            base = 0 if not m[1] else rd(m[1])
            off = int(m[2] or '0', 16)
            if base is None:
                v = None
            else:
                a = (base + off) & M
                if '64' in op:
                    v = struct.unpack_from('<Q', const, a)[0]
                elif 'U8' in op:
                    v = const[a]
                else:
                    v = struct.unpack_from('<I', const, a)[0]
            (wrp if '64' in op else wr)(ops[0], v)
        elif c in ('S2R', 'S2UR'):
            v = {'SR_TID.X': tid, 'SR_CTAID.X': 1, 'SR_LANEID': tid & 31}.get(ops[1])

            wr(ops[0], v)
        elif b == 'R2UR':
            wr(ops[-2], rd(ops[-1]))
        elif b == 'CS2R':
            (wr if '32' in op else wrp)(ops[0], 0 if ops[1] == 'SRZ' else None)
        elif c in ('IADD3', 'VIADD', 'IADD'):
            o = ops[:]
            d = o.pop(0)
            co = []
            while isp(o[0]):
                co.append(o.pop(0))
            src = [rd(x) for x in o if not isp(x)]
            ci = [x for x in o if isp(x)]
            if None in src or any(pd(x) is None for x in ci):
                v = None
            else:
                v = sum(src) + sum(1 for x in ci if pd(x)) if 'X' in parts else sum(src)
            if act == '?':
                v = None
            wr(d, v)
            for i, x in enumerate(co):
                wp(x, None if v is None else v >= (i + 1) << 32)
        elif c == 'IMAD':
            o = ops[:]
            d = o.pop(0)
            co = None
            if isp(o[0]):
                co = o.pop(0)
            ci = 0
            if isp(o[-1]):
                q = pd(o.pop())
                ci = q if 'X' in parts else 0
            a_, b_ = rd(o[0]), rd(o[1])
            if o[0] in ('RZ', 'URZ') or o[1] in ('RZ', 'URZ'):
                a_ = b_ = 0
            wide = 'WIDE' in parts or 'HI' in parts
            cc = pair(o[2]) if wide else rd(o[2])
            if a_ is None or b_ is None or cc is None or ci is None or act == '?':
                v = None
            else:
                if wide and 'U32' not in parts:
                    m = s32(a_ & M) * s32(b_ & M)
                elif wide:
                    m = (a_ & M) * (b_ & M)
                else:
                    m = a_ * b_
                v = m + cc + int(ci)
            if 'WIDE' in parts:
                wrp(d, None if v is None else v & ((1 << 64) - 1))
                if co:
                    wp(co, None if v is None else v >> 64 != 0)
            elif 'HI' in parts:
                wr(d, None if v is None else (v >> 32))
            else:
                wr(d, v)
        elif c == 'LEA':
            o = ops[:]
            d = o.pop(0)
            co = None
            if isp(o[0]):
                co = o.pop(0)
            ci = 0
            if isp(o[-1]):
                ci = pd(o.pop())
            sh = rd(o[-1])
            a_ = rd(o[0])
            b_ = rd(o[1])
            if 'HI' in parts:
                hi = (
                    rd(o[2])
                    if 'SX32' not in parts
                    else (None if a_ is None else (M if a_ >> 31 else 0))
                )
                v = (
                    None
                    if None in (a_, b_, hi, ci)
                    else ((((hi & M) << 32 | (a_ & M)) << sh) >> 32 & M) + b_ + int(ci)
                )
            else:
                v = None if a_ is None or b_ is None else ((a_ << sh) & M) + b_
            if act == '?':
                v = None
            wr(d, v)
            if co:
                wp(co, None if v is None else v > M)
        elif c == 'SHF':
            d, a_, sh, h = ops[0], rd(ops[1]), rd(ops[2]), rd(ops[3])
            v = None
            if sh is not None:
                if 'L' in parts:
                    if 'HI' in parts:
                        v = None if a_ is None or h is None else ((h << 32 | a_) << sh) >> 32
                    else:
                        v = None if a_ is None else a_ << min(sh, 32)
                else:
                    if 'HI' in parts:
                        if h is not None:
                            v = (s32(h) >> min(sh, 31)) if 'S32' in parts else h >> sh
                    elif a_ is not None and h is not None:
                        x = h << 32 | a_
                        v = (s64(x) if 'S64' in parts else x) >> sh
            wr(d, v if act is True else None)
        elif c == 'LOP3':
            o = ops[:]
            co = None
            if isp(o[0]):
                co = o.pop(0)
            d = o.pop(0)
            a_, b_, c_ = [rd(x) for x in o[:3]]
            lut = int(o[3], 16)
            if o[0] == 'RZ':
                a_ = 0
            v = None
            # lut may make operands irrelevant
            if lut == 0xC0 and (a_ == 0 or b_ == 0):
                v = 0
            elif None not in (a_, b_, c_):
                v = 0
                for i in range(8):
                    if lut >> i & 1:
                        v |= (
                            (a_ if i & 4 else ~a_) & (b_ if i & 2 else ~b_) & (c_ if i & 1 else ~c_)
                        )
                v &= M
            if act == '?':
                v = None
            wr(d, v)
            if co:
                wp(co, None if v is None else v != 0)
        elif c == 'PLOP3':
            o = ops[:]
            a_, b_, c_ = [pd(x) for x in o[2:5]]
            lut = int(o[5], 16)
            vals = set()
            for aa in [a_] if a_ is not None else [False, True]:
                for bb in [b_] if b_ is not None else [False, True]:
                    for cc in [c_] if c_ is not None else [False, True]:
                        vals.add(bool(lut >> (aa * 4 + bb * 2 + cc) & 1))
            wp(o[0], vals.pop() if len(vals) == 1 and act is True else None)
        elif c == 'ISETP':
            cmp = parts[1]
            un = 'U32' in parts
            ex = 'EX' in parts
            bo = 'AND' if 'AND' in parts else 'OR' if 'OR' in parts else 'XOR'
            a_, b_ = rd(ops[2]), rd(ops[3])
            q = pd(ops[4])
            r = None
            if a_ is not None and b_ is not None:
                a_ &= M
                b_ &= M
                if not un:
                    a_, b_ = s32(a_), s32(b_)
                if ex:
                    e = pd(ops[5])
                    if cmp == 'EQ':
                        r = False if a_ != b_ else e
                    elif cmp == 'NE':
                        r = True if a_ != b_ else e
                    elif a_ == b_:
                        r = e
                    else:
                        r = {'GE': a_ > b_, 'GT': a_ > b_, 'LT': a_ < b_, 'LE': a_ < b_}[cmp]
                else:
                    r = {
                        'EQ': a_ == b_,
                        'NE': a_ != b_,
                        'GE': a_ >= b_,
                        'GT': a_ > b_,
                        'LT': a_ < b_,
                        'LE': a_ <= b_,
                    }[cmp]

            def comb(r, q, bo=bo):
                if bo == 'AND':
                    if r is False or q is False:
                        return False
                    return None if r is None or q is None else True
                if r is True or q is True:
                    return True
                return None if r is None or q is None else False

            wp(ops[0], comb(r, q) if act is True else None)
            wp(ops[1], comb(None if r is None else not r, q))
        elif c == 'SEL':
            q = pd(ops[3])
            x, y = rd(ops[1]), rd(ops[2])
            wr(ops[0], None if q is None or act is not True else (x if q else y))
        elif c == 'IABS':
            v = rd(ops[1])
            wr(ops[0], None if v is None else abs(s32(v & M)))
        elif c in ('IMNMX', 'VIMNMX'):
            a_, b_ = rd(ops[1]), rd(ops[2])
            q = pd(ops[3])
            if None in (a_, b_, q):
                v = None
            else:
                if 'U32' not in parts:
                    a_, b_ = s32(a_ & M), s32(b_ & M)
                v = min(a_, b_) if q else max(a_, b_)
            wr(ops[0], v)
        elif b == 'I2F':
            x = pair(ops[1]) if 'U64' in parts else rd(ops[1])
            if x is None:
                v = None
            else:
                if 'U32' not in parts and 'U64' not in parts:
                    x = s32(x)
                f = np.float32(x)
                if 'RP' in parts and float(f) < x:
                    f = np.nextafter(f, np.float32(np.inf))
                v = bits(f)
            wr(ops[0], v)
        elif b == 'MUFU':
            x = rd(ops[1]) if parts[1] == 'RCP' else None
            wr(ops[0], None if x is None or f32(x) == 0 else bits(np.float32(1) / f32(x)))
        elif b == 'F2I':
            x = rd(ops[1])
            if 'U64' in parts:
                wrp(ops[0], None if x is None else int(f32(x)))
            else:
                wr(ops[0], None if x is None else int(min(f32(x), 2**32 - 1)))
        elif b == 'HFMA2':
            if ops[1] in ('-RZ', 'RZ') and ops[2] == 'RZ':
                high, low = (
                    int(np.array(float(o), dtype=np.float16).view(np.uint16)) for o in ops[3:5]
                )
                wr(ops[0], high << 16 | low)
            else:
                wr(ops[0], None)
        elif b == 'P2R':
            mask = rd(ops[3])
            v = rd(ops[2]) & ~mask & M
            for i in range(7):
                if mask >> i & 1 and P.get(f'P{i}'):
                    v |= 1 << i
            wr(ops[0], v)
        elif b == 'R2P':
            v = rd(ops[1])
            mask = rd(ops[2])
            for i in range(7):
                if mask >> i & 1:
                    wp(f'P{i}', None if v is None else bool(v >> i & 1))
        elif b in ('STL', 'LDL'):
            addr = ops[0] if b == 'STL' else ops[1]
            m = re.match(r'\[(R\d+)?\+?(-?0x[0-9a-f]+)?\]', addr)
            a_ = ((rd(m[1]) if m[1] else 0) + int(m[2] or '0', 16)) & M
            n = 4 if '128' in op else 2 if '64' in op else 1
            r = ops[1] if b == 'STL' else ops[0]
            for i in range(n):
                if b == 'STL':
                    L[a_ + 4 * i] = rd(r)
                else:
                    wr(r, L.get(a_ + 4 * i))
                r = nxt(r)
        elif b in ('LDS', 'LDG', 'LD'):
            n = 4 if '128' in op else 2 if '64' in op else 1
            r = ops[0]
            if isp(r):
                r = ops[1]
            for _ in range(n):
                wr(r, None)
                r = nxt(r)
        elif b == 'SHFL':
            wr(ops[1] if isp(ops[0]) else ops[0], None)
        elif b in ('FSETP', 'DSETP', 'HSETP2'):
            wp(ops[0], None)
            wp(ops[1], None)
        elif b == 'FCHK':
            wp(ops[0], False)
        elif b in (
            'FFMA',
            'FADD',
            'SHFL',
            'FMUL',
            'FSEL',
            'FMNMX',
            'HADD2',
            'F2FP',
            'FSET',
            'F2F',
            'HMUL2',
            'PRMT',
            'VOTE',
            'SHFLX',
            'I2FP',
            'FRND',
        ):
            wr(ops[0], None)
        else:
            raise NotImplementedError(f'{op} at {here:#x}')
    return where


def sizes(a, rank):
    """ScanSizes."""
    n = a['N']
    H = a['H']
    W = a['W']
    C = a['C']
    K = a['K']
    Ln = H * W
    lanes = a.get('lanes', 64)
    chunks = -(-Ln // 64)
    segs = a.get('segments', 1)
    sc = -(-chunks // segs)
    return struct.pack(
        '<14qB7x',
        n,
        H,
        W,
        Ln,
        C,
        C,
        1,
        rank,
        K,
        lanes,
        -(-C // lanes),
        chunks,
        sc,
        -(-chunks // sc),
        1,
    )


def mapview(ptr, b, p, c):
    """MapView."""
    return struct.pack('<4q', ptr, b, p, c)


def rowview(ptr, b, g, p, d, i):
    """RowView."""
    return struct.pack('<6q', ptr, b, g, p, d, i)


ORDERS = [0, 1, 2, 3]


def constants(kind, rank, a):
    """The constant bank: the arguments of scan_args.h, with pointers that are not null."""
    n = a['N']
    H = a['H']
    W = a['W']
    C = a['C']
    K = a['K']
    Ln = H * W
    inner = rank + 2
    s = sizes(a, rank)
    io = struct.pack('<i', 1)
    ds = struct.pack(
        '<i8i8i??2x',
        K,
        *(list(range(K)) + [0] * (8 - K)),
        *(ORDERS[:K] + [0] * (8 - K)),
        True,
        True,
    )
    params = struct.pack('<6q', 0x7000000000, 0x7100000000, 0x7200000000, 0x7300000000, 0, 0)
    x = mapview(0x7400000000, Ln * C, C, 1)
    null = mapview(0, 0, 0, 0)

    def row(base, off):
        return rowview(base + off, Ln * K * inner, 0, K * inner, inner, 1)

    b = s + io + ds
    b += b'\0' * (-len(b) % 8)
    b += (
        params
        + x
        + null
        + row(0x7500000000, 0)
        + row(0x7500000000, 2 * rank)
        + row(0x7500000000, 2 * rank + 2)
    )
    if kind == 'forward':
        b += mapview(0x7600000000, Ln * C, C, 1) + mapview(0x7700000000, Ln * C, C, 1)
        b += struct.pack('<4q', 0x7800000000, 0x7900000000, 0x7A00000000 if a.get('save') else 0, 0)
    else:
        b += mapview(0x7600000000, Ln * C, C, 1) + struct.pack('<?7x', False)
        b += struct.pack('<3q', 0x7A00000000, 0x7800000000, 0x7900000000)
        b += mapview(0x7B00000000, Ln * C, C, 1) + mapview(0x7C00000000, Ln * C, C, 1) + null
        b += row(0x7D00000000, 0) + row(0x7D00000000, 4 * rank) + row(0x7D00000000, 4 * rank + 4)
        b += struct.pack('<2q', n * Ln * K * inner, n * Ln * K * inner) + struct.pack(
            '<q?7x', 0x7E00000000, True
        )
    const = bytearray(0x1000)
    const[0x28:0x2C] = struct.pack('<I', 0xFFFC00)
    const[0x210 : 0x210 + len(b)] = b
    # blockDim
    tile = 16 if kind == 'forward' else 8
    const[0:4] = struct.pack('<I', a.get('lanes', 64) * 64 // tile)
    return const


def compile_kernels(folder, nvcc, lanes):
    """Compile the kernels and return the cubin."""
    source, cubin = folder / 'kernels.cu', folder / 'kernels.cubin'
    source.write_text(SOURCE)
    torch_include = Path(torch.__file__).parent / 'include'
    command = [nvcc, '-cubin', '-arch=sm_90', '-O3', '-std=c++20', '--expt-relaxed-constexpr']
    command += [f'-I{path}' for path in (CSRC, CSRC / 'cuda', torch_include)]
    command += [f'-DLANES={lanes}', '-DTORCH_TARGET_VERSION=0x020a000000000000']
    subprocess.run([*command, str(source), '-o', str(cubin)], check=True)
    return cubin


def count_kernels(cubin, ranks, lanes):
    """Walk through each kernel of a cubin for each rank."""
    program = cuobjdump()
    if program is None:
        raise SystemExit(NO_CUOBJDUMP)
    command = [program, '-sass', str(cubin)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = read_usage(cubin, program)
    rows = []
    for name, part in split_functions(text):
        code = read_lines(part)
        kind = 'forward' if 'ForwardScan' in name else 'backward'
        summary = 'Lb1E' in name
        for rank in ranks:
            shape = dict(SHAPE, lanes=lanes, save=kind == 'backward')
            const = constants(kind, rank, shape)
            issued = Counter()
            for walker in range(64 // TILES[kind]):
                for address, number in walk(code, const, walker * lanes).items():
                    issued[kind_of(code[address].opcode)] += number
            elements = shape['H'] * shape['W'] * (1 if summary else shape['K'])
            row = dict(kernel=f'{kind}{" summary" if summary else ""}', rank=rank)
            row['instructions'] = round(sum(issued.values()) / elements, 1)
            row |= {k: round(issued[k] / elements, 1) for k in KINDS}
            rows.append(row | dict(registers=usage[name]['REG'], stack=usage[name]['STACK']))
    return sorted(rows, key=lambda row: (row['kernel'] < 'f', row['kernel'], row['rank']))


def parse_args(argv=None):
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.split('\n\n')[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    home = os.environ.get('CUDA_HOME', '/usr/local/cuda')
    nvcc = shutil.which('nvcc') or f'{home}/bin/nvcc'
    parser.add_argument('--ranks', nargs='+', type=int, default=[6, 48])
    parser.add_argument(
        '--lanes', type=int, choices=(32, 64), default=64, help='channels of a block'
    )
    parser.add_argument('--nvcc', default=nvcc, help='the compiler')
    parser.add_argument('--markdown', action='store_true', help='write the table in Markdown')
    parser.add_argument('--out', type=Path, metavar='FILE.json', help='write the results there')
    return parser.parse_args(argv)


def main(argv=None):
    """Compile, walk and write the table."""
    args = parse_args(argv)
    logging.basicConfig(level=logging.INFO, format='%(message)s')
    with tempfile.TemporaryDirectory() as folder:
        cubin = compile_kernels(Path(folder), args.nvcc, args.lanes)
        rows = count_kernels(cubin, args.ranks, args.lanes)
    common.write_table(rows, {key: key for key in COLUMNS}, args.markdown)
    if args.out is not None:
        common.write_json(args.out, 'issued', torch.device('cpu'), rows, [])


if __name__ == '__main__':
    main()
