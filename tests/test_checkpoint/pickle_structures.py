"""Pickles that ask for too much: depth, copies, equal hashes, cycles, counts and stack errors."""

import pickle
import struct

from .pickle_assembler import Name, assemble, code, integer, named, text
from .pickle_values import BUFFER, STORAGE_SIZE, TENSORS, VALUES, array, dtype, hooks, tensor

PROTO = b'\x80\x02'
#: A number of CPython: integers have the same hash if they differ by its multiples.
HASH_MODULUS = 2**61 - 1


def nested(rng):
    """Containers in containers, which recursive functions cannot follow."""
    first, last = rng.choice(
        [
            (b']', b'a'),
            (b'}K\0', b's'),
            (b'', b'\x85'),
            (b'K\0', b'\x86'),
            (named('collections.OrderedDict'), b'\x85R'),
            (named('argparse.Namespace') + b')\x81}X\1\0\0\0a', b'sb'),
            (named('mmengine.config.config.ConfigDict') + b'}K\0', b's\x85R'),
        ]
    )
    depth = rng.choice([20, 90, 110, 900, 5000, 100000 if len(first) < 3 else 5000])
    inside = rng.choice([b'N', b')', b']', b'}'])
    whole = first * depth + inside + last * depth
    return PROTO + rng.choice([whole, b'}' + whole + b'Ns', b'}K\0' + whole + b's']) + b'.'


def nested_through_memo(rng):
    """Lists that are filled after others hold them, so that no one step is deep."""
    depth = rng.choice([20, 110, 900, 5000])
    order = range(1, depth) if rng.random() < 0.5 else range(depth - 1, 0, -1)
    lists = b''.join(b']r' + struct.pack('<I', i) for i in range(depth))
    filled = b''.join(get(i - 1) + get(i) + b'a' for i in order)
    return PROTO + b'(' + lists + filled + b't' + b'h\0' + b'\x86.'


def get(index):
    return b'j' + struct.pack('<I', index)


def put(index):
    return b'r' + struct.pack('<I', index)


def shared(rng):
    """Lists of ten times the same list and so on: small in memory, endless for who walks it."""
    levels, width = rng.choice([3, 10, 30, 60]), rng.choice([2, 10])
    begin, end = rng.choice([(b'](', b'e'), (b'(', b't')])
    whole = b'(K\1t' + put(0)
    for level in range(levels):
        whole += begin + get(level) * width + end + put(level + 1)
    if rng.random() < 0.3:  # what hashes or compares all of it
        whole = b'}' + whole + b'Ns'
    return PROTO + whole + b'.'


def copied(rng):
    """Large values that every call copies."""
    count, copies = rng.choice([(100, 10), (3000, 9000), (20000, 1500), (300000, 9000)])
    numbers = b'(' + b''.join(map(integer, range(min(count, 20000))))
    pairs = numbers.replace(b'(', b'}(', 1) + b'u'
    config = named('mmengine.config.config.ConfigDict')
    bytes_of = named('_codecs.encode')
    data = bytes_of + text('a' * count) + text('latin1')
    call = b'h\0h\1R'
    start, piece = rng.choice(
        [
            (config + put(0) + pairs + b'\x85' + put(1), call),
            # The argument is small when the call takes it, and filled by the next.
            (config + put(0) + b'}' + put(2) + b'\x85' + put(1) + b'h\2' + pairs[1:], call),
            (config + put(0) + b']' + pairs + b'a' + put(1), call),
            (named('__builtin__.set') + put(0) + b']' + numbers + b'e\x85' + put(1), call),
            (named('torch.Size') + put(0) + numbers + b't\x85' + put(1), call),
            (bytes_of + put(0) + data[len(bytes_of) :] + b'\x86' + put(1), call),
            (named('collections.OrderedDict') + put(0) + pairs + put(1), b'h\0)Rh\1b'),
            array_state(data, count, b'(', b't'),
            array_state(data, count, b'](', b'e'),
        ]
    )
    return PROTO + b'(' + forgotten(start) + b'(' + piece * copies + b'tt.'


def forgotten(instructions):
    """Return code that leaves None in place of values, which remain in the memo."""
    return code(Name('__builtin__.getattr')) + b'(' + code(BUFFER) + b'(' + instructions + b'ttR'


def array_state(data, count, begin, end):
    """Return what comes before arrays that share their bytes, and the code of one of them."""
    empty = named('numpy._core.multiarray._reconstruct') + put(0) + code(array().instance.arguments)
    values = integer(1) + integer(count) + b'\x85' + code(dtype('u1')) + b'\x89'
    state = begin + values + data + b'\x86R' + end + put(2)
    return empty + put(1) + state, b'h\0h\1Rh\2b'


def equal_hashes(rng):
    """Keys of one hash: each search walks through all of them."""
    count = rng.choice([10, 1000, 45000])
    if rng.random() < 0.5:
        keys = [integer(i * HASH_MODULUS) for i in range(1, count)]
    else:  # -1 and -2 have one hash
        signs = [b'h\1' if rng.random() < 0.5 else b'h\2' for _ in range(18 * count)]
        keys = [b'(' + b''.join(signs[18 * i : 18 * i + 18]) + b't' for i in range(count)]
    minus = b'(' + integer(-1) + b'q\1' + integer(-2) + b'q\2'
    if rng.random() < 0.5:
        return PROTO + minus + b'}(' + b'N'.join(keys) + b'Nut.'
    return PROTO + minus + named('__builtin__.set') + b'](' + b''.join(keys) + b'e\x85Rt.'


