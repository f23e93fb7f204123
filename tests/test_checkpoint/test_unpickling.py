"""Checks of pickles, and the objects that are built of them."""

import argparse
import collections
import concurrent.futures
import fractions
import io
import pickle
import struct
import zipfile

import numpy as np
import pytest
import torch

from mmvmamba.checkpoint import read_local_checkpoint


@pytest.fixture(autouse=True)
def safe_globals_of_its_own():
    before = torch.serialization.get_safe_globals()
    yield
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(before)


def read(content, **arguments):
    """Read what torch.save writes of ``content``."""
    file = io.BytesIO()
    torch.save(content, file)
    return read_local_checkpoint(file, **arguments)


def read_pickle(pickled):
    """Read a checkpoint with this pickle."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w') as archive:
        for name, data in (('data.pkl', pickled), ('byteorder', b'little'), ('version', b'3')):
            archive.writestr(f'archive/{name}', data)
    return read_local_checkpoint(file)


class Reduced:
    """An object whose pickle calls a function."""

    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


def text(value):
    data = value.encode()
    return b'X' + struct.pack('<I', len(data)) + data


def called(name, *arguments):
    """Assemble the call of a function by its name, e.g. 'os system'."""
    return b'c' + name.replace(' ', '\n').encode() + b'\n(' + b''.join(arguments) + b'tR'


def program(*parts):
    return b'\x80\x02' + b''.join(parts) + b'.'


# ---- names ----


@pytest.mark.parametrize(
    'name',
    [
        'os system',
        'builtins eval',
        '__builtin__ open',
        'builtins bytearray',
        'numpy.ndarray tofile',
        'collections defaultdict',
        'torch FloatTensor',
        'torch qint8',
        'torch QInt8Storage',
    ],
)
def test_names_that_are_not_on_the_list_are_refused(name):
    expected = name.replace(' ', '.').replace('__builtin__', 'builtins')
    with pytest.raises(ValueError, match=f'needs {expected}, which may not be loaded from a file'):
        read_pickle(program(called(name, text('id'))))


def test_names_are_printed_without_control_characters():
    with pytest.raises(ValueError, match=r'needs .*x1b\[31m.*, which') as raised:
        read_pickle(program(called('os \x1b[31m')))
    assert '\x1b' not in str(raised.value)


@pytest.mark.parametrize('opcode', [b'\x93', b'\x95' + b'\0' * 8, b'\x82\x01', b'(ios\nsystem\n'])
def test_other_ways_to_name_a_class_are_refused(opcode):
    with pytest.raises(ValueError, match=r'opcode \w+ is not allowed'):
        read_pickle(program(text('os'), text('system'), opcode))


def test_attributes_of_tensors_are_dropped():
    """FSDP's state dicts have some."""
    tensor, parameter = torch.ones(2), torch.nn.Parameter(torch.ones(2))
    tensor._has_been_cloned = parameter._no_weight_decay = True
    for new in read([tensor, parameter]):
        assert torch.equal(new, torch.ones(2))
        assert not vars(new)


@pytest.mark.parametrize('value', [[1], torch.ones(1), collections.OrderedDict])
def test_other_attributes_of_tensors_are_refused(value):
    for tensor in (torch.ones(2), torch.nn.Parameter(torch.ones(2))):
        tensor.data_ptr = value
        with pytest.raises(ValueError, match=r'attributes of a tensor|as a value|TypeError'):
            read({'a': tensor, 'b': value})


def test_tensors_without_values_are_refused():
    for opcode in (b'\x81', b'R'):
        with pytest.raises(ValueError, match='a tensor without values'):
            read_pickle(program(b'ctorch\nTensor\nK\x02\x85', opcode))


class Subclass(torch.Tensor):
    pass


@pytest.mark.parametrize(
    ('content', 'kind'),
    [
        (torch.eye(3).to_sparse(), 'sparse'),
        (torch.eye(3).to_sparse_csr(), 'sparse'),
        (torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), 'quantized'),
        (torch.ones(3, device='meta'), 'meta'),
        (torch.nested.nested_tensor([torch.ones(2)]), 'nested'),
    ],
    ids=['coo', 'csr', 'quantized', 'meta', 'nested'],
)
def test_tensors_that_are_not_dense_are_refused(content, kind):
    with pytest.raises(ValueError, match=f'is rejected: it contains .*{kind}.*must be dense'):
        read({'model': {'a': content}})


