"""Follow threads through the machine code of sm_90, from the text of ``cuobjdump -sass``.

Integers and predicates are evaluated from the kernel's arguments and the place of the thread.
Values from memory and of floating point are unknown, which is None, as is what follows from them; a
branch that depends on one is an error. A predicated instruction issues and counts, whatever the
predicate. Not followed are paths of diverged warps (``BRA.DIV``) and the slow path of a division.
"""

import itertools
import operator
import re
import struct
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from machine_code import kind_of

LINE = re.compile(r'^\s*/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w)\s+)?([A-Z][\w.]*)\s*([^;]*);', re.M)
PREDICATE = re.compile(r'!?U?P[T\d]')
DESTINATION = re.compile(r'(U?R)(\d+|Z)')
CONSTANT = re.compile(r'[-~]?c\[0x0\]\[(?:(U?R\w+)\+?)?(-?0x[0-9a-f]+)?\]')
LOCAL = re.compile(r'\[(R\d+)?\+?(-?0x[0-9a-f]+)?\]')

#: Where the constant bank has the size of a block, the stack pointer and the arguments.
BLOCK, STACK, ARGUMENTS = 0x0, 0x28, 0x210
BITS = 0xFFFFFFFF
MOST_BLOCKS = 5_000_000  # of a walk

Value = int | None
Values = dict[str, Value]
Step = Callable[[Values], None]
Read = Callable[[Values], Value]
Flags = Sequence[str]


class Line(NamedTuple):
    """An instruction as it is written."""

    predicate: str
    opcode: str
    operands: list[str]


class Block(NamedTuple):
    """Instructions that follow each other: what they do, where they lead, how many of a kind."""

    steps: list[Step]
    leave: Callable[[Values], Value]
    kinds: Counter[str]


def read_lines(text: str) -> dict[int, Line]:
    """Read the disassembly of a function, by address."""
    return {
        int(address, 16): Line(
            predicate,
            opcode,
            [operand.strip().replace('.reuse', '') for operand in operands.split(',') if operand],
        )
        for address, predicate, opcode, operands in LINE.findall(text)
    }


# ---- arithmetic: modifiers and sources to results, none of them unknown --------------------------


def signed(value: int, bits: int = 32) -> int:
    """Return a number of two's complement."""
    value &= (1 << bits) - 1
    return value - (value >> (bits - 1) << bits)


def of_float(value: float) -> int:
    """Return the bits of a float, infinite where it is too large."""
    return int(np.float32(value).view(np.uint32))


def to_float(bits: int) -> float:
    """Return the float of 32 bits."""
    return float(np.uint32(bits & BITS).view(np.float32))


def add(flags: Flags, *sources: int) -> tuple[int, ...]:
    """Add; the results are a sum and its carries."""
    total = sum(sources)
    return total & BITS, total >> 32 > 0, total >> 32 > 1


def multiply(flags: Flags, a: int, b: int, c: int, carry: int = 0) -> tuple[int, ...]:
    """Multiply and add in 32 or 64 bits."""
    if 'U32' not in flags:
        a, b = signed(a), signed(b)
    total = (a & BITS if 'U32' in flags else a) * (b & BITS if 'U32' in flags else b) + c
    total += carry if 'X' in flags else 0
    return (total >> 32 & BITS if 'HI' in flags else total), total >> 64 != 0


def shift_add(flags: Flags, a: int, b: int, *rest: int) -> tuple[int, ...]:
    """Compute b + (a << shift), or its upper half."""
    if 'HI' not in flags:
        total = (a << rest[0] & BITS) + b
    else:
        high = -(a >> 31 & 1) if 'SX32' in flags else rest[0]
        shift, *carry = rest if 'SX32' in flags else rest[1:]
        total = (((high & BITS) << 32 | a) << shift >> 32 & BITS) + b + sum(carry)
    return total & BITS, total >> 32 > 0


