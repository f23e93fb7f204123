"""Files are read without running anything in them, with messages that name the file."""

import argparse
import fractions
import hashlib
import io
import logging
import os
import re
import subprocess
import sys
import types
import zipfile

import pytest
import torch

from mmvmamba.checkpoint import read_local_checkpoint, state_dict_of
from mmvmamba.checkpoint.unpickling import YACS_NODE

from .test_tensors import UNUSABLE

STATE = {'a.weight': torch.arange(600.0).view(20, 30), 'a.bias': torch.ones(20)}


@pytest.fixture(autouse=True)
def safe_globals_of_its_own():
    """A test's list of allowed classes is not the next one's, nor does it lose mmvmamba.timm's."""
    before = torch.serialization.get_safe_globals()
    yield
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(before)


def save(folder, content):
    torch.save(content, folder / 'file.pth')
    return folder / 'file.pth'


def as_string(path):
    return str(path)


def as_open_file(path):
    return io.BytesIO(path.read_bytes())


@pytest.mark.parametrize('form', [lambda path: path, as_string, as_open_file])
def test_paths_and_open_files(tmp_path, form):
    path = save(tmp_path, {'model': STATE, 'epoch': 3, 'args': argparse.Namespace(lr=0.1)})
    content = read_local_checkpoint(form(path), name='fetched')
    assert (content['epoch'], content['args'].lr) == (3, 0.1)
    assert all(torch.equal(value, STATE[key]) for key, value in content['model'].items())


def test_home_folder(tmp_path, monkeypatch):
    save(tmp_path, STATE)
    monkeypatch.setenv('HOME', str(tmp_path))
    assert read_local_checkpoint('~/file.pth').keys() == STATE.keys()


def test_missing_file():
    with pytest.raises(FileNotFoundError, match=r"checkpoint 'nowhere/x.pth' does not exist"):
        read_local_checkpoint('nowhere/x.pth')


@pytest.mark.parametrize('file', [None, 3, b'x.pth'])
def test_only_paths_and_open_files_are_read(file):
    with pytest.raises(TypeError, match='checkpoint must be a path or a URL, but got'):
        read_local_checkpoint(file)


def test_a_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match='does not exist or is not a file'):
        read_local_checkpoint(tmp_path)


def test_an_open_file_without_a_name():
    with pytest.raises(ValueError, match=r"^checkpoint 'the open file' cannot be read; it may be"):
        read_local_checkpoint(io.BytesIO(b'no checkpoint'))


@pytest.mark.parametrize('share', [0.0, 0.05, 0.5, 0.99])
def test_truncated_file(tmp_path, share):
    whole = save(tmp_path, {'model': STATE}).read_bytes()
    path = tmp_path / 'short.pth'
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(
        ValueError, match=r"short.pth' cannot be read; it may be truncated or not a checkpoint"
    ):
        read_local_checkpoint(path)


def test_a_web_page(tmp_path):
    (tmp_path / 'x.pth').write_text('\n<!DOCTYPE html><title>Log in</title>')
    words = r"x.pth' cannot be read: it is an HTML page, such as a login page, not a checkpoint$"
    with pytest.raises(ValueError, match=words):
        read_local_checkpoint(str(tmp_path / 'x.pth'))


@pytest.mark.parametrize(
    'content', [b'hello\n', b'backbone: x\n', b'j', b'<?xml?><Error/>', b'\x89PNG\r\n']
)
def test_other_files(tmp_path, content):
    path = tmp_path / 'page.pth'
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"page.pth' cannot be read; it may be truncated or not a checkpoint"
    ):
        read_local_checkpoint(path)
    with pytest.raises(
        ValueError, match=r"'fetched' cannot be read; it may be truncated or not a checkpoint"
    ):
        read_local_checkpoint(as_open_file(path), name='fetched')


def test_foreign_class_is_refused(tmp_path):
    path = save(tmp_path, {'model': STATE, 'extra': fractions.Fraction(1, 2)})
    with pytest.raises(ValueError, match=r'needs fractions.Fraction.*add_safe_globals'):
        read_local_checkpoint(path)
    torch.serialization.add_safe_globals([fractions.Fraction])
    assert read_local_checkpoint(path)['extra'] == fractions.Fraction(1, 2)