def test_subclasses_of_tensor_are_refused():
    tensor = torch.ones(3).as_subclass(Subclass)
    with pytest.raises(ValueError, match=r'needs .*\.Subclass, which may not be loaded'):
        read({'a': tensor})
    torch.serialization.add_safe_globals([Subclass])
    with pytest.raises(
        ValueError, match='it contains a subclass of Tensor, but tensors must be dense'
    ):
        read({'a': tensor})


@pytest.mark.parametrize(
    'dtype',
    [torch.float16, torch.bfloat16, torch.float64, torch.complex64, torch.int8, torch.uint16]
    + [torch.bool, torch.float8_e4m3fn],
)
def test_dense_tensors_of_every_dtype(dtype):
    tensor = torch.tensor([[0.0, 1.0, 0.5]]).to(dtype).T
    new = read({'a': tensor, 'p': torch.nn.Parameter(torch.ones(2))})
    assert new['a'].dtype == dtype
    assert new['a'].stride() == tensor.stride()
    assert torch.equal(new['a'].T.view(torch.uint8), tensor.T.view(torch.uint8))
    assert not new['p'].requires_grad


# ---- NumPy ----


@pytest.mark.parametrize(
    'value',
    [
        np.arange(6.0).reshape(2, 3),
        np.asfortranarray(np.arange(6, dtype='>i4').reshape(2, 3)),
        np.array([True]),
        np.array(3, dtype=np.uint8),
        np.zeros((0, 2), dtype=np.float16),
        np.float32(0.5),
        np.int64(3),
        np.dtype('float16'),
    ],
    ids=repr,
)
def test_arrays_and_numbers_of_numpy(value):
    new = read({'x': (value, value)})['x'][0]
    assert type(new) is type(value)
    np.testing.assert_array_equal(new, value)
    if not isinstance(value, np.dtype):
        assert new.dtype == value.dtype
        assert getattr(new, 'flags', value.flags).writeable == value.flags.writeable


def array(shape, dtype, data):
    """A pickle of NumPy with this state."""
    reduced = np.ndarray(0).__reduce__()
    return Reduced(*reduced[:2], (1, shape, dtype, False, data))


@pytest.mark.parametrize(
    ('value', 'words'),
    [
        (Reduced(np.ndarray, ((1,), 'O', b'A' * 8)), r'needs a call to numpy\.ndarray'),
        (np.array([None]), "NumPy dtype 'O8'"),
        (np.array(['text']), "NumPy dtype 'U4'"),
        (np.zeros(1, dtype=[('a', 'f4')]), "NumPy dtype 'V4'"),
        (array((2,), np.dtype('f4'), b'A' * 4), r'4 bytes for a NumPy array of shape \(2,\)'),
        (array((-1,), np.dtype('f4'), b''), r'a NumPy array of shape \(-1,\)'),
        (array((1 << 62, 8), np.dtype('f4'), b''), r'0 bytes for a NumPy array'),
        (array((1,), 'f4', b'A' * 4), r'needs a dtype, a shape and bytes'),
        (array((1,), np.dtype('f4'), [1.0]), r'needs a dtype, a shape and bytes'),
        (Reduced(np.float64(0).__reduce__()[0], (np.dtype('f8'), b'A')), '1 bytes for a NumPy'),
    ],
)
def test_memory_and_dtypes_from_the_file_are_checked(value, words):
    with pytest.raises(ValueError, match=words):
        read({'x': value})


def test_pointers_from_the_file_are_not_followed():
    """OrderedDict would iterate over an array of eight bytes that are taken for an object."""
    pointers = called('numpy ndarray', b'K\x01\x85', text('O'), text('A' * 8))
    with pytest.raises(ValueError, match='OrderedDict must be called without arguments'):
        read_pickle(program(called('collections OrderedDict', pointers)))