def shift(flags: Flags, low: int, by: int, high: int) -> tuple[int]:
    """Shift the pair of two registers and return one of them."""
    bits = 64 if {'S64', 'U64'} & set(flags) or 'HI' not in flags else 32
    if 'L' in flags:
        pair = ((high << 32 | low) << by) if 'HI' in flags else low << by
        return (pair >> 32 if 'HI' in flags else pair,)
    pair = high << 32 | low if bits == 64 else high
    value = signed(pair, bits) if {'S32', 'S64'} & set(flags) else pair
    return ((value >> by) >> (32 if bits == 64 and 'HI' in flags else 0),)


def logic(flags: Flags, a: int, b: int, c: int, table: int, _: int = 0) -> tuple[int, int]:
    """Combine bits by a table of truth."""
    value = 0
    for i in range(8):
        if table >> i & 1:
            value |= (a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c)
    return value & BITS, value & BITS != 0


def select_bytes(flags: Flags, a: int, selector: int, b: int) -> tuple[int]:
    """Compose a register from bytes of two."""
    value = 0
    for i in range(4):
        choice = selector >> 4 * i & 15
        byte = (b << 32 | a) >> 8 * (choice & 7) & 0xFF
        value |= (0xFF * (byte >> 7) if choice & 8 else byte) << 8 * i
    return (value,)


def least(flags: Flags, *sources: int) -> tuple[int]:
    """Return the minimum, or the maximum, of the last two after sums of those before."""
    *terms, last, minimum = sources
    number = (lambda value: value & BITS) if 'U32' in flags else signed
    return ((min if minimum else max)(number(sum(terms)), number(last)),)


def to_integer(flags: Flags, bits: int) -> tuple[int]:
    """Round a float towards zero, within 64 or 32 bits."""
    value = to_float(bits)
    return (int(min(max(value, 0.0), 2.0**64 if 'U64' in flags else 2.0**32 - 1)),)


def from_integer(flags: Flags, value: int) -> tuple[int]:
    """Round a number to a float, to the next one above if it says so."""
    value = value if {'U32', 'U64'} & set(flags) else signed(value)
    result = np.float32(value)
    if 'RP' in flags and float(result) < value:
        result = np.nextafter(result, np.float32(np.inf))
    return (of_float(result),)


def special(flags: Flags, bits: int) -> tuple[Value]:
    """Return a reciprocal, or nothing."""
    known = 'RCP' in flags and to_float(bits) != 0
    return (of_float(1 / to_float(bits)) if known else None,)


def halves(flags: Flags, high: float, low: float) -> tuple[int]:
    """Return two constants of 16 bits."""
    return (int.from_bytes(struct.pack('<ee', low, high), 'little'),)


OPERATIONS: dict[str, Callable[..., tuple[Value, ...]]] = {
    'MOV': lambda flags, a, *_: (a,),
    'R2UR': lambda flags, a: (a,),
    'IADD3': add,
    'VIADD': add,
    'IMAD': multiply,
    'LEA': shift_add,
    'SHF': shift,
    'LOP3': logic,
    'PRMT': select_bytes,
    'IABS': lambda flags, a: (abs(signed(a)),),
    'IMNMX': least,
    'VIMNMX': least,
    'VIADDMNMX': least,
    'SEL': lambda flags, a, b, condition: (a if condition else b,),
    'I2F': from_integer,
    'F2I': to_integer,
    'MUFU': special,
    'HFMA2': halves,
}
COMPARISONS = dict(
    EQ=operator.eq, NE=operator.ne, LT=operator.lt, LE=operator.le, GT=operator.gt, GE=operator.ge
)  # fmt: skip


# ---- instructions to Python ----------------------------------------------------------------------


