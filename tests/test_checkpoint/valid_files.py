"""Valid checkpoint files of each format and content."""

import functools
import io
import struct

import torch

from mmvmamba.nn import VMambaNet

from .archives import Record, safetensors_of, zip_of
from .pickle_assembler import assemble, text
from .pickle_values import ARRAYS, OTHERS, STORAGE_SIZE, TENSORS, tensor

#: The network that the worker loads the files into.
THIN = dict(arch=dict(dims=(4, 8), depths=(1, 1)), num_classes=2)
#: Storages of float32 and of int64.
STORAGES = {'0': bytes(range(4 * STORAGE_SIZE)), '1': struct.pack('<4q', 0, 1, 0, 2)}
ITEM_SIZES = {'0': 4, '1': 8}


@functools.cache
def state():
    """Return tensors that fit the network of the worker."""
    generator = torch.Generator().manual_seed(0)
    own = VMambaNet(**THIN).state_dict()
    return {key: torch.randn(value.shape, generator=generator) for key, value in own.items()}


def saved(content, **options):
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def saved_without_checksums(content):
    torch.serialization.set_crc32_options(False)
    try:
        return saved(content)
    finally:
        torch.serialization.set_crc32_options(True)


def in_zip(code, storages=STORAGES):
    """Return a zip archive as torch.save writes it, around a pickle."""
    return zip_of(zip_records(code, storages))


def zip_records(code, storages=STORAGES):
    texts = {'.format_version': '1', '.storage_alignment': '64', 'byteorder': 'little'}
    records = [Record('archive/data.pkl', code)]
    records += [Record(f'archive/{name}', value.encode()) for name, value in texts.items()]
    records += [Record(f'archive/data/{key}', value) for key, value in storages.items()]
    records += [Record('archive/version', b'3\n')]
    return records + [Record('archive/.data/serialization_id', b'0' * 40)]


def legacy_parts(value):
    """Return the pickles of a file before torch 1.6, and its storages, with a value inside."""
    code = value if isinstance(value, bytes) else assemble(value)
    used = [key for key in STORAGES if text(key) + text('cpu') in code]
    code = code.replace(b'tQ', b'NtQ')  # identities of storages have a sixth part: no view
    start = [0x1950A86A20F9469CFC6C, 1001, dict(protocol_version=1001, little_endian=True)]
    storages = {key: (len(STORAGES[key]) // ITEM_SIZES[key], STORAGES[key]) for key in used}
    return [*map(assemble, start), code, assemble(used)], storages


def in_legacy(value):
    pickles, storages = legacy_parts(value)
    return legacy_of(pickles, storages)


def legacy_of(pickles, storages):
    raw = b''.join(struct.pack('<q', count) + data for count, data in storages.values())
    return b''.join(pickles) + raw


def training_content():
    """Return what MMEngine's runner saves, as a value of the assembler."""
    optimizer = {'state': {0: {'step': tensor(size=(), stride=()), 'exp_avg': tensor()}}}
    return {
        'meta': {
            'epoch': 3,
            'seed': 0,
            'cfg': 'model = dict()',
            'dataset_meta': OTHERS['config'],
        },
        'state_dict': {'backbone.norm.weight': tensor(), 'backbone.norm.bias': tensor(key='0')},
        'message_hub': {
            'log_scalars': {'train/loss': OTHERS['history']},
            'runtime_info': {'iter': 12, 'loss': ARRAYS['float32'], 'best': ARRAYS['scalar']},
            'resumed_keys': {'train/loss': True},
        },
        'optimizer': optimizer,
        'param_schedulers': [{'base_lrs': [0.1], 'last_step': 12}],
    }


def authors_content():
    return {
        'model': {'layers.0.blocks.0.norm.weight': tensor(), 'b': TENSORS['half']},
        'config': OTHERS['node'],
        'args': OTHERS['arguments'],
        'epoch': 2,
        'max_accuracy': 0.5,
    }


@functools.cache
def safetensors_parts():
    """Return the header and the data of a file of the format safetensors."""
    header, data = {'__metadata__': {'format': 'pt'}}, b''
    for key, value in state().items():
        raw = value.numpy().tobytes()
        offsets = [len(data), len(data) + len(raw)]
        header[key] = dict(dtype='F32', shape=list(value.shape), data_offsets=offsets)
        data += raw
    return header, data


#: A valid file of each format and content: the end of its name, and its bytes.
VALID = {
    'zip': ('.pth', lambda: saved({'model': state(), 'epoch': 1})),
    'zip without checksums': ('.pth', lambda: saved_without_checksums({'model': state()})),
    'legacy': ('.pth', lambda: saved({'model': state()}, _use_new_zipfile_serialization=False)),
    'safetensors': ('.safetensors', lambda: safetensors_of(*safetensors_parts())),
    'MMEngine': ('.pth', lambda: in_zip(assemble(training_content()))),
    'MMEngine, legacy': ('.pth', lambda: in_legacy(training_content())),
    'authors': ('.pth', lambda: in_zip(assemble(authors_content()))),
}


@functools.cache
def valid_file(name):
    ending, build = VALID[name]
    return ending, build()