# ---- MMEngine and argparse ----


@pytest.fixture
def history_buffer():
    return pytest.importorskip('mmengine.logging').HistoryBuffer


def test_history_buffers(history_buffer):
    buffer = history_buffer([1.0, 2.0], [1, 1], max_length=9)
    new = read({'x': buffer, 'y': history_buffer()}, history_buffer=history_buffer)
    assert new['x'].mean() == 1.5
    assert vars(new['x']).keys() == vars(history_buffer([1.0], [1])).keys()
    assert (new['x'].max_length, len(new['y'].data[0])) == (9, 0)
    state = read({'x': buffer})['x']  # without MMEngine
    np.testing.assert_array_equal(state['_log_history'], [1.0, 2.0])


def test_a_file_does_not_change_the_statistics_of_history_buffers(history_buffer):
    buffer = history_buffer([1.0], [1])
    buffer.__dict__['_statistics_methods'] = {'mean': history_buffer.max}
    before = dict(history_buffer._statistics_methods)
    new = read({'x': buffer}, history_buffer=history_buffer)['x']
    assert history_buffer._statistics_methods == before
    assert '_statistics_methods' not in vars(new)


@pytest.mark.parametrize(
    'logs', [np.ones((1, 1)), np.array(1.0), np.array([True]), [1.0], None], ids=repr
)
def test_history_buffers_hold_rows_of_numbers(history_buffer, logs):
    buffer = history_buffer([1.0], [1])
    buffer._log_history = logs
    with pytest.raises(ValueError, match='is rejected|cannot be read'):
        read({'x': buffer}, history_buffer=history_buffer)


def test_methods_in_the_state_of_a_schedule():
    """A scheduler that loads the state keeps its own method."""
    optim = pytest.importorskip('mmengine.optim')
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    scheduler = optim.OneCycleLR(optimizer, eta_max=1.0, total_steps=9)
    for _ in range(3):
        scheduler.step()
    state = read(scheduler.state_dict())
    assert 'anneal_func' not in state
    other = optim.OneCycleLR(optimizer, eta_max=1.0, total_steps=9)
    other.load_state_dict(state)
    assert other.state_dict() == scheduler.state_dict()


def test_no_attribute_of_anything_else_is_looked_up():
    for owner in (np.ndarray, argparse.Namespace):
        with pytest.raises(ValueError, match=r'needs builtins\.getattr'):
            read({'x': Reduced(getattr, (owner, '__init__'))})


def test_dictionaries_of_a_config():
    """The meta information of a dataset in a file of MMEngine, which need not be installed."""
    config = pytest.importorskip('mmengine.config')
    meta = dict(
        classes=('a',), skeleton=config.ConfigDict({0: dict(swap=[config.ConfigDict(y=1)])})
    )
    content = read(dict(meta=meta))['meta']
    assert content == meta
    assert not isinstance(content['skeleton'], config.ConfigDict)
    content = read(dict(meta=meta), config_dict=config.ConfigDict)['meta']
    assert pickle.dumps(content) == pickle.dumps(meta)


def test_namespaces():
    new = read({'args': argparse.Namespace(lr=0.1, sizes=[1, 2]), 'empty': argparse.Namespace()})
    assert new == {'args': argparse.Namespace(lr=0.1, sizes=[1, 2]), 'empty': argparse.Namespace()}


# ---- containers and their attributes ----


def test_containers():
    content = {
        'a': [1, 2.5, None, True, 3j, 'x', b'y', b''],
        1: collections.OrderedDict(b=(1, (2,))),
        2: collections.Counter((8, 11)),
        None: {1, 2},
        'torch': (torch.float16, torch.Size([1, 2]), torch.device('cpu')),
    }
    shared = [1]
    new = read({**content, 'shared': (shared, shared)})
    assert new['shared'][0] is new['shared'][1]
    del new['shared']
    assert new == content


def test_versions_of_a_state_dict():
    state = torch.nn.BatchNorm2d(2).state_dict()
    assert read(state)._metadata == state._metadata
    state._metadata = {'': {'version': 'two'}}
    with pytest.raises(ValueError, match='_metadata of a state dict must contain versions'):
        read(state)