@pytest.mark.parametrize('is_readable', [True, False])
def test_a_load_allows_no_class_for_later_ones(tmp_path, is_readable):
    extra = None if is_readable else fractions.Fraction(1, 2)
    path = save(tmp_path, {'model': STATE, 'extra': extra})
    torch.serialization.add_safe_globals([YACS_NODE])  # as mmvmamba.timm does
    before = set(torch.serialization.get_safe_globals())
    if is_readable:
        read_local_checkpoint(path)
    else:
        with pytest.raises(ValueError, match=r'needs fractions.Fraction'):
            read_local_checkpoint(path)
    assert set(torch.serialization.get_safe_globals()) == before


class Opens:
    """A pickle of it would create a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, 'w')


def test_nothing_is_executed(tmp_path):
    path = save(tmp_path, {'model': STATE, 'extra': Opens(str(tmp_path / 'made'))})
    with pytest.raises(ValueError, match='open'):
        read_local_checkpoint(path)
    assert not (tmp_path / 'made').exists()


def test_full_training_file_with_yacs_node(tmp_path, monkeypatch):
    """A yacs node is read as a plain dictionary, and yacs need not be installed."""
    node_class = type('CfgNode', (dict,), {'__module__': 'yacs.config'})
    module = types.ModuleType('yacs.config')
    module.CfgNode = node_class
    monkeypatch.setitem(sys.modules, 'yacs', types.ModuleType('yacs'))
    monkeypatch.setitem(sys.modules, 'yacs.config', module)
    node = node_class(MODEL=node_class(NAME='vssm'))
    node.__dict__['__immutable__'] = True
    path = save(tmp_path, {'model': STATE, 'config': node, 'epoch': 2})
    monkeypatch.delitem(sys.modules, 'yacs.config')
    content = read_local_checkpoint(path)
    assert content['config']['MODEL']['NAME'] == 'vssm'
    assert type(content['config']) is not node_class
    assert content['model'].keys() == STATE.keys()
    torch.serialization.add_safe_globals([YACS_NODE])
    assert torch.load(path, weights_only=True)['config'] == content['config']


# ---- damage ----


def save_legacy(path):
    torch.save({'model': STATE}, path, _use_new_zipfile_serialization=False)


def save_safetensors(path):
    pytest.importorskip('safetensors.torch').save_file(STATE, path)


def save_without_checksums(path):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({'model': STATE}, path)
    finally:
        torch.serialization.set_crc32_options(before)


FORMATS = [save_legacy, save_safetensors, save_without_checksums]


def flipped(path, name, needle):
    """Write a copy in which the lowest bit of the first byte of ``needle`` differs."""
    data = bytearray(path.read_bytes())
    assert data.count(needle) == 1
    data[data.index(needle)] ^= 1
    new = path.parent / name
    new.write_bytes(data)
    return new


def with_hash(path):
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return path.parent / f'x-{digest[:8]}{path.suffix}'


NEEDLE = bytes(STATE['a.weight'][7, :2].numpy())


def test_a_flipped_bit_in_a_tensor_is_found(tmp_path):
    path = flipped(save(tmp_path, {'model': STATE}), 'x.pth', NEEDLE)
    torch.load(path, weights_only=True)  # does not see it
    with pytest.raises(ValueError, match=r"x.pth' is damaged: Bad CRC-32 .*Download or copy it"):
        read_local_checkpoint(path)


@pytest.mark.parametrize('save_as', FORMATS)
def test_formats_without_checksums_get_a_warning(tmp_path, caplog, save_as):
    save_as(tmp_path / 'x.pth')
    content = read_local_checkpoint(tmp_path / 'x.pth')
    assert torch.equal(state_dict_of(content)['a.weight'], STATE['a.weight'])
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "'x.pth' has no checksums" in record.getMessage()


@pytest.mark.parametrize('save_as', [lambda path: torch.save({'model': STATE}, path), *FORMATS])
def test_the_hash_in_a_name_is_verified(tmp_path, caplog, save_as):
    save_as(tmp_path / 'x.pth')
    path = with_hash(tmp_path / 'x.pth')
    os.rename(tmp_path / 'x.pth', path)
    for file in (path, io.BytesIO(path.read_bytes())):
        content = read_local_checkpoint(file, name=str(path))
        assert torch.equal(state_dict_of(content)['a.weight'], STATE['a.weight'])
    assert not caplog.records
    flipped(path, path.name, NEEDLE)
    with pytest.raises(
        ValueError, match=r'does not match the hash in its name: its SHA-256 starts with .*rename'
    ):
        read_local_checkpoint(path)


@pytest.mark.parametrize(
    'name', ['x-20240115.pth', 'x-deadbee.pth', 'x-01234567', 'x_01234567.pth']
)
def test_dates_and_other_names_are_not_hashes(tmp_path, name):
    torch.save(STATE, tmp_path / name)
    assert read_local_checkpoint(tmp_path / name).keys() == STATE.keys()


def test_safetensors(tmp_path):
    save_safetensors(tmp_path / 'x.safetensors')
    for file in (tmp_path / 'x.safetensors', as_open_file(tmp_path / 'x.safetensors')):
        content = read_local_checkpoint(file, 'meta')
        assert content.keys() == STATE.keys()
        assert content['a.bias'].is_meta
    with pytest.raises(ValueError, match=r"'y' cannot be read"):
        read_local_checkpoint(io.BytesIO((tmp_path / 'x.safetensors').read_bytes()[:-9]), name='y')


def rewritten(path, change):
    """Write the records of a zip file anew after a change to their list of (name, content)."""
    with zipfile.ZipFile(path) as archive:
        records = [(name, archive.read(name)) for name in archive.namelist()]
    compression = change(records) or zipfile.ZIP_STORED
    with zipfile.ZipFile(path, 'w', compression) as archive:
        for name, content in records:
            archive.writestr(name, content)
    return path


def find(records, name):
    return next(content for n, content in records if n == f'file/{name}')


@pytest.mark.filterwarnings('ignore:Duplicate name')
@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (lambda records: zipfile.ZIP_DEFLATED, 'a record is compressed'),
        (lambda records: records.append(records[0]), 'not unique'),
        (lambda records: records.append(('file/DATA.pkl', b'x')), 'not unique'),
        (lambda records: records.append(('other/data.pkl', b'x')), 'not in one folder'),
        (lambda records: records.append(('file/constants.pkl', b'x')), 'TorchScript'),
        (lambda records: records.remove(('file/data.pkl', find(records, 'data.pkl'))), 'data.pkl'),
        (lambda records: records.remove(('file/data/0', find(records, 'data/0'))), 'data/0'),
    ],
    ids=['compressed', 'twice', 'case', 'folders', 'script', 'no pickle', 'no tensor'],
)
def test_strange_zip_files_are_refused(tmp_path, change, words):
    path = rewritten(save(tmp_path, {'model': STATE}), change)
    with pytest.raises(ValueError, match=f'cannot be read.*{words}'):
        read_local_checkpoint(path)


def test_records_that_overlap_are_refused(tmp_path):
    """Many entries of the directory with the same data would take more memory than the file."""
    path = save(tmp_path, {'model': STATE})
    with zipfile.ZipFile(path, 'a') as archive:
        for i in range(3):
            record = zipfile.ZipInfo(f'file/data/{i + 2}')
            first = archive.getinfo('file/data/0')
            record.header_offset, record.CRC = first.header_offset, first.CRC
            record.file_size = record.compress_size = first.file_size
            archive.filelist.append(record)
        archive._didModify = True
    with pytest.raises(ValueError, match='cannot be read.*records overlap'):
        read_local_checkpoint(path)


@pytest.mark.parametrize(
    'change',
    [lambda keys: keys[:-1], lambda keys: []],
    ids=['one', 'all'],
)
def test_legacy_tensors_without_data_are_refused(tmp_path, monkeypatch, change):
    """Their memory would stay uninitialized."""
    dump = torch.serialization.pickle.dump

    def dump_fewer_keys(obj, file, **arguments):
        is_keys = type(obj) is list and all(type(key) is str for key in obj)
        dump(change(obj) if is_keys else obj, file, **arguments)

    monkeypatch.setattr(torch.serialization.pickle, 'dump', dump_fewer_keys)
    save_legacy(tmp_path / 'x.pth')
    monkeypatch.undo()
    with pytest.raises(ValueError, match='tensors without data'):
        read_local_checkpoint(tmp_path / 'x.pth')


# ---- the state dict ----


@pytest.mark.parametrize(
    'wrap',
    [
        lambda state: state,
        lambda state: {'model': state, 'optimizer': {'x': torch.zeros(1)}},
        lambda state: {'state_dict': state, 'meta': {}},
        lambda state: {'state_dict': {'model': state}},
        lambda state: {**state, 'epoch': 3},
    ],
    ids=['plain', 'model', 'state_dict', 'both', 'number'],
)
def test_tensors_of_each_wrapping(wrap):
    assert state_dict_of(wrap(STATE), 'x.pth') == STATE


@pytest.mark.parametrize(
    ('content', 'words'),
    [
        ([1, 2], "'x.pth' must contain a state dict, but contains a list"),
        ({'model': {'a': 1}}, "'x.pth' contains no tensors"),
        ({}, "'x.pth' contains no tensors"),
    ],
)
def test_no_state_dict(content, words):
    with pytest.raises(ValueError, match=f'^checkpoint {words}'):
        state_dict_of(content, 'x.pth')
    with pytest.raises(ValueError, match=words.replace("'x.pth'", '^the checkpoint')):
        state_dict_of(content)


@pytest.mark.parametrize('words', [words for words in UNUSABLE if words != 'a list'])
def test_tensors_without_plain_data(words):
    content = {'model': {**STATE, 'odd': UNUSABLE[words]}}
    sentence = f"tensor 'odd' is {words}, but must be a dense strided tensor with data. Convert it"
    with pytest.raises(ValueError, match=f"^checkpoint 'x.pth' .*{re.escape(sentence)}"):
        state_dict_of(content, 'x.pth')


@pytest.mark.parametrize('key', [0, None, b'a', ('a', 'b')])
def test_names_are_text(key):
    words = rf'with the key .*, but tensor names must be str, not {type(key).__name__}'
    with pytest.raises(ValueError, match=f"^checkpoint 'x.pth' contains a tensor {words}"):
        state_dict_of({**STATE, key: torch.zeros(1)}, 'x.pth')
    assert state_dict_of({**STATE, key: 'no tensor'}, 'x.pth') == STATE


@pytest.mark.parametrize('wrap', [dict, lambda content: {'state_dict': content}])
def test_two_state_dicts_on_one_level(wrap):
    content = wrap({'state_dict': STATE, 'model': STATE})
    with pytest.raises(ValueError, match="x.pth' contains both a 'state_dict' and a 'model'"):
        state_dict_of(content, 'x.pth')
    assert state_dict_of({'state_dict': STATE, 'model': 'vmamba_tiny'}, 'x.pth') == STATE


def test_torch_is_enough(tmp_path):
    path = save(tmp_path, {'model': STATE})
    code = f"""
import sys
sys.modules.update(dict.fromkeys(('numpy', 'mmengine', 'mmcv', 'timm')))  # cannot be imported
from mmvmamba.checkpoint import read_local_checkpoint
print(sorted(read_local_checkpoint({str(path)!r})['model']))
"""
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert result.stdout.strip() == "['a.bias', 'a.weight']", result.stderr


def test_no_secret_of_a_url_that_is_not_read():
    with pytest.raises(FileNotFoundError, match=r"'http://host/x.pth\?...' does not exist"):
        read_local_checkpoint('http://user:pa55@host/x.pth?pa55')
    with pytest.raises(TypeError, match=r"but got b'http://host/x.pth'"):
        read_local_checkpoint(b'http://user:pa55@host/x.pth')
