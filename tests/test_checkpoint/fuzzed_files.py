"""Generator of malicious checkpoints: valid ones of each format, mutated at each level.

A file depends on the seed of the campaign and its number alone.
"""

import dataclasses
import functools
import json
import pickletools
import random
import struct

import torch

from .archives import safetensors_of
from .pickle_assembler import Call, Name, Persistent, assemble, at, named, paths, replaced
from .pickle_structures import STRUCTURES
from .pickle_values import (
    ARRAYS,
    FLOATS,
    INTEGERS,
    NAMES,
    OTHERS,
    TENSORS,
    TEXTS,
    VALUES,
    random_call,
    random_name,
    random_value,
    tensor,
)
from .valid_files import (
    VALID,
    authors_content,
    in_legacy,
    in_zip,
    legacy_of,
    legacy_parts,
    safetensors_parts,
    saved,
    state,
    training_content,
    valid_file,
)
from .zip_mutations import mutated_zip, overlapping_storages


@dataclasses.dataclass(frozen=True)
class FuzzedFile:
    """A file: its name, the kind of its mutation and its content."""

    name: str
    kind: str
    data: bytes


# ---- valid files ----


def as_it_is(rng):
    name = rng.choice(list(VALID))
    return name, *valid_file(name)


# ---- bytes ----


def flip(rng, data):
    i = rng.randrange(len(data))
    return data[:i] + bytes([data[i] ^ (1 << rng.randrange(8))]) + data[i + 1 :]


def cut(rng, data):
    return data[: rng.randrange(len(data))]


def cut_out(rng, data):
    i = rng.randrange(len(data))
    return data[:i] + data[i + rng.choice([1, 2, 8, 100]) :]


def insert(rng, data):
    i = rng.randrange(len(data))
    return data[:i] + rng.randbytes(rng.choice([1, 2, 8, 100])) + data[i:]


def duplicate(rng, data):
    i, length = rng.randrange(len(data)), rng.choice([1, 8, 64, 1000])
    return data[:i] + data[i : i + length] * 2 + data[i + length :]


def overwrite(rng, data):
    i = rng.randrange(len(data))
    new = rng.choice([bytes(8), b'\xff' * 8, struct.pack('<q', rng.choice(INTEGERS[:12]))])
    return data[:i] + new + data[i + len(new) :]


BYTES = dict(
    flip=flip, cut=cut, cut_out=cut_out, insert=insert, duplicate=duplicate, overwrite=overwrite
)


def mutated_bytes(rng):
    ending, data = valid_file(rng.choice(list(VALID)))
    kind = rng.choice(list(BYTES))
    for _ in range(rng.choice([1, 1, 1, 4])):
        data = BYTES[kind](rng, data) or b'\0'
    return kind, ending, data


# ---- pickles ----


def packed(rng, value):
    """Return a file with a value or a pickle inside: mostly a zip."""
    if rng.random() < 0.2:
        return in_legacy(value)
    return in_zip(value if isinstance(value, bytes) else assemble(value))


@functools.cache
def instructions(name):
    """Return the instructions of a valid pickle."""
    content = dict(training=training_content, authors=authors_content)[name]()
    code = assemble(content)
    starts = [position for _, _, position in pickletools.genops(code)]
    return [code[a:b] for a, b in zip(starts, [*starts[1:], len(code)], strict=True)]


def mutated_instructions(rng):
    code = list(instructions(rng.choice(['training', 'authors'])))
    for _ in range(rng.choice([1, 1, 2, 5])):
        i, j = rng.randrange(len(code)), rng.randrange(len(code))
        kind = rng.choice(['removed', 'repeated', 'swapped', 'inserted', 'renamed', 'moved'])
        if kind == 'removed':
            code[i] = b''
        elif kind == 'repeated':
            code[i] *= rng.choice([2, 2, 100])
        elif kind == 'swapped':
            code[i], code[j] = code[j], code[i]
        elif kind == 'inserted':
            code[i] += code[j] if rng.random() < 0.5 else bytes([rng.randrange(256)])
        elif kind == 'renamed':
            places = [k for k, part in enumerate(code) if part.startswith(b'c')]
            code[rng.choice(places)] = named(rng.choice(NAMES))
        else:
            code[i:i], code[j : j + 5] = code[j : j + 5], []
        code = [part for part in code if part] or [b'.']
    return kind, '.pth', packed(rng, b''.join(code))