def test_attributes_of_the_file_do_not_hide_methods():
    empty = b'ccollections\nOrderedDict\n)R'
    pickled = program(empty, b'}', text('items'), b'K\x05s', b'b', text('a'), b'K\x01s')
    assert list(read_pickle(pickled).items()) == [('a', 1)]


def test_hooks_of_a_tensor_are_dropped():
    tensor = torch.ones(2, requires_grad=True)
    tensor._backward_hooks = collections.OrderedDict({0: torch.device})
    new = read({'a': Reduced(*tensor.detach().__reduce_ex__(2)[:1], hooked(tensor))})['a']
    assert new._backward_hooks is None
    assert not new.requires_grad


def hooked(tensor):
    storage, offset, size, stride, *_ = tensor.detach().__reduce_ex__(2)[1]
    return storage, offset, size, stride, True, collections.OrderedDict({0: torch.device})


def test_classes_and_functions_are_not_values():
    for name in ('collections OrderedDict', 'torch._utils _rebuild_tensor_v2', 'numpy ndarray'):
        with pytest.raises(ValueError, match='as a value'):
            read_pickle(program(b'c', name.replace(' ', '\n').encode(), b'\n'))


class Trusted:
    def __init__(self, value):
        self.value = value


def test_classes_that_the_user_allows_hold_what_is_read():
    torch.serialization.add_safe_globals([Trusted])
    new = read({'x': Trusted([np.float64(1.5)])})['x']
    assert type(new) is Trusted
    assert type(new.value[0]) is np.float64


def test_stand_ins_come_before_classes_that_were_allowed():
    """Allowing numpy.ndarray is a common advice; it would let a file choose its memory."""
    reconstruct = np.ndarray(0).__reduce__()[0]
    torch.serialization.add_safe_globals([np.ndarray, np.dtype, reconstruct, getattr])
    with pytest.raises(ValueError, match=r'needs a call to numpy\.ndarray'):
        read({'x': Reduced(np.ndarray, ((1,), 'O', b'A' * 8))})
    with pytest.raises(ValueError, match=r'needs builtins\.getattr'):
        read({'x': Reduced(getattr, (np.ndarray, 'tofile'))})


def test_classes_that_torch_allows_are_not_those_of_the_user():
    """DeviceMesh would initialize the process group of a distributed run."""
    torch.serialization.add_safe_globals([(fractions.Fraction, 'torch.distributed.DeviceMesh')])
    pickled = program(called('torch.distributed DeviceMesh', text('cpu'), b']'))
    with pytest.raises(ValueError, match=r'needs torch.distributed.DeviceMesh, .* from a file$'):
        read_pickle(pickled)


