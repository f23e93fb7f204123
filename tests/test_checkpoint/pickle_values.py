"""Values in pickles: what checkpoints hold, and what their readers do not expect."""

from .pickle_assembler import Build, Call, Name, New, Persistent, Raw

#: Numbers of the storages that :func:`storage` names.
STORAGE_SIZE = 8


def storage(kind='torch.FloatStorage', key='0', size=STORAGE_SIZE):
    return Persistent(('storage', Name(kind), key, 'cpu', size))


def hooks():
    return Call(Name('collections.OrderedDict'), ())


def tensor(key='0', size=(2, 3), stride=(3, 1), offset=0, numbers=STORAGE_SIZE):
    arguments = storage(key=key, size=numbers), offset, size, stride, False, hooks()
    return Call(Name('torch._utils._rebuild_tensor_v2'), arguments)


def layout(name):
    return Call(Name('torch.serialization._get_layout'), (f'torch.{name}',))


def long_tensor(size=(2,)):
    arguments = storage('torch.LongStorage', '1', 4), 0, size, (1,), False, hooks()
    return Call(Name('torch._utils._rebuild_tensor_v2'), arguments)


def rebuilt(function, *arguments):
    return Call(Name(f'torch._utils._rebuild_{function}'), arguments)


#: Every way in which a file can hold a tensor.
TENSORS = dict(
    v1=rebuilt('tensor', storage(), 0, (2, 3), (3, 1)),
    v2=tensor(),
    v3=rebuilt(
        'tensor_v3',
        storage('torch.storage.UntypedStorage', size=4 * STORAGE_SIZE),
        *(0, (2, 3), (3, 1), False, hooks(), Name('torch.int32')),
    ),
    parameter=rebuilt('parameter', tensor(), True, hooks()),
    parameter_with_state=rebuilt('parameter_with_state', tensor(), True, hooks(), {'a': 1}),
    new_parameter=New(Name('torch.nn.parameter.Parameter'), (tensor(), False)),
    built_parameter=Build(
        New(Name('torch.nn.parameter.Parameter'), (tensor(),)), (tensor(), True, hooks())
    ),
    old=Build(New(Name('torch.FloatTensor'), ()), (storage(), 0, (2, 3), (3, 1))),
    called=Call(Name('torch.FloatTensor'), (1000,)),
    new=New(Name('torch.Tensor'), (1000,)),
    subclass=Call(
        Name('torch._tensor._rebuild_from_type_v2'),
        (
            Name('torch._utils._rebuild_tensor_v2'),
            Name('torch.Tensor'),
            tensor().arguments,
            {'grad': 3},
        ),
    ),
    sparse=rebuilt(
        'sparse_tensor',
        layout('sparse_coo'),
        (long_tensor((1, 2)), tensor(size=(2,), stride=(1,)), (5,), True),
    ),
    compressed=rebuilt(
        'sparse_tensor',
        layout('sparse_csr'),
        (long_tensor(), long_tensor((1,)), tensor(size=(1,), stride=(1,)), (1, 3)),
    ),
    new_sparse=New(Name('torch.sparse.FloatTensor'), (long_tensor((1, 2)), tensor(), (900,))),
    quantized=rebuilt(
        'qtensor',
        storage('torch.QInt8Storage'),
        *(0, (2, 3), (3, 1), (Name('torch.per_tensor_affine'), 0.5, 1), False, hooks()),
    ),
    meta=rebuilt('meta_tensor_no_storage', Name('torch.float32'), (2, 3), (3, 1), False),
    nested=rebuilt('nested_tensor', tensor(), long_tensor(), long_tensor(), long_tensor()),
    wrapper=rebuilt(
        'wrapper_subclass',
        *(Name('torch.Tensor'), Name('torch.float32'), (2, 3), (3, 1), 0),
        *(layout('strided'), Call(Name('torch.device'), ('cpu',)), False),
    ),
    complex=rebuilt('tensor_v2', storage('torch.ComplexFloatStorage'), 0, (4,), (1,), False, {}),
    half=rebuilt('tensor_v2', storage('torch.HalfStorage'), 0, (4,), (1,), False, hooks()),
    bool=rebuilt('tensor_v2', storage('torch.BoolStorage'), 0, (8,), (1,), False, hooks()),
)


