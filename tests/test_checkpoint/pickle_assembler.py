"""Assembler of pickles that no object would give, in the instructions that torch.save writes."""

import dataclasses
import pickle
import struct
from typing import Any


@dataclasses.dataclass(frozen=True)
class Name:
    """GLOBAL: a class or function by its full name."""

    path: str


@dataclasses.dataclass(frozen=True)
class Call:
    """REDUCE: the result of a call."""

    function: Any
    arguments: Any


@dataclasses.dataclass(frozen=True)
class New:
    """NEWOBJ: an object of a class."""

    kind: Any
    arguments: Any


@dataclasses.dataclass(frozen=True)
class Build:
    """BUILD: an object after its state has been set."""

    instance: Any
    state: Any


@dataclasses.dataclass(frozen=True)
class Persistent:
    """BINPERSID: something outside the pickle, a storage."""

    identity: Any


@dataclasses.dataclass(frozen=True)
class Raw:
    """Instructions as they are."""

    code: bytes


def named(path):
    """Return instructions for a name; a space may take the place of the dot after the module."""
    module, _, attribute = path.rpartition(' ' if ' ' in path else '.')
    return f'c{module}\n{attribute}\n'.encode()


def text(value):
    data = value.encode('utf-8', 'surrogatepass')
    return b'X' + struct.pack('<I', len(data)) + data


def integer(value):
    if 0 <= value < 256:
        return b'K' + bytes([value])
    if -(2**31) <= value < 2**31:
        return b'J' + struct.pack('<i', value)
    data = pickle.encode_long(value)
    return b'\x8a' + bytes([len(data)]) + data


def code(value):
    """Return the instructions that build a value."""
    match value:
        case None | True | False:
            return {None: b'N', True: b'\x88', False: b'\x89'}[value]
        case Raw():
            return value.code
        case Name():
            return named(value.path)
        case Call():
            return code(value.function) + code(value.arguments) + b'R'
        case New():
            return code(value.kind) + code(value.arguments) + b'\x81'
        case Build():
            return code(value.instance) + code(value.state) + b'b'
        case Persistent():
            return code(value.identity) + b'Q'
        case int():
            return integer(value)
        case float():
            return b'G' + struct.pack('>d', value)
        case str():
            return text(value)
        case bytes():  # as protocol 2 has them
            return code(Call(Name('_codecs.encode'), (value.decode('latin1'), 'latin1')))
        case tuple():
            return b'(' + b''.join(map(code, value)) + b't'
        case list():
            return b'](' + b''.join(map(code, value)) + b'e'
        case dict():
            return b'}(' + b''.join(code(k) + code(v) for k, v in value.items()) + b'u'
    raise TypeError(f'no instructions for {value!r}')


def assemble(value, protocol=2):
    """Return a whole pickle."""
    return b'\x80' + bytes([protocol]) + code(value) + b'.'


def parts(value):
    """Return what a value is made of."""
    if dataclasses.is_dataclass(value) and not isinstance(value, Raw | Name):
        return [getattr(value, field.name) for field in dataclasses.fields(value)]
    if isinstance(value, tuple | list):
        return list(value)
    if isinstance(value, dict):
        return [part for pair in value.items() for part in pair]
    return []


def with_parts(value, new):
    """Return a value of the same kind that is made of something else."""
    if isinstance(value, tuple | list):
        return type(value)(new)
    if isinstance(value, dict):
        # Pairs as they are: other keys may be equal or may not be hashable.
        return Raw(b'}(' + b''.join(map(code, new)) + b'u')
    return type(value)(*new)


def paths(value, path=()):
    """Yield the place of each part of a value, its own first."""
    yield path
    for i, part in enumerate(parts(value)):
        yield from paths(part, (*path, i))


def at(value, path):
    """Return the part at a place."""
    for i in path:
        value = parts(value)[i]
    return value


def replaced(value, path, new):
    """Return a value with another part at a place."""
    if not path:
        return new
    inside = parts(value)
    inside[path[0]] = replaced(inside[path[0]], path[1:], new)
    return with_parts(value, inside)
