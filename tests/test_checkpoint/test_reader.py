"""Files are read without running anything in them, with messages that name the file."""

import argparse
import fractions
import io
import pickle
import subprocess
import sys
import types

import numpy as np
import pytest
import torch

from mmvmamba.checkpoint import read_local_checkpoint, state_dict_of
from mmvmamba.checkpoint.reader import YACS_NODE

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


@pytest.mark.parametrize(
    'content', [b'hello\n', b'backbone: x\n', b'j', b'<!DOCTYPE html><html></html>', b'\x89PNG\r\n']
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


class Asks:
    """A pickle of it asks getattr, which MMEngine's files use for their HistoryBuffer."""

    def __init__(self, owner, name):
        self.arguments = owner, name

    def __reduce__(self):
        return getattr, self.arguments


class HistoryBuffer:
    """As MMEngine's, for files written here."""

    __module__ = 'mmengine.logging.history_buffer'

    def mean(self):
        return 0


@pytest.fixture
def history_buffer(monkeypatch):
    """The class, where a pickle looks for MMEngine's, which need not be installed."""
    for name in ('mmengine', 'mmengine.logging', HistoryBuffer.__module__):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules[HistoryBuffer.__module__].HistoryBuffer = HistoryBuffer
    return HistoryBuffer


@pytest.mark.parametrize(
    ('owner', 'name', 'words'),
    [
        (np.ndarray, 'tofile', 'needs ndarray.tofile'),
        (HistoryBuffer, '__init__', 'needs HistoryBuffer.__init__'),
    ],
)
def test_no_attribute_of_anything_else_is_read(tmp_path, history_buffer, owner, name, words):
    allowed = save(tmp_path, {'extra': Asks(history_buffer, 'mean')})
    content = read_local_checkpoint(allowed, history_buffer=history_buffer)
    assert content['extra'] is history_buffer.mean
    path = save(tmp_path, {'extra': Asks(owner, name)})
    with pytest.raises(ValueError, match=words):
        read_local_checkpoint(path, history_buffer=history_buffer)


def test_arrays_and_numbers_of_numpy(tmp_path):
    values = [np.arange(6.0).reshape(2, 3), np.float32(0.5), np.int64(3), np.array([True])]
    content = read_local_checkpoint(save(tmp_path, values))
    for value, expected in zip(content, values, strict=True):
        np.testing.assert_array_equal(value, expected)
        assert value.dtype == expected.dtype


def test_dictionaries_of_a_config(tmp_path):
    """The meta information of a data set in a file of MMEngine, which need not be installed."""
    config = pytest.importorskip('mmengine.config')
    meta = dict(
        classes=('a',), skeleton=config.ConfigDict({0: dict(swap=[config.ConfigDict(y=1)])})
    )
    path = save(tmp_path, dict(meta=meta))
    content = read_local_checkpoint(path)['meta']
    assert content == meta
    assert not isinstance(content['skeleton'], config.ConfigDict)
    content = read_local_checkpoint(path, config_dict=config.ConfigDict)['meta']
    assert pickle.dumps(content) == pickle.dumps(meta)


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
        ([1, 2], "'x.pth' must hold a state dict, but holds a list"),
        ({'model': {'a': 1}}, "'x.pth' holds no tensors"),
        ({}, "'x.pth' holds no tensors"),
    ],
)
def test_no_state_dict(content, words):
    with pytest.raises(ValueError, match=f'^checkpoint {words}'):
        state_dict_of(content, 'x.pth')
    with pytest.raises(ValueError, match=words.replace("'x.pth'", '^the checkpoint')):
        state_dict_of(content)


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
