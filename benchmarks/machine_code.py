"""Instructions and loops of GPU machine code, from the text of ``cuobjdump -sass``.

Counts are upper bounds of the instructions that a thread issues: both sides of a branch count,
predicated instructions count whether or not they have an effect, and a subroutine, such as the slow
path of a division, counts at each of its calls. Not counted: paths that only a warp of diverged
threads takes (``BRA.DIV``) and the padding behind the last exit, which nothing reaches.
"""

import functools
import itertools
import math
import re
import subprocess
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from gpu_steps.sweeps import find_cuobjdump, read_usage

NO_CUOBJDUMP = 'cuobjdump was not found; it comes with triton and with the CUDA toolkit'

Counts = Counter[str]
Blocks = Mapping[int, 'Block']

#: Kinds of instructions by opcode without its modifiers; the first that matches is taken.
KINDS = {
    'special': 'MUFU',
    'float': r'[DFH](ADD|CHK|FMA|MNMX|MUL|SEL|SET|SETP)(2|3|32I)?',
    'tensor': r'\w+MMA|LDTM|STTM',
    'integer': r'U?(BMSK|BREV|FLO|I(ABS|ADD|DP|MAD|MNMX|MUL|SET|SETP)(3|64)?|LEA|P?LOP3|POPC|PRMT|'
    r'SEL|SGXT|SHF|SHL|SHR|VI(ADD|MNMX)\w*)',
    'global': r'LDG?|STG?|ATOMG?|REDG?|LDGSTS|UBLKCP|UTMA\w+',
    'shared': 'LDS|STS|LDSM|STSM|ATOMS',
    'shuffle': 'SHFL|REDUX|VOTEU?|MATCH',
    'barrier': r'BAR|DEPBAR|ERRBAR|FENCE|LDGDEPBAR|MEMBAR|SYNCS|UCGABAR\w*|WARPGROUP|WARPSYNC',
    'local': 'LDL|STL',
    'other': r'\w+',
}
FUNCTION = re.compile(r'^\s*Function : (\S+)$', re.M)
INSTRUCTION = re.compile(r'^\s*/\*([0-9a-f]{4,})\*/\s+(@\S+\s+)?([A-Z][\w.]*)([^;]*);', re.M)
TARGET = re.compile(r'\b0x([0-9a-f]+)\s*$')


class Instruction(NamedTuple):
    """A line of the disassembly.

    Args:
        address (int): Its address in the function.
        opcode (str): With modifiers.
        target (int, optional): The address that it jumps to or calls.
        jumps (bool): Whether another instruction than the next may follow.
        conditional (bool): Whether the next one may follow a jump.
    """

    address: int
    opcode: str
    target: int | None
    jumps: bool
    conditional: bool


class Block(NamedTuple):
    """A basic block: its instructions by kind, the blocks that may follow, those it calls."""

    counts: Counts
    successors: list[int]
    calls: list[int]


class Function(NamedTuple):
    """A function: its blocks by address, the entry first, and what a thread or block of it uses."""

    name: str
    blocks: dict[int, Block]
    registers: int
    stack_bytes: int
    shared_bytes: int


class Loop(NamedTuple):
    """A loop: the addresses of its blocks, and the number of loops around it plus one."""

    blocks: set[int]
    depth: int


def kind_of(opcode: str) -> str:
    """Return the kind of an instruction, such as 'global' for ``LDG.E.128``."""
    name = opcode.partition('.')[0]
    return next(kind for kind, pattern in KINDS.items() if re.fullmatch(pattern, name))


# ---- text ----------------------------------------------------------------------------------------


def split_functions(text: str) -> Iterator[tuple[str, str]]:
    """Split the output of ``cuobjdump -sass`` into names and texts of functions."""
    _, *parts = FUNCTION.split(text)
    yield from zip(parts[::2], parts[1::2], strict=True)


def read_instruction(address: str, predicate: str, opcode: str, operands: str) -> Instruction:
    """Read the parts of a line.

    Raises:
        ValueError: If it jumps to an address in a register, so that its targets are unknown.
    """
    name = opcode.partition('.')[0]
    if name in ('BRX', 'JMX'):
        raise ValueError(f'the targets of {opcode} at 0x{address} are unknown')
    jumps = name in ('BRA', 'EXIT', 'JMP', 'RET') and not opcode.startswith('BRA.DIV')
    target = None
    if jumps and name != 'RET' or opcode.startswith('CALL.REL'):
        target = TARGET.search(operands)
    return Instruction(
        int(address, 16),
        opcode,
        int(target[1], 16) if target else None,
        jumps,
        bool(predicate) or ',' in operands,  # "@P0 BRA 0x80" or "BRA.U UP0, 0x80"
    )