def cycle(rng):
    """Objects that hold themselves."""
    empty = {
        'list': (b']', b'h\0', b'a'),
        'dict': (b'}', b'K\0h\0', b's'),
        'key': (b'}', b'h\0N', b's'),
        'tuple in a list': (b']', b'h\0\x85', b'a'),
        'ordered': (code(hooks()), b'}X\1\0\0\0ah\0s', b'b'),
        'metadata': (code(hooks()), b'}X\x09\0\0\0_metadatah\0s', b'b'),
        'ordered item': (code(hooks()), b'K\0h\0', b's'),
        'namespace': (named('argparse.Namespace') + b')\x81', b'}X\1\0\0\0ah\0s', b'b'),
        'config': (named('mmengine.config.config.ConfigDict') + b')R', b'K\0h\0', b's'),
        'counter': (named('collections.Counter') + b')R', b'K\0h\0', b's'),
        'history': (
            named('mmengine.logging.history_buffer.HistoryBuffer') + b')\x81',
            b'}X\x0c\0\0\0_log_historyh\0s',
            b'b',
        ),
        'state': (named('argparse.Namespace') + b')\x81', b'h\0', b'b'),
    }
    begin, item, end = rng.choice(list(empty.values()))
    whole = begin + b'q\0' + item + end
    return PROTO + rng.choice([whole, b'}X\5\0\0\0model' + whole + b's']) + b'.'


def counted(rng):
    """Lengths that the file does not have."""
    count = rng.choice([0, 5, 2**31 - 1, 2**31, 2**32 - 1])
    size = struct.pack('<I', count)
    long = struct.pack('<Q', rng.choice([count, 2**62, 2**63, 2**64 - 1]))
    instruction = rng.choice(
        [b'X' + size, b'T' + size, b'B' + size, b'\x8b' + size, b'\x8e' + long, b'\x8d' + long]
        + [b'\x96' + long, b'\x95' + long, b'Nr' + size, b'j' + size, b'\x8a\xff', b'U\xff']
        + [b'I' + b'9' * 5000 + b'\n', b'L' + b'9' * 5000 + b'L\n', b'\x8a\xff' + bytes(255)]
    )
    return PROTO + b'](' + instruction + rng.choice([b'', b'ab', b'N']) + b'e.'


def stack_errors(rng):
    """Instructions that find too little, too much or something else on the stack."""
    known = b'(.RbQt\x85\x86\x87aesuN)]}\x88\x89\x81q\0h\0h\1j\0\0\0\0K\1'
    other = b'0124dilopFGIJLMPSTUVX\x82\x83\x84\x8c\x8f\x90\x91\x92\x93\x94\x97\x98'
    length = rng.choice([1, 3, 10, 100])
    instructions = bytes(rng.choice(known) for _ in range(length))
    if rng.random() < 0.2:
        i = rng.randrange(length)
        instructions = instructions[:i] + bytes([rng.choice(other)]) + instructions[i:]
    begin, end = rng.choice([PROTO, PROTO, b'', PROTO + PROTO]), rng.choice([b'.', b'..', b''])
    return begin + instructions + end


def other_protocols(rng):
    """Values of Python by other protocols than torch.save's."""
    value = rng.choice(
        [{'model': {'a': 1}}, [b'x', bytearray(b'y')], {1, 2}, frozenset([1]), (1, 2.5, 2**70), 'é']
        + [{'a': [None, True, -5]}, complex(1, 2), range(3), slice(1, 2), NotImplemented, print]
    )
    protocol = rng.choice([0, 1, 3, 4, 5])
    if rng.random() < 0.3:
        return assemble({'model': {'a': tensor()}}, rng.choice([0, 1, 3, 4, 5, 6, 255]))
    return pickle.dumps(value, protocol)


def memo_games(rng):
    """Values from the memo in places of others."""
    value = rng.choice(list(VALUES.values()))
    name = named(rng.choice(['torch.Size', 'os.system']))
    parts = [code(value), code(tensor()), name, b'N', b']']
    whole = b'('
    for _ in range(rng.randrange(2, 12)):
        place = rng.choice([0, 0, 1, 2, 255])
        whole += rng.choice([*parts, b'h' + bytes([place]), b'h' + bytes([place]), b')R', b'}b'])
        whole += rng.choice([b'', b'q' + bytes([place]), put(place)])
    return PROTO + whole + b't.'


def many(rng):
    """Short instructions, long results."""
    count = rng.choice([10, 1000, 60000])
    piece = rng.choice(
        [b'}', b']', b')', b'N', b'(', b'\x80\2', b'X\0\0\0\0', b'h\0)R', b'h\0)\x81', b'h\1q\3']
    )
    start = b'(' + named(rng.choice(['collections.OrderedDict', 'argparse.Namespace'])) + b'q\0'
    return PROTO + start + code(rng.choice(list(TENSORS.values()))) + b'q\1' + piece * count + b't.'


def many_views(rng):
    """Tensors that share one storage, each of them all of it."""
    first = code(('storage', None, '0', 'cpu', STORAGE_SIZE))
    views = code(tensor(size=(STORAGE_SIZE,), stride=(1,))) + put(7)
    wide = code(tensor(size=(rng.choice([10, 10**6, 10**12]),), stride=(0,)))
    pieces = rng.choice([views * 50, (text('a') + views) * 50, wide * rng.choice([1, 300])])
    return PROTO + b'(' + rng.choice([b'', first]) + pieces + b't.'


STRUCTURES = dict(
    nested=nested,
    nested_through_memo=nested_through_memo,
    shared=shared,
    copied=copied,
    equal_hashes=equal_hashes,
    cycle=cycle,
    counted=counted,
    stack_errors=stack_errors,
    other_protocols=other_protocols,
    memo_games=memo_games,
    many=many,
    many_views=many_views,
)
