"""Containers of checkpoints, written with any lie in any field."""

import dataclasses
import json
import struct
import zlib


@dataclasses.dataclass
class Record:
    """A record of a zip archive; ``central`` and ``local`` replace fields of its two headers."""

    name: str
    data: bytes
    method: int = 0
    extra: bytes = b''
    central: dict = dataclasses.field(default_factory=dict)
    local: dict = dataclasses.field(default_factory=dict)

    def packed(self):
        if self.method != 8:
            return self.data
        compress = zlib.compressobj(9, zlib.DEFLATED, -15)
        return compress.compress(self.data) + compress.flush()

    def fields(self, offset):
        data = self.packed()
        return dict(
            flags=0x800,
            method=self.method,
            crc=zlib.crc32(self.data),
            packed=len(data),
            size=len(self.data),
            name=self.name.encode('utf-8', 'surrogatepass'),
            extra=self.extra,
            offset=offset,
        )


def _local_header(f):
    sizes = f['crc'], f['packed'], f['size'], len(f['name']), len(f['extra'])
    return (
        struct.pack('<4s5H3I2H', b'PK\3\4', 20, f['flags'], f['method'], 0, 33, *sizes)
        + f['name']
        + f['extra']
    )


def _central_header(f):
    sizes = f['crc'], f['packed'], f['size'], len(f['name']), len(f['extra'])
    return (
        struct.pack('<4s6H3I2H', b'PK\1\2', 20, 20, f['flags'], f['method'], 0, 33, *sizes)
        + struct.pack('<3H2I', 0, 0, 0, 0, f['offset'])
        + f['name']
        + f['extra']
    )


def zip_of(records, comment=b'', **end):
    """Return an archive; ``end`` replaces fields of its last record."""
    body, directory = b'', b''
    for record in records:
        fields = record.fields(len(body))
        body += _local_header(fields | record.local) + record.packed()
        directory += _central_header(fields | record.central)
    counts = dict(disk=0, count=len(records), size=len(directory), offset=len(body)) | end
    body += directory
    body += struct.pack(
        '<4s4H2IH',
        b'PK\5\6',
        counts['disk'],
        0,
        counts['count'],
        counts['count'],
        counts['size'],
        counts['offset'],
        len(comment),
    )
    return body + comment


def safetensors_of(header, data, length=None):
    """Return a file of the format safetensors; the header is text or the object that it holds."""
    if not isinstance(header, str | bytes):
        header = json.dumps(header)
    if isinstance(header, str):
        header = header.encode('utf-8', 'surrogatepass')
    return struct.pack('<Q', len(header) if length is None else length) + header + data