def mutated_code(rng):
    """Return a file whose checksums are those of a pickle with other bytes."""
    code = assemble(rng.choice([training_content, authors_content])())
    kind = rng.choice(list(BYTES))
    return kind, '.pth', packed(rng, BYTES[kind](rng, code) or b'.')


def inside_content(rng, value):
    """Return the value in some place of a checkpoint."""
    good = {f'layers.{i}.weight': tensor() for i in range(2)}
    return rng.choice(
        [
            {'model': good, 'extra': value},
            {'model': {**good, 'x': value}},
            {'state_dict': value},
            {'meta': [value, value], 'state_dict': good},
            {'optimizer': {'state': {0: {'step': value}}}, 'state_dict': good},
            value,
        ]
    )


def similar(rng, value):
    """Return another value of the same kind, or any."""
    if rng.random() < 0.2:
        return random_value(rng)
    match value:
        case bool() | None:
            return rng.choice([True, False, None, 0])
        case Name():
            return random_name(rng)
        case int():
            return rng.choice([*INTEGERS, value + 1, value - 1, -value])
        case float():
            return rng.choice(FLOATS)
        case str():
            return rng.choice([*TEXTS, value + 'x', value[1:]])
        case tuple() | list():
            return type(value)([*value, *value][: rng.randrange(2 * len(value) + 1)])
        case bytes():
            return rng.choice([b'', value[1:], value + b'\0', bytes(100)])
    return random_value(rng)


def mutated_value(rng, values):
    kind = rng.choice(list(values))
    value = values[kind]
    for _ in range(rng.choice([0, 1, 1, 1, 2, 3])):
        places = list(paths(value))
        place = rng.choice(places)
        value = replaced(value, place, similar(rng, at(value, place)))
    return kind, '.pth', packed(rng, inside_content(rng, value))


def mutated_content(rng):
    """Return a whole checkpoint of a training program with a part replaced."""
    value = rng.choice([training_content, authors_content])()
    places = list(paths(value))
    place = rng.choice(places)
    new = similar(rng, at(value, place))
    return type(at(value, place)).__name__, '.pth', packed(rng, replaced(value, place, new))


def hostile_call(rng):
    return 'call', '.pth', packed(rng, inside_content(rng, random_call(rng)))


def hostile_structure(rng):
    kind = rng.choice(list(STRUCTURES))
    return kind, '.pth', packed(rng, STRUCTURES[kind](rng))


# ---- the old format ----


def mutated_legacy(rng):
    pickles, storages = legacy_parts(training_content())
    kinds = ['removed', 'repeated', 'replaced', 'count', 'keys', 'short', 'order', 'size']
    kind = rng.choice(kinds)
    i = rng.randrange(len(pickles))
    if kind == 'removed':
        del pickles[i]
    elif kind == 'repeated':
        pickles.insert(i, pickles[i])
    elif kind == 'replaced':
        pickles[i] = assemble(random_value(rng))
    elif kind == 'count':
        storages['0'] = (rng.choice(INTEGERS[:12]), storages['0'][1])
    elif kind == 'keys':
        keys = rng.choice([[], ['1'], ['1', '0'], ['0', '0'], ['2'], [0], [[]], '01', None, {}])
        pickles[4] = assemble(keys)
    elif kind == 'short':
        storages['0'] = (storages['0'][0], storages['0'][1][: rng.randrange(32)])
    elif kind == 'order':
        rng.shuffle(pickles)
    else:  # the pickle asks for other sizes than the storages have
        view = rng.choice([None, ('v', 0, 4), ('v', -1, 4), ('v', 2**40, 4), (), 3])
        identity = ('storage', Name('torch.FloatStorage'), '0', 'cpu', rng.choice(INTEGERS), view)
        arguments = Persistent(identity), 0, (2, 3), (3, 1), False, None
        pickles[3] = assemble({'a': Call(Name('torch._utils._rebuild_tensor_v2'), arguments)})
    return kind, '.pth', legacy_of(pickles, storages)