def dtype(name='f8', state=(3, '<', None, None, None, -1, -1, 0)):
    return Build(Call(Name('numpy.dtype'), (name, False, True)), state)


def array(shape=(2,), kind=None, data=bytes(16), core='numpy._core'):
    empty = Call(Name(f'{core}.multiarray._reconstruct'), (Name('numpy.ndarray'), (0,), b'b'))
    return Build(empty, (1, shape, kind or dtype(), False, data))


def scalar(kind=None, data=bytes(8), core='numpy._core'):
    return Call(Name(f'{core}.multiarray.scalar'), (kind or dtype(), data))


OBJECTS = dtype('O', (3, '|', None, None, None, -1, -1, 63))
STRUCTURE = dtype('V8', (3, '|', None, ('a',), {'a': (dtype(), 0)}, 8, 1, 16))
SUBARRAY = dtype('V16', (3, '|', (dtype(), (2,)), None, None, 16, 8, 0))
POINTERS = Call(Name('numpy.ndarray'), ((1,), 'O', b'AAAAAAAA'))
#: Every way in which a file can hold something of NumPy.
ARRAYS = dict(
    array=array(),
    array_of_numpy_1=array(core='numpy.core'),
    scalar=scalar(),
    scalar_of_numpy_1=scalar(core='numpy.core'),
    float32=scalar(dtype('f4'), bytes(4)),
    flag=scalar(dtype('b1'), b'\1'),
    dtype=dtype(),
    dtype_class=Call(Name('numpy.dtypes.Float64DType'), ()),
    dtype_object=New(Name('numpy.dtypes.Float64DType'), ()),
    pointers=POINTERS,
    followed=Call(Name('collections.OrderedDict'), (POINTERS,)),
    counted=Call(Name('collections.Counter'), (POINTERS,)),
    new=New(Name('numpy.ndarray'), ((1,), 'O', b'AAAAAAAA')),
    objects=array((1,), OBJECTS, b'AAAAAAAA'),
    listed=array((1,), OBJECTS, [Name('os.system')]),
    structured=array((2,), STRUCTURE),
    subarray=array((1,), SUBARRAY),
    raw=array((1,), dtype('V16', (3, '|', None, None, None, 16, 1, 0))),
    dates=array((2,), dtype('M8', (4, '<', None, None, None, -1, -1, 0, ({}, (b'D', 1, 1, 1))))),
    texts=array((2,), dtype('U2', (3, '<', None, None, None, 8, 4, 8))),
    object_scalar=scalar(OBJECTS, b'AAAAAAAA'),
    short=array((200,)),
    negative=array((-1, -2)),
    large=array((2**40,), data=b''),
    strided=Call(Name('numpy.ndarray'), ((10**12,), 'f8', b'A' * 8, 0, (0,))),
    from_numpy=rebuilt('device_tensor_from_numpy', array(), Name('torch.float64'), 'cpu', False),
)

CONFIG = Name('mmengine.config.config.ConfigDict')
BUFFER = Name('mmengine.logging.history_buffer.HistoryBuffer')
METHODS = {
    name: Call(Name('__builtin__.getattr'), (BUFFER, name))
    for name in ('min', 'max', 'current', 'mean')
}
HISTORY = Build(
    New(BUFFER, ()),
    {
        'max_length': 1000000,
        '_log_history': array(),
        '_count_history': array(),
        'statistics_methods': METHODS,
    },
)
#: What training programs save beside tensors.
OTHERS = dict(
    history=HISTORY,
    config=Call(CONFIG, ({'a': Call(CONFIG, ({'b': [1, (2, 3)]},))},)),
    node=Build(New(Name('yacs.config.CfgNode'), ()), {'__immutable__': True}),
    arguments=Build(New(Name('argparse.Namespace'), ()), {'lr': 0.1, 'amp': True}),
    ordered=Build(hooks(), {'_metadata': Call(Name('collections.OrderedDict'), ([['', {}]],))}),
    counter=Call(Name('collections.Counter'), ({'a': 2},)),
    set=Call(Name('__builtin__.set'), ([1, 2, 'a'],)),
    bytes=b'\0\xff',
    bytearray=Call(Name('__builtin__.bytearray'), (b'ab',)),
    complex=Call(Name('__builtin__.complex'), (1.0, 2.0)),
    size=Call(Name('torch.Size'), ([2, 3],)),
    device=Call(Name('torch.device'), ('cpu',)),
    kind=Name('torch.float32'),
    steps={'epoch': 3, 'iter': 2**40, 'loss': 0.5, 'best': None, 'amp': True, 0: 'zero'},
)
VALUES = {**TENSORS, **ARRAYS, **OTHERS}