def test_threads():
    """The allowed classes of the process are as before, and each thread reads its own file."""
    before = set(torch.serialization.get_safe_globals())
    contents = [{'x': np.float64(i), 'args': argparse.Namespace(i=i)} for i in range(4)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert list(pool.map(read, contents * 20)) == contents * 20
    assert set(torch.serialization.get_safe_globals()) == before


# ---- time and memory ----


@pytest.mark.parametrize(
    ('parts', 'words'),
    [
        ([b')' + b'\x85' * 300_000], 'nested more than 100 levels deep'),
        ([b'}', b')' + b'\x85' * 300_000, b'Ns'], 'nested more than 100 levels deep'),
        ([b']' * 300_000, b'a' * 299_999], 'nested more than 100 levels deep'),
        ([b'}', b'K\x01\x85\x85', b'Ns'], 'keys must be strings, numbers or tuples of them'),
        ([called('builtins set', b'](', b'K\x01\x85\x85', b'e')], 'items of a set'),
        ([b'K\x01', b'r\xff\xff\xff\x7f'], 'memo indices must be consecutive'),
        ([called('collections OrderedDict', b'](', b'K\x01N\x86', b'e')], 'without arguments'),
        ([called('_codecs encode', text('x'), text('punycode'))], 'encoded as latin1'),
        ([called('builtins bytes', b'J' + b'\xff\xff\xff\x7f')], 'needs a call to bytes'),
        ([b']q\x00h\x00a'], 'an object contains itself'),
        ([b'K\x01\x85', b'K\x02\x85', b'R'], 'must have a name and a tuple'),
        ([b'ctorch\nSize\n', b']K\x02a', b'R'], 'must have a name and a tuple'),
    ],
)
def test_pickles_that_crash_or_stall_python_are_refused(parts, words):
    with pytest.raises(ValueError, match=words):
        read_pickle(program(*parts))


LARGE = b']q\x00(' + b'K\x01' * 5000 + b'e'


@pytest.mark.parametrize(
    'parts',
    [
        (LARGE, called('builtins set', b'h\x00') * 20),
        (text('a' * 5000), b'q\x00', called('_codecs encode', b'h\x00', text('latin1')) * 20),
        (b'}q\x00(' + b''.join(b'M' + struct.pack('<H', i) + b'N' for i in range(5000)) + b'u',)
        + (called('mmengine.config.config ConfigDict', b'h\x00') * 20,),
        (b'(' + b'K\x01' * 5000 + b'tq\x00', called('torch Size', b'h\x00') * 20),
        (b'}q\x00(' + b''.join(text(f'{i:04}') + b'N' for i in range(5000)) + b'u',)
        + (b'ccollections\nOrderedDict\n)Rh\x00b' * 20,),
    ],
    ids=['set', 'bytes', 'ConfigDict', 'Size', 'state'],
)
def test_calls_that_copy_the_same_object_again_are_refused(parts):
    with pytest.raises(ValueError, match='many times larger than the file|more than 10000 keys'):
        read_pickle(program(b'(', *parts, b't'))


@pytest.mark.parametrize('size', [2**63, -(2**63), 2**1000], ids=['2^63', '-2^63', '2^1000'])
def test_sizes_that_torch_cannot_print_are_refused(size):
    assert read_pickle(pickle.dumps(torch.Size([2**63 - 1, 0]), 2)) == (2**63 - 1, 0)
    with pytest.raises(ValueError, match='torch.Size with a number out of range'):
        read_pickle(pickle.dumps(torch.Size([3, size]), 2))


def test_two_dtypes_of_one_memory_are_refused():
    tensor = torch.ones(4)
    storage, *arguments = tensor.__reduce_ex__(2)[1]
    other = torch._utils._rebuild_tensor_v3
    same = Reduced(other, (storage, 0, (4,), (1,), False, {}, torch.int32))
    with pytest.raises(ValueError, match='two dtypes share the memory'):
        read({'a': tensor, 'b': same})


def test_content_that_grows_when_it_is_copied_is_refused():
    laughs = ['ha'] * 10
    for _ in range(8):
        laughs = [laughs] * 10
    with pytest.raises(ValueError, match='many times larger than the file'):
        read({'x': laughs})
    with pytest.raises(ValueError, match='many times larger than the file'):
        read({'x': torch.ones(1).expand(1 << 40)})
    tied, position = torch.ones(100_000), torch.arange(2048).expand(2048, -1)
    content = {str(i): tied.view(1, -1) for i in range(20)} | {'position': position}
    assert read(content)['position'].equal(position)


@pytest.mark.parametrize('key', [0.5, (1, 'a'), 1 << 200, 2**61 - 1, -7], ids=repr)
def test_keys(key):
    content = {'dict': {key: 1}, 'set': {key}, 'state': {i: i for i in range(20_000)}}
    assert read(content) == content


@pytest.mark.parametrize(
    'content',
    [
        {i * (2**61 - 1): 0 for i in range(10_001)},
        {i * 5 + 1: 0 for i in range(10_001)},
        {(i, -1): 0 for i in range(10_001)},
        set(range(10_001)),
    ],
    ids=['hashes', 'probes', 'tuples', 'set'],
)
def test_many_keys_that_may_be_chosen_for_their_hashes_are_refused(content):
    """In a dictionary of n keys with equal hashes each of n steps takes n more."""
    with pytest.raises(ValueError, match='more than 10000 keys that are not strings'):
        read({'x': content})