# ---- safetensors ----


DTYPES = ['F64', 'F32', 'F16', 'BF16', 'I64', 'I32', 'I16', 'I8', 'U8', 'BOOL', 'F8_E4M3', 'X']


def random_json(rng):
    values = [None, True, -1, 0, 1.5, 10**30, '', 'F32', [], {}, [[]], [-1], [2**63], {'a': 1}]
    return rng.choice(values)


def mutated_safetensors(rng):
    header, data = safetensors_parts()
    header = json.loads(json.dumps(header))
    key = rng.choice(list(header)[1:])
    entry = header[key]
    length = None
    kind = rng.choice(
        ['dtype', 'shape', 'offsets', 'field', 'entry', 'key', 'metadata', 'length', 'data', 'text']
    )
    if kind == 'dtype':
        entry['dtype'] = rng.choice([*DTYPES, random_json(rng)])
    elif kind == 'shape':
        shape = entry['shape']
        shapes = [[], [0], [-1], [2**62, 4], [1, *shape], shape[::-1], ['1'], [1.0], [True]]
        entry['shape'] = rng.choice([*shapes, random_json(rng)])
    elif kind == 'offsets':
        end = len(data)
        offsets = [[0, end], [end, end + 1], [1, 0], [-4, 0], [0, 2**64], [0.0, 4.0], [0]]
        entry['data_offsets'] = rng.choice([*offsets, [0, 1, 2], random_json(rng)])
    elif kind == 'field':
        entry.pop(rng.choice(list(entry)))
    elif kind == 'entry':
        header[key] = random_json(rng)
    elif kind == 'key':
        header[rng.choice(TEXTS)] = header.pop(key)
    elif kind == 'metadata':
        header['__metadata__'] = rng.choice([random_json(rng), {'a': random_json(rng)}, {'a': 'b'}])
    elif kind == 'length':
        length = rng.choice([0, 1, 7, 10**6, 10**8 + 1, 2**31, 2**63, 2**64 - 1])
    elif kind == 'data':
        data = rng.choice([b'', data[:-1], data + b'\0', data[: len(data) // 2]])
    else:
        return odd_header(rng, header, data)
    return kind, '.safetensors', safetensors_of(header, data, length)


def odd_header(rng, header, data):
    """Return a file whose header is odd as a text."""
    whole = json.dumps(header)
    twice = whole[:-1] + ', ' + whole[1:]
    entry = dict(dtype='U8', shape=[len(data)], data_offsets=[0, len(data)])
    overlap = {f'k{i}': entry for i in range(9)}
    odd = rng.choice(
        [whole + '   ', ' ' + whole, '\ufeff' + whole, twice, whole[:-1], '', '{}', '[]', 'null']
        + ['[' * 9, '[' * 100000, '{"a":' * 100000, whole.replace('F32', 'F32\\u0000')]
        + [whole + '\0', '1' * 6000]
        + [whole.replace('4', 'NaN', 1), whole.replace('4', '4' * 6000, 1), whole.encode('utf-16')]
        + [json.dumps(overlap), whole.replace('layers', '\ud800'), b'\xff\xfe' + whole.encode()]
    )
    return 'text', '.safetensors', safetensors_of(odd, data)


# ---- state dictionaries ----


@functools.cache
def odd_tensors():
    """Return tensors that a network cannot take, or takes by mistake."""
    values = torch.arange(6.0)
    return [
        values,
        values.view(2, 3).t(),
        torch.zeros(0),
        torch.zeros(()),
        torch.full((4,), float('nan')),
        torch.full((4,), float('inf')),
        values.to(torch.complex64).conj(),
        values.to(torch.complex64).conj().imag,
        values.to(torch.float16),
        values.to(torch.float8_e4m3fn),
        values.long(),
        values.bool(),
        values.to(torch.uint16),
        torch.zeros(1).expand(100),
        torch.zeros(1).expand(1000, 10**9),
        torch.eye(3).to_sparse(),
        torch.quantize_per_tensor(values, 0.1, 0, torch.qint8),
        torch.empty(3, device='meta'),
        torch.nn.Parameter(values),
    ]


def odd_state(rng):
    """Return a state dictionary with an odd tensor or key, as torch.save writes it."""
    new = dict(state())
    key = rng.choice(list(new))
    kind = rng.choice(['tensor', 'shape', 'key', 'missing', 'value', 'prefix', 'wrapping', 'clash'])
    keys = [0, -1, 1.5, float('nan'), None, True, b'a', (1, 2), ('a', ('b',)), *TEXTS]
    if kind == 'tensor':
        new[key] = rng.choice(odd_tensors())
    elif kind == 'shape':
        new[key] = torch.zeros([rng.choice([0, 1, 2, 3, 4]) for _ in range(rng.randrange(6))])
    elif kind == 'key':
        new[rng.choice(keys)] = new.pop(key)
    elif kind == 'missing':
        del new[key]
    elif kind == 'value':
        new[key] = rng.choice([None, 1, 'a', [new[key]], {'a': new[key]}, new])
    elif kind == 'clash':
        new[f'module.{key}'] = new[f'backbone.{key}'] = new[key] + 1
    prefix = rng.choice(['module.', 'backbone.', 'module.backbone.', 'model.', 'encoder.', '.', ''])
    if kind == 'prefix':
        new = {f'{prefix}{k}': value for k, value in new.items()}
    wrapped = [new, [new], {'state_dict': {'model': new}}, {'model': [new]}, {'state_dict': None}]
    wrapped += [{'state_dict': {}, 'model': new}, {'model': {1: new}}]
    wrapped += [{'meta': 3, 'state_dict': new}]
    content = rng.choice(wrapped) if kind == 'wrapping' else {'model': new}
    return kind, '.pth', saved(content, _use_new_zipfile_serialization=rng.random() < 0.8)


# ---- all ----

#: Kinds of mutations, and how often each occurs.
KINDS = {
    'valid': (as_it_is, 2),
    'bytes': (mutated_bytes, 10),
    'zip': (mutated_zip, 14),
    'instructions': (mutated_instructions, 12),
    'code': (mutated_code, 6),
    'tensors': (functools.partial(mutated_value, values=TENSORS), 10),
    'arrays': (functools.partial(mutated_value, values=ARRAYS), 10),
    'values': (functools.partial(mutated_value, values=OTHERS), 8),
    'contents': (mutated_content, 8),
    'calls': (hostile_call, 8),
    'structures': (hostile_structure, 8),
    'legacy': (mutated_legacy, 6),
    'safetensors': (mutated_safetensors, 8),
    'states': (odd_state, 8),
}
#: Those that change a pickle in a container that is as it should be.
PICKLES = ('instructions', 'code', 'tensors', 'arrays', 'values', 'contents', 'calls', 'structures')


def known_files():
    """Yield files with all values and, as large as they come, all structures."""
    for kind, value in VALUES.items():
        yield FuzzedFile('value.pth', kind, in_zip(assemble({'model': {'a': value}})))
        yield FuzzedFile('legacy.pth', kind, in_legacy({'model': {'a': value}}))
    for kind, build in STRUCTURES.items():
        for number in range(12 if kind == 'copied' else 4):
            data = in_zip(build(Largest(number)))
            yield FuzzedFile('structure.pth', kind, data)
    for count, size in ((3, 64), (3000, 400000)):
        yield FuzzedFile('zip.pth', 'overlapping', overlapping_storages(count, size))


class Largest(random.Random):
    """Random numbers that choose the last of several sizes."""

    def choice(self, seq):
        if all(isinstance(item, int) and item < 2**31 for item in seq):
            return seq[-1]
        return super().choice(seq)


def fuzzed_file(seed, number):
    """Return a file of a campaign."""
    rng = random.Random(f'{seed}/{number}')
    weights = [weight for _, weight in KINDS.values()]
    (kind,) = rng.choices(list(KINDS), weights)
    mutation, ending, data = KINDS[kind][0](rng)
    if rng.random() < 0.02:
        ending = rng.choice(['.pth', '.pt', '.safetensors', '.zip', '.tar', ''])
    return FuzzedFile(f'{number}{ending}', f'{kind}: {mutation}', data)