#: Names that a file may not use, near misses of those that it may, and functions of the worker.
NAMES = [
    *('os.system', 'posix.system', 'nt.system', 'os.popen', 'os.remove', 'os.putenv', 'os._exit'),
    *('subprocess.Popen', 'subprocess.check_output', 'shutil.rmtree', 'socket.socket'),
    *('builtins.eval', 'builtins.exec', 'builtins.open', 'builtins.getattr', 'builtins.setattr'),
    *('__builtin__.eval', '__builtin__.execfile', '__builtin__.getattr', '__builtin__.xrange'),
    *('builtins.__import__', 'builtins.compile', 'builtins.print', 'builtins.object'),
    *('builtins.type', 'builtins.dict', 'builtins.list', 'builtins.str', 'builtins.map'),
    *('__builtin__.set', '__builtin__.bytearray', '__builtin__.complex', '__builtin__.long'),
    *('copyreg._reconstructor', 'copy_reg._reconstructor', 'functools.partial', 'types.CodeType'),
    *('operator.attrgetter', 'operator.methodcaller', 'importlib.import_module', 'runpy.run_path'),
    *('ctypes.string_at', 'pickle.loads', '_pickle.loads', 'marshal.loads', 'io.open', 'sys.exit'),
    *('torch.load', 'torch.jit.load', 'torch.hub.load', 'torch.save', 'torch.from_file'),
    *('torch.storage._load_from_bytes', 'torch.ops.load_library', 'torch.classes.load_library'),
    *('torch.cuda.init', 'torch.set_default_dtype', 'torch.manual_seed', 'torch._C._set_math_sdp'),
    *('torch._utils._import_dotted_name', 'torch._utils._rebuild_tensor_v9', 'torch._utils'),
    *('torch._utils._rebuild_xla_tensor', 'torch.nn.parameter.Buffer', 'torch.nn.Linear'),
    *('torch.FloatStorage', 'torch.storage.TypedStorage', 'torch.storage.UntypedStorage'),
    *('torch.float32', 'torch.bits8', 'torch.quint4x2', 'torch.float8_e4m3fn', 'torch.uint3'),
    *('torch.Tensor', 'torch.cuda.FloatTensor', 'torch.sparse.DoubleTensor', 'torch.BoolTensor'),
    *('torch.distributed.tensor.DTensor', 'torch.nested._internal.nested_tensor.NestedTensor'),
    *('numpy.ndarray', 'numpy.dtype', 'numpy.core.multiarray._reconstruct', 'numpy.fromfile'),
    *('numpy._core.multiarray.scalar', 'numpy.core.multiarray.scalar', 'numpy.load', 'numpy.int64'),
    *('numpy.ndarray.tofile', 'numpy.memmap', 'numpy.matrix', 'numpy.dtypes.ObjectDType'),
    *('numpy.core.numerictypes.typeDict', 'numpy.random._pickle.__randomstate_ctor'),
    *('numpy.testing._private.utils.runstring', 'numpy.f2py.compile'),
    *('collections.OrderedDict', 'collections.Counter', 'collections.defaultdict'),
    *('collections.OrderedDict.fromkeys', 'collections.namedtuple', 'copy.copy'),
    *('collections OrderedDict.items', 'argparse.Namespace', 'argparse.FileType'),
    *('argparse.ArgumentParser', 'Argparse.Namespace'),
    *('mmengine.config.config.Config', 'mmengine.config.config.ConfigDict', 'mmengine.Config'),
    *('mmengine.config.config.Config.fromfile', 'mmengine.logging.history_buffer.HistoryBuffer'),
    *('mmengine.logging.history_buffer.np', 'mmengine.registry.build_from_cfg'),
    *('yacs.config.CfgNode', 'yacs.config.load_cfg', 'yacs.config.CfgNode.load_cfg'),
    *('_codecs.encode', '_codecs.decode', '_codecs.lookup', 'codecs.open', '_codecs encode\0'),
    *('fuzz_canary.call', 'fuzz_canary.Canary', 'fuzz_canary.Canary.method', 'fuzz_canary call'),
    *('', '.', ' ', 'torch.', '.torch', 'torch . float32', 'torch.float32 ', 'a' * 3000),
    *('torch._utils._rebuild_tensor_v2\r', 'tørch.float32', '../../etc/passwd x', '%s%n.{0}'),
]
INTEGERS = [-1, 0, 1, 2, 3, 7, 255, 2**15, 2**31 - 1, 2**31, -(2**31), 2**32, 10**12, 2**61 - 1]
INTEGERS += [2**62, 2**63 - 1, 2**63, -(2**63), 2**64, 10**30, -(10**30), 2**2000]
FLOATS = [0.0, -0.0, 1.5, float('nan'), float('inf'), -float('inf'), 1e308, 5e-324]
TEXTS = ['', 'O', '|O', 'object', 'V8', 'f8', '<f8', '>f8', 'U1000000000', 'M8[s]', 'f8,O']
TEXTS += ['cpu', 'cuda:0', 'cuda:999', 'meta', 'mps', 'xla:1', 'cpu:7', 'hpu', 'privateuseone', '0']
TEXTS += ['latin1', 'punycode', 'idna', 'zip', 'rot13', 'base64', 'unicode_escape', 'no such codec']
TEXTS += ['__class__', '__dict__', 'items', 'state_dict', 'model', 'a\nb', 'a\0b', 'x' * 5000]
TEXTS += [
    '\ud800',
    '\x1b[31m',
    '{0.__class__}',
    '%s%n',
    '../../x',
    'storage',
    'module',
    '\u202e',
    'é' * 300,
]
#: What BUILD may set: names that a reader or a user of the content asks an object for.
ATTRIBUTES = ['items', 'keys', 'get', 'shape', 'dim', 'to', 'detach', '__class__', '__dict__']
ATTRIBUTES += ['_metadata', '__len__', '__setstate__', 'requires_grad', 'data', '_log_history']


