"""Mutations of zip archives: records that are missing, twice, damaged or described by lies."""

import dataclasses
import functools
import io
import struct
import zipfile
import zlib

from .archives import Record, zip_of
from .pickle_assembler import assemble
from .pickle_values import tensor
from .valid_files import valid_file, zip_records


def other_text(rng, record):
    choices = ['', 'big', 'little', 'x', '0', '-1', '1', '99999999999999999999', 'é', '\0', ' 3 ']
    record.data = rng.choice(choices).encode()


def rename(rng, record):
    names = ['../../x', '/etc/passwd', 'archive/constants.pkl', 'data.pkl', 'archive/DATA.PKL', '']
    names += ['other/data.pkl', 'archive\\data.pkl', 'archive/data/0', 'archive/data/0/', 'a\0b']
    record.name = rng.choice(names)


def wrong_name(rng, record):
    rng.choice([record.local, record.central])['name'] = b'archive/other'


def compress(rng, record):
    record.method = 8


def wrong_checksum(rng, record):
    record.central['crc'] = rng.getrandbits(32)
    if rng.random() < 0.5:
        record.local['crc'] = record.central['crc']


def no_checksum(rng, record):
    record.central['crc'] = record.local['crc'] = 0


def wrong_size(rng, record):
    size = rng.choice([0, 1, len(record.data) + 1, len(record.data) - 1, 2**31, 2**32 - 1, 2**30])
    size = max(size, 0)
    for fields in rng.choice([(record.central,), (record.local,), (record.central, record.local)]):
        fields.update(dict.fromkeys(rng.choice([['size'], ['packed'], ['size', 'packed']]), size))


def wrong_offset(rng, record):
    record.central['offset'] = rng.choice([0, 1, 64, 2**31, 2**32 - 1])


def encrypted(rng, record):
    record.central['flags'] = record.local['flags'] = 0x801


def other_flags(rng, record):
    rng.choice([record.central, record.local])['flags'] = rng.getrandbits(16)


def other_method(rng, record):
    rng.choice([record.central, record.local])['method'] = rng.choice([1, 8, 9, 12, 14, 93, 99])


def zip64(rng, record):
    sizes = [rng.choice([len(record.data), 2**40, 2**64 - 1, 0]) for _ in range(3)]
    length = rng.choice([8, 16, 24, 25, 0])
    record.extra = struct.pack('<HH', 1, length) + struct.pack('<3Q', *sizes)[:length]
    record.central['size'] = record.central['packed'] = 2**32 - 1


def other_extra(rng, record):
    record.extra = rng.randbytes(rng.choice([1, 3, 4, 60]))


def short_data(rng, record):
    record.data = record.data[: rng.randrange(len(record.data) + 1)]


def long_data(rng, record):
    record.data += bytes(rng.choice([1, 8, 10000]))


RECORDS = (rename, wrong_name, compress, wrong_checksum, no_checksum, wrong_size, wrong_offset)
RECORDS += (encrypted, other_flags, other_method, zip64, other_extra, short_data, long_data)
RECORDS += (other_text,)


def mutated_record(rng, records):
    mutation = rng.choice(RECORDS)
    mutation(rng, rng.choice(records))
    return mutation.__name__, zip_of(records)


def missing_record(rng, records):
    del records[rng.randrange(len(records))]
    return 'missing', zip_of(records)


def repeated_record(rng, records):
    record = dataclasses.replace(rng.choice([records[0], rng.choice(records)]))
    if rng.random() < 0.5:
        record.data = rng.choice([b'', b'\x80\2N.', record.data[::-1]])
    records.insert(rng.randrange(len(records) + 1), record)
    return 'repeated', zip_of(records)


def other_order(rng, records):
    rng.shuffle(records)
    return 'order', zip_of(records)


def added_record(rng, records):
    names = ['constants.pkl', 'code/a.py', 'data/2', '.data/x', 'data.pkl/x', 'byteorder']
    name = rng.choice(['archive/', 'other/', '']) + rng.choice(names)
    record = Record(name, rng.choice([b'', b'\x80\2N.']))
    records.insert(rng.choice([0, len(records)]), record)
    return 'added', zip_of(records)


def other_directory(rng, records):
    field = rng.choice(['count', 'size', 'offset', 'disk'])
    value = rng.getrandbits(31)
    if field in ('count', 'disk'):
        value = rng.choice([0, 1, 3, 1000, 65535])
    return f'directory {field}', zip_of(records, **{field: value})


def surrounded(rng, records):
    before, after = (rng.choice([b'', b'\0' * 8, b'PK\3\4', b'\x80\2N.']) for _ in range(2))
    comment = rng.choice([b'', b'x' * 300, b'PK\5\6' + bytes(18)])
    return 'surrounded', before + zip_of(records, comment) + after


@functools.cache
def compressed_repetition(byte, count):
    compress = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = byte * 2**20
    return b''.join(compress.compress(block) for _ in range(count)) + compress.flush()


def bomb(rng, records):
    """A record that is a thousand times larger once it is read."""
    megabytes = rng.choice([1, 200])
    record = records[rng.choice([0, 0, 4])]
    byte = b'N' if record.name.endswith('pkl') else b'\0'
    record.data = compressed_repetition(byte, megabytes)
    sizes = dict(method=8, size=megabytes * 2**20)
    record.central, record.local = dict(sizes), dict(sizes)
    return 'bomb', zip_of(records)


def overlapping(rng, records):
    return 'overlapping', overlapping_storages(*rng.choice([(3, 64), (3000, 400000)]))


@functools.cache
def overlapping_storages(count, size):
    """Return a file with many storages that are the same bytes of it."""
    data = bytes(size)
    tensors = {str(i): tensor(str(i), (1,), (1,), numbers=size // 4) for i in range(count)}
    records = zip_records(assemble({'model': tensors}), {'0': data})
    offset = zip_of(records).index(b'archive/data/0') - 30
    fields = dict(offset=offset, size=size, packed=size, crc=zlib.crc32(data))
    others = [Record(f'archive/data/{i}', b'', central=fields) for i in range(1, count)]
    return zip_of([*records, *others])


ARCHIVES = [mutated_record] * 8 + [missing_record, repeated_record, other_order, added_record]
ARCHIVES += [other_directory, surrounded, bomb, overlapping]


def mutated_zip(rng):
    name = rng.choice(['zip', 'MMEngine', 'authors'])
    archive = zipfile.ZipFile(io.BytesIO(valid_file(name)[1]))
    records = [Record(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    kind, data = rng.choice(ARCHIVES)(rng, records)
    return kind, '.pth', data