class Code:
    """A function, ready to be walked with its arguments.

    Args:
        text (str): Its disassembly.
        arguments (bytes): Those of the kernel.
        threads (int): In a block.
    """

    def __init__(self, text: str, arguments: bytes, threads: int):
        self.bank = bytearray(0x2000)
        self.bank[ARGUMENTS : ARGUMENTS + len(arguments)] = arguments
        struct.pack_into('<III', self.bank, BLOCK, threads, 1, 1)
        struct.pack_into('<I', self.bank, STACK, 0xFFFC00)
        self.lines = read_lines(text)
        jumps = {
            a for a, line in self.lines.items() if _base(line) in ('BRA', 'CALL', 'RET', 'EXIT')
        }
        starts = {int(self.lines[a].operands[-1].split()[-1], 16) for a in jumps
                  if _base(self.lines[a]) in ('BRA', 'CALL')}  # fmt: skip
        addresses = list(self.lines)
        starts |= {after for before, after in itertools.pairwise(addresses) if before in jumps}
        cuts = [i for i, address in enumerate(addresses) if i == 0 or address in starts]
        self.blocks = {
            addresses[first]: self._block(addresses[first:end], addresses[end : end + 1])
            for first, end in itertools.pairwise([*cuts, len(addresses)])
        }

    def walk(self, thread: int, block: int) -> Counter[int]:
        """Follow a thread to its exit and count how often it enters each block.

        Raises:
            RuntimeError: If a branch is unknown, or there is no end.
        """
        values: Values = {'SR_TID.X': thread, 'SR_CTAID.X': block, 'SR_LANEID': thread % 32}
        entered: Counter[int] = Counter()
        at: Value = 0
        for _ in range(MOST_BLOCKS):
            steps, leave, _ = self.blocks[at]
            entered[at] += 1
            for step in steps:
                step(values)
            at = leave(values)
            if at is None:
                return entered
        raise RuntimeError(f'no exit after {MOST_BLOCKS} blocks')

    def kinds(self, entered: Mapping[int, int]) -> Counter[str]:
        """Count instructions by kind."""
        total: Counter[str] = Counter()
        for address, times in entered.items():
            for kind, number in self.blocks[address].kinds.items():
                total[kind] += times * number
        return total

    def _block(self, addresses: Sequence[int], after: Sequence[int]) -> Block:
        lines = [self.lines[address] for address in addresses]
        steps = [step for line in lines if (step := self._step(line)) is not None]
        following = after[0] if after else None
        kinds = Counter(kind_of(line.opcode) for line in lines)
        return Block(steps, self._leave(lines[-1], following), kinds)

    def _leave(self, line: Line, following: int | None) -> Callable[[Values], Value]:
        base, operands = _base(line), line.operands
        if base not in ('BRA', 'CALL', 'RET', 'EXIT') or '.DIV' in line.opcode:
            return lambda values: following
        conditions = [self._read(o) for o in operands[:-1] if base == 'BRA']
        conditions += [self._read(line.predicate)] if line.predicate else []
        if base == 'RET':
            target = self._read(operands[0].split()[0])
        else:
            to = None if base == 'EXIT' else int(operands[-1].split()[-1], 16)

            def target(values):
                return to

        def leave(values):
            known = [read(values) for read in conditions]
            if None in known and all(value is None or value for value in known):
                raise RuntimeError(f'it is unknown whether {line.opcode} {operands} is taken')
            return target(values) if all(known) else following

        return leave

    def _read(self, operand: str, wide: bool = False) -> Read:
        """Return a function that reads an operand."""
        if operand[0] == '!':
            name = operand[1:]
            if name[-1] == 'T':
                return lambda values: 0
            return lambda values: None if values.get(name) is None else not values[name]
        if found := CONSTANT.fullmatch(operand):
            if found[1]:
                return lambda values: None
            fixed = struct.unpack_from('<Q' if wide else '<I', self.bank, int(found[2], 16))[0]
            sign = operand[0]
        elif operand.lstrip('-~') in ('RZ', 'URZ'):
            fixed, sign = 0, operand[0]
        elif operand in ('PT', 'UPT', 'SRZ'):
            return lambda values: int(operand != 'SRZ')
        elif re.fullmatch(r'-?0x[0-9a-f]+', operand):
            fixed, sign = int(operand, 16) & BITS, ''
        elif re.fullmatch(r'-?\d+', operand):
            fixed, sign = int(operand) & BITS, ''
        elif found := re.fullmatch(r'([-~]?)(U?R)(\d+)(?:\.\w+)?', operand):
            sign, low, high = found[1], found[2] + found[3], f'{found[2]}{int(found[3]) + 1}'
            if wide:
                return lambda values: _join(values.get(low, 0), values.get(high, 0))
            if not sign:
                return lambda values: values.get(low, 0)

            def read(values):
                if (value := values.get(low, 0)) is None:
                    return None
                return (1 << 32) - value if sign == '-' else value ^ BITS

            return read
        elif PREDICATE.fullmatch(operand) or operand.startswith('SR_'):
            return lambda values: values.get(operand)
        else:
            return lambda values: None  # a float
        if sign == '-':
            fixed = (1 << 32) - fixed
        return lambda values: fixed ^ BITS if sign == '~' else fixed

    def _step(self, line: Line) -> Step | None:
        """Return the effect of an instruction on the registers, or None without one."""
        base, flags = _base(line), line.opcode.split('.')[1:]
        plain = (
            base[1:]
            if base[0] == 'U' and base[1:] in {*OPERATIONS, 'ISETP', 'LDC', 'PLOP3'}
            else base
        )
        operands = line.operands
        count = next(
            (i for i, o in enumerate(operands) if not PREDICATE.fullmatch(o)), len(operands)
        )
        if base == 'STL':
            return self._store_local(operands[0], _names(operands[1], _width(flags)))
        if plain in ('ISETP', 'PLOP3'):
            compute = self._compare(flags, operands) if plain == 'ISETP' else self._table(operands)
            return self._assign(line, operands[:2], compute)
        if base in ('BRA', 'CALL', 'RET', 'EXIT') or count == len(operands):
            return None
        if base == 'R2P':
            return self._predicates(operands)
        if 'SETP' in base or base == 'FCHK':  # of floats; no slow path of a division
            fixed = (0,) if base == 'FCHK' else ()
            return self._assign(line, operands[:count], lambda values: fixed)
        if not DESTINATION.fullmatch(operands[count]):
            return None
        outputs, sources = [operands[count], *operands[:count]], operands[count + 1 :]
        if base == 'R2UR':
            return self._assign(line, operands[-2:-1], self._compute(plain, flags, operands[-1:]))
        if plain in ('LDC', 'LDL', 'S2R', 'S2UR', 'CS2R', 'P2R'):
            width = 2 if base == 'CS2R' and '32' not in flags else _width(flags)
            names = _names(operands[0], width)
            return self._assign(line, names, self._load(plain, flags, sources, width, names))
        carries = list(itertools.takewhile(PREDICATE.fullmatch, sources))
        if plain in OPERATIONS:
            outputs += carries
            sources = sources[len(carries) :]
            wide = 'WIDE' in flags or (plain == 'F2I' and 'U64' in flags)
            compute = self._compute(plain, flags, sources)
            if wide:
                outputs = [*_names(outputs[0], 2), *outputs[1:]]
                return self._assign(line, outputs, lambda values: _split(compute(values)))
            return self._assign(line, outputs, compute)
        width = 4 if base in ('HMMA', 'LDSM') else 2 if base[0] == 'D' else _width(flags)
        names = [*_names(outputs[0], width), *outputs[1:]]
        return self._assign(line, names, lambda values: ())

    def _compute(
        self, base: str, flags: Flags, sources: Sequence[str]
    ) -> Callable[[Values], tuple]:
        operation = OPERATIONS[base]
        if base == 'HFMA2':
            constants = [float(o) for o in sources if re.fullmatch(r'[-+]?[\d.]+(e[-+]\d+)?', o)]
            known = len(constants) == 2 and all(o.lstrip('-') == 'RZ' for o in sources[:2])
            result = operation(flags, *constants) if known else ()
            return lambda values: result
        wide = {2} if base == 'IMAD' and {'WIDE', 'HI'} & set(flags) else set()
        wide |= {0} if base == 'I2F' and 'U64' in flags else set()
        reads = [self._read(operand, i in wide) for i, operand in enumerate(sources)]

        def compute(values):
            known = [read(values) for read in reads]
            return () if None in known else operation(flags, *known)

        return compute

    def _assign(self, line: Line, names: Sequence[str], compute: Callable[[Values], tuple]) -> Step:
        """Return a step that sets registers and predicates; those without a value are unknown."""
        places = [(i, n) for i, n in enumerate(names) if n not in ('RZ', 'URZ', 'PT', 'UPT')]
        condition = self._read(line.predicate) if line.predicate else None

        def step(values):
            active = condition is None or condition(values)
            if active or active is None:
                results = compute(values) if active else ()
                for i, name in places:
                    value = results[i] if i < len(results) else None
                    values[name] = None if value is None else value & BITS

        return step

    def _compare(self, flags: Flags, operands: Sequence[str]) -> Callable[[Values], tuple]:
        a, b, other = (self._read(operand) for operand in operands[2:5])
        before = self._read(operands[5]) if 'EX' in flags else None
        compare, conjunction = COMPARISONS[flags[0]], 'AND' in flags

        def compute(values):
            x, y, result = a(values), b(values), None
            if x is not None and y is not None:
                x, y = (x & BITS, y & BITS) if 'U32' in flags else (signed(x), signed(y))
                result = before(values) if before is not None and x == y else compare(x, y)
            opposite = None if result is None else not result
            return tuple(_combine(r, other(values), conjunction) for r in (result, opposite))

        return compute

    def _table(self, operands: Sequence[str]) -> Callable[[Values], tuple]:
        reads, table = [self._read(operand) for operand in operands[2:5]], int(operands[5], 16)

        def compute(values):
            known = [read(values) for read in reads]
            choices = itertools.product(*([0, 1] if v is None else [int(v)] for v in known))
            found = {table >> (4 * a + 2 * b + c) & 1 for a, b, c in choices}
            return (found.pop(),) if len(found) == 1 else ()

        return compute

    def _load(
        self, base: str, flags: Flags, sources: Sequence[str], width: int, names: Sequence[str]
    ) -> Callable[[Values], tuple]:
        """Read the constant bank, local memory, or what a thread knows of itself."""
        if base == 'P2R':
            mask, kept = int(sources[-1], 16), self._read(sources[1])
            return lambda values: (
                (kept(values) or 0) & ~mask
                | sum(bool(values.get(f'P{i}')) << i for i in range(7) if mask >> i & 1),
            )
        if base not in ('LDC', 'LDL'):
            read = self._read(sources[0])
            return lambda values: (read(values), 0)
        found = (CONSTANT if base == 'LDC' else LOCAL).fullmatch(sources[0])
        start, offset = self._read(found[1] or 'RZ'), int(found[2] or '0', 16)

        def compute(values):
            if (first := start(values)) is None:
                return ()
            at = first + offset & BITS
            if base == 'LDL':
                return tuple(values.get(f'local {at + 4 * i}') for i in range(width))
            if 'U8' in flags:
                return (self.bank[at],)
            return struct.unpack_from(f'<{width}I', self.bank, at)

        return compute

    def _store_local(self, place: str, names: Sequence[str]) -> Step:
        found = LOCAL.fullmatch(place)
        start, offset = self._read(found[1] or 'RZ'), int(found[2] or '0', 16)

        def step(values):
            at = start(values) + offset & BITS
            for i, name in enumerate(names):
                values[f'local {at + 4 * i}'] = 0 if name == 'RZ' else values.get(name)

        return step

    def _predicates(self, operands: Sequence[str]) -> Step:
        read, mask = self._read(operands[1]), int(operands[2], 16)

        def step(values):
            value = read(values)
            for i in range(7):
                if mask >> i & 1:
                    values[f'P{i}'] = None if value is None else value >> i & 1

        return step


def _base(line: Line) -> str:
    return line.opcode.partition('.')[0]


def _width(flags: Flags) -> int:
    return 4 if '128' in flags else 2 if '64' in flags else 1


def _names(first: str, count: int) -> list[str]:
    """List registers that lie next to each other."""
    kind, number = DESTINATION.fullmatch(first).groups()
    if number == 'Z':
        return [first] * count
    return [f'{kind}{int(number) + i}' for i in range(count)]


def _join(low: Value, high: Value) -> Value:
    return None if low is None or high is None else high << 32 | low


def _split(results: tuple) -> tuple:
    return (results[0] & BITS, results[0] >> 32, *results[1:]) if results else ()


def _combine(a: Value, b: Value, conjunction: bool) -> Value:
    """Return a AND b, or a OR b, where one of them may be enough."""
    enough = not conjunction
    if any(v is not None and bool(v) is enough for v in (a, b)):
        return int(enough)
    return None if a is None or b is None else int(conjunction)