def random_name(rng):
    return Name(rng.choice(NAMES))


def random_value(rng, depth=2):
    """Return something that fits nowhere in particular."""
    kind = rng.randrange(12 if depth > 0 else 6)
    if kind < 6:
        values = INTEGERS, FLOATS, TEXTS, [None, True, False], [b'', b'ab', bytes(64)], NAMES
        value = rng.choice(values[kind])
        return Name(value) if kind == 5 else value
    inside = [random_value(rng, depth - 1) for _ in range(rng.randrange(4))]
    if kind == 6:
        return tuple(inside)
    if kind == 7:
        return inside
    if kind == 8:
        return {rng.choice(TEXTS): value for value in inside}
    if kind == 9:
        return rng.choice(list(VALUES.values()))
    if kind == 10:
        return random_call(rng, depth - 1)
    return Raw(bytes([rng.randrange(256)]))


def random_state(rng, depth=2):
    """Return a state for BUILD."""
    state = {rng.choice(ATTRIBUTES): random_value(rng, depth - 1) for _ in range(rng.randrange(4))}
    slots = {rng.choice(ATTRIBUTES): random_value(rng, depth - 1)}
    return rng.choice([state, (state, slots), (None, slots), random_value(rng, depth - 1)])


def random_call(rng, depth=2):
    """Return a call, a new object or a state, of any name and arguments."""
    known = [part.function for part in VALUES.values() if isinstance(part, Call)]
    function = random_name(rng) if rng.random() < 0.4 else rng.choice(known)
    arguments = tuple(random_value(rng, depth - 1) for _ in range(rng.randrange(5)))
    if rng.random() < 0.1:
        arguments = random_value(rng, depth - 1)
    instance = rng.choice([Call, Call, New])(function, arguments)
    if rng.random() < 0.2:
        instance = rng.choice(list(VALUES.values()))
    return Build(instance, random_state(rng, depth)) if rng.random() < 0.3 else instance