def read_blocks(text: str) -> dict[int, Block]:
    """Split the disassembly of a function into basic blocks by address, the entry first."""
    code = [read_instruction(*parts) for parts in INSTRUCTION.findall(text)]
    addresses = {instruction.address for instruction in code}
    starts = {instruction.target for instruction in code}
    starts |= {after.address for before, after in itertools.pairwise(code) if before.jumps}
    firsts = [n for n, instruction in enumerate(code) if n == 0 or instruction.address in starts]
    blocks = {}
    for first, end in zip(firsts, [*firsts[1:], len(code)], strict=True):
        part, last = code[first:end], code[end - 1]
        successors = [last.target] if last.jumps and last.target in addresses else []
        if end < len(code) and (last.conditional or not last.jumps):
            successors.append(code[end].address)
        calls = [i.target for i in part if i.target in addresses and not i.jumps]
        kinds = Counter(kind_of(instruction.opcode) for instruction in part)
        blocks[part[0].address] = Block(kinds, successors, calls)
    return blocks


@functools.cache
def cuobjdump() -> str | None:
    """Find cuobjdump, once."""
    return find_cuobjdump()


def read_functions(path: Path, *options: str) -> Iterator[Function]:
    """Disassemble the functions of a cubin or a library.

    Args:
        path (Path): The file.
        *options (str): Options of cuobjdump, such as an architecture.

    Raises:
        RuntimeError: If there is no cuobjdump.
    """
    program = cuobjdump()
    if program is None:
        raise RuntimeError(NO_CUOBJDUMP)
    command = [program, '-sass', *options, str(path)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = read_usage(path, program, *options)
    for name, code in split_functions(text):
        used = usage[name]
        yield Function(name, read_blocks(code), used['REG'], used['STACK'], used['SHARED'])


# ---- loops ---------------------------------------------------------------------------------------


def walk(blocks: Blocks, entry: int) -> tuple[set[int], list[tuple[int, int]]]:
    """Follow all paths from a block.

    Returns:
        tuple: The blocks that are reached, and the edges back to a block on the path: in compiled
        code, those from the end of a loop to its beginning.
    """
    reached, back = {entry}, []
    path, left = [entry], [iter(blocks[entry].successors)]
    while path:
        block = next(left[-1], None)
        if block is None:
            path.pop()
            left.pop()
        elif block in path:
            back.append((path[-1], block))
        elif block not in reached:
            reached.add(block)
            path.append(block)
            left.append(iter(blocks[block].successors))
    return reached, back


def find_loops(blocks: Blocks, entry: int | None = None) -> dict[int, Loop]:
    """Find the loops that are reached from a block, by the address of their beginning."""
    reached, back = walk(blocks, min(blocks) if entry is None else entry)
    predecessors: dict[int, list[int]] = {block: [] for block in reached}
    for block in reached:
        for after in blocks[block].successors:
            predecessors[after].append(block)
    bodies: dict[int, set[int]] = {}
    for end, begin in sorted(back, key=lambda edge: edge[1]):
        body = bodies.setdefault(begin, {begin})
        pending = [end]
        while pending:
            block = pending.pop()
            if block not in body:
                body.add(block)
                pending += predecessors[block]
    return {
        begin: Loop(body, sum(begin in other for other in bodies.values()))
        for begin, body in bodies.items()
    }


def count(
    blocks: Blocks,
    entry: int | None = None,
    trips: Sequence[int] = (),
    within: Collection[int] | None = None,
) -> Counts:
    """Count the instructions of a function by kind.

    Args:
        blocks (Mapping[int, Block]): The function.
        entry (int, optional): Where it begins. Defaults to None, the first block.
        trips (Sequence[int]): How often each loop runs, loops in the order of their addresses; once
            where it is not said. Defaults to none.
        within (Collection[int], optional): Count these blocks alone, such as those of a loop.
            Defaults to None, all that are reached.
    """
    entry = min(blocks) if entry is None else entry
    loops = find_loops(blocks, entry)
    factors = dict(zip(loops, trips, strict=False))
    total = Counts()
    for block in walk(blocks, entry)[0] if within is None else within:
        weight = math.prod(n for begin, n in factors.items() if block in loops[begin].blocks)
        parts = [blocks[block].counts, *(count(blocks, call) for call in blocks[block].calls)]
        for kind, number in (item for part in parts for item in part.items()):
            total[kind] += weight * number
    return total
