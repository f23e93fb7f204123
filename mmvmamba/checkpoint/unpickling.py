"""Safe unpickling of checkpoints with :func:`torch.load`.

With ``weights_only=True`` it still calls the functions on its list with any argument, and nests
objects as deeply as a file asks. Here the pickle is checked before it is loaded, objects of
MMEngine, NumPy and argparse are loaded as inert stand-ins, and the content is copied afterwards.
"""

import argparse
import contextlib
import math
import pickletools
import re
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import IO, Any

import torch
from torch import Tensor
from torch.serialization import add_safe_globals, clear_safe_globals, get_safe_globals

#: The yacs node in the authors' full training files, and the name by which a file asks for it. It
#: is read as a plain dictionary, so that yacs need not be installed.
YACS_NODE: tuple[Callable[..., Any], str] = (OrderedDict, 'yacs.config.CfgNode')

_ENCODE = '_codecs.encode'
#: Functions that set the attributes of a tensor, their last argument.
_WITH_ATTRIBUTES = (
    'torch._tensor._rebuild_from_type_v2',
    'torch._utils._rebuild_parameter_with_state',
)
#: Opcodes that change the object below their operands.
_MUTATING_OPCODES = ('APPEND', 'APPENDS', 'SETITEM', 'SETITEMS', 'BUILD')
_REBUILD = ('torch._utils._rebuild_tensor_v2', 'torch._utils._rebuild_tensor_v3')
#: Functions and classes of torch.load's own list, without those of ``_NOT_DENSE``.
_OF_TORCH = {
    _ENCODE,
    'builtins.complex',
    'builtins.set',
    'collections.Counter',
    'collections.OrderedDict',
    'torch.Size',
    'torch.Tensor',
    'torch.device',
    'torch.storage.UntypedStorage',
    'torch._tensor._rebuild_from_type_v2',
    'torch._utils._rebuild_parameter',
    'torch._utils._rebuild_parameter_with_state',
    'torch._utils._rebuild_tensor',
    'torch._utils._rebuild_tensor_v2',
    'torch._utils._rebuild_tensor_v3',
}
_NOT_DENSE = {
    'torch._utils._rebuild_sparse_tensor': 'a sparse tensor',
    'torch._utils._rebuild_qtensor': 'a quantized tensor',
    'torch._utils._rebuild_nested_tensor': 'a nested tensor',
    'torch._utils._rebuild_meta_tensor_no_storage': 'a tensor on the meta device',
    'torch._utils._rebuild_wrapper_subclass': 'a subclass of Tensor',
}
#: The dtypes and storages of dense tensors.
_DENSE = re.compile(
    r'torch\.(bool|bfloat16|complex(32|64|128)|u?int(8|16|32|64)|float(16|32|64|8_\w+)|'
    r'(Bool|Byte|Char|Short|Int|Long|Half|BFloat16|Float|Double|Complex(Half|Float|Double))Storage)'
)
#: Opcodes that torch.load reads. Others would name classes in ways that are not checked here.
_OPCODES = set(
    'PROTO STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE '
    'SHORT_BINSTRING EMPTY_TUPLE EMPTY_LIST EMPTY_DICT EMPTY_SET TUPLE TUPLE1 TUPLE2 TUPLE3 APPEND '
    'APPENDS SETITEM SETITEMS GLOBAL REDUCE NEWOBJ BUILD BINPERSID BINGET LONG_BINGET BINPUT '
    'LONG_BINPUT'.split()
)
_MAX_SIZE = torch.iinfo(torch.int64).max
_MAX_DEPTH = 100
#: Limit for the items and characters that calls copy, as a multiple of the bytes read so far. Each
#: is in the file once, unless a call takes the same object again.
_MAX_COPIES, _MIN_LIMIT = 2, 1024
_MAX_CHOSEN_KEYS = 10_000
#: Names of modules in Python 2, which files keep.
_PYTHON_2 = {'__builtin__': 'builtins', 'copy_reg': 'copyreg'}
_SCALARS = (type(None), bool, int, float, complex, str, bytes, torch.dtype)
#: NumPy's codes of the types that checkpoints hold, and the sizes of their items in bytes.
_ITEM_SIZES = {f'{kind}{size}': size for kind in 'iuf' for size in (1, 2, 4, 8)} | {'b1': 1}
del _ITEM_SIZES['f1']


class RefusedError(Exception):
    """Raised for a pickle that is not loaded."""


class ForeignNameError(RefusedError):
    """Raised for a pickle that needs a class or function that is not allowed."""

    def __init__(self, name: str) -> None:
        self.name = name if len(name) < 100 and name.isprintable() else ascii(name)[:100]
        super().__init__(f'needs {self.name}')


# ---- the pickle ----


@dataclass
class Pickle:
    """Summary of a pickle.

    Attributes:
        allowed_by_user (set[str]): The names in it that the user allowed with
            :func:`torch.serialization.add_safe_globals`.
        storages (dict[str, int]): Numbers of elements of the tensors' storages by key.
        texts (set[str]): Its strings.
    """

    allowed_by_user: set[str] = field(default_factory=set)
    storages: dict[str, int] = field(default_factory=dict)
    texts: set[str] = field(default_factory=set)


@dataclass(slots=True)
class _Value:
    """Value on the stack of a pickle.

    Attributes:
        depth (int): Levels of nesting.
        constant (str | int, optional): Its value, or the name of a class or function.
        items (list[_Value]): Items of a tuple.
        size (int): Number of items or characters.
    """

    depth: int = 0
    size: int = 0
    constant: Any = None
    items: list['_Value'] = field(default_factory=list)


def check_pickle(file: IO[bytes]) -> Pickle:
    """Check one pickle without building its objects, and leave the file at its end.

    Raises:
        ForeignNameError: If the pickle holds a name that is not allowed.
        RefusedError: If it holds something that :func:`torch.save` does not write, for example
            tuples that are nested so deeply that Python crashes when it hashes them.
    """
    allowed = {_name_of(pair) for pair in get_safe_globals() if _is_of_user(pair)}
    result = Pickle()
    stack: list[_Value] = []
    marks: list[int] = []
    memo: dict[int, _Value] = {}
    keys = _Keys()
    start, copied = file.tell(), 0
    argument: Any
    position: Any
    for opcode, argument, position in pickletools.genops(file):
        if opcode.name not in _OPCODES:
            raise RefusedError(f'opcode {opcode.name} is not allowed')
        if opcode.name == 'MARK':
            marks.append(len(stack))
        elif opcode.name in ('BINPUT', 'LONG_BINPUT'):
            if argument > len(memo):
                raise RefusedError('memo indices must be consecutive')
            memo[argument] = stack[-1]
        elif opcode.name in ('BINGET', 'LONG_BINGET'):
            stack.append(memo[argument])
        elif opcode.name == 'GLOBAL':
            name = _python_3(argument)
            if name in allowed:
                result.allowed_by_user.add(name)
            elif name in _NOT_DENSE:
                raise RefusedError(f'it contains {_NOT_DENSE[name]}, but tensors must be dense')
            elif not _is_known(name):
                raise ForeignNameError(name)
            stack.append(_Value(constant=name))
        else:
            copied += _apply(opcode, argument, stack, marks, keys)
            if copied > _MAX_COPIES * (position - start) + _MIN_LIMIT:
                raise RefusedError('the content is many times larger than the file')
        if opcode.name in ('BINUNICODE', 'SHORT_BINSTRING'):
            result.texts.add(argument)
        elif opcode.name == 'BINPERSID':
            _, _, key, _, numel, *_ = (item.constant for item in stack[-1].items)
            result.storages[key] = numel
    return result


class _Keys:
    """Limit for keys that may have been chosen for their hashes.

    A dictionary of n keys with equal hashes takes n^2 steps. The hashes of strings are random.
    """

    def __init__(self) -> None:
        self._left = _MAX_CHOSEN_KEYS
        self._last: Any = None

    def add(self, key: _Value) -> None:
        if key.depth > 1 or (key.depth and not key.items):
            raise RefusedError('keys must be strings, numbers or tuples of them')
        is_next = isinstance(key.constant, int) and key.constant - 1 == self._last
        self._last = key.constant if isinstance(key.constant, int) else None
        if not isinstance(key.constant, str) and not is_next:
            self.spend(1)

    def spend(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise RefusedError(
                f'it contains more than {_MAX_CHOSEN_KEYS} keys that are not strings'
            )


def _apply(
    opcode: pickletools.OpcodeInfo,
    argument: Any,
    stack: list[_Value],
    marks: list[int],
    keys: _Keys,
) -> int:
    """Replace the operands of an opcode by its result; return the size of what it copies."""
    operands: list[_Value] = []
    copies = 0
    count = len(opcode.stack_before)
    if pickletools.markobject in opcode.stack_before:
        start = marks.pop()
        operands = stack[start:]
        del stack[start:]
        count -= 2  # the mark and the values above it
    if count:
        operands = stack[-count:] + operands
        del stack[-count:]
    if opcode.name in _MUTATING_OPCODES:
        value = operands.pop(0)
        value.size += len(operands)
        if opcode.name == 'BUILD':
            copies = operands[0].size
        if opcode.name.startswith('SETITEM'):
            for key in operands[::2]:
                keys.add(key)
    else:
        value = _Value(constant=argument)
        if isinstance(argument, str):
            value.size = len(argument)
        if opcode.name in ('REDUCE', 'NEWOBJ'):
            function, arguments = operands
            _check_call(function, arguments, keys)
            copies = sum(item.size for item in arguments.items)
        elif opcode.name == 'BINPERSID':
            value.items = operands[0].items
        elif opcode.name.startswith('TUPLE'):
            value.items, value.size = operands, len(operands)
    value.depth = max([value.depth] + [1 + operand.depth for operand in operands])
    if value.depth > _MAX_DEPTH:
        raise RefusedError(f'it is nested more than {_MAX_DEPTH} levels deep')
    stack.extend(value for _ in opcode.stack_after)
    return copies


def _check_call(function: _Value, arguments: _Value, keys: _Keys) -> None:
    """Check the calls that take long, or whose result hides keys from :func:`_apply`."""
    name, items = function.constant, arguments.items
    if function.depth or (arguments.depth and not items):
        raise RefusedError('a call must have a name and a tuple of arguments')
    if name == 'torch.Tensor':
        raise RefusedError('it contains a tensor without values')
    if name in _WITH_ATTRIBUTES and (len(items) != 4 or items[3].depth > 1 or items[3].items):
        raise RefusedError('attributes of a tensor must be strings or numbers')
    if name == _WITH_ATTRIBUTES[0]:
        if items[0].constant not in _REBUILD or items[1].constant != 'torch.Tensor':
            raise RefusedError('it contains a subclass of Tensor, but tensors must be dense')
    if name == _ENCODE and [item.constant for item in items[1:]] != ['latin1']:
        raise RefusedError('bytes must be encoded as latin1')
    if name in ('builtins.set', 'collections.Counter'):
        if arguments.depth > 3:
            raise RefusedError('items of a set must be strings, numbers or tuples of them')
        keys.spend(sum(item.size for item in items))
    if name in (YACS_NODE[1], 'collections.OrderedDict') and (items or arguments.depth):
        raise RefusedError('OrderedDict must be called without arguments')


def _python_3(argument: str) -> str:
    module, _, name = argument.partition(' ')
    return f'{_PYTHON_2.get(module, module)}.{name}'


def _is_known(name: str) -> bool:
    """Return True for names that torch.load reads and for those with stand-ins."""
    return name in _OF_TORCH or name in _STAND_INS or _DENSE.fullmatch(name) is not None


# ---- stand-ins ----


class _State:
    """Stand-in for an object that gets its state after its creation. It keeps the state alone."""

    __slots__ = ('state',)

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Namespace(_State):
    __slots__ = ()


class _HistoryBuffer(_State):
    __slots__ = ()


class _ConfigDict(dict[Any, Any]):
    __slots__ = ()


class _Dtype(_State):
    """Stand-in for numpy.dtype: a code and a byte order."""

    __slots__ = ('code',)

    def __init__(self, code: str, align: bool = False, copy: bool = True) -> None:
        if type(code) is not str or code not in _ITEM_SIZES:
            raise RefusedError(f'NumPy dtype {code!r:.40} is not allowed')
        self.code = code
        self.state = (3, '<')

    def with_byte_order(self) -> str:
        """Return the code with its byte order, e.g. '<f4'."""
        _, order, *fields = self.state
        if order not in ('<', '>', '|', '=') or any(fields[:3]):  # subarray, names, fields
            raise RefusedError('it contains a NumPy dtype with fields')
        return order + self.code


class _Array(_State):
    """Stand-in for the empty array that numpy's _reconstruct returns."""

    __slots__ = ()

    def __init__(self, kind: Any, shape: Any, code: Any) -> None:
        if kind is not _ndarray:
            raise RefusedError('a NumPy array must be an ndarray')


@dataclass
class _Scalar:
    """Stand-in for a scalar of NumPy: its dtype and the bytes of its value."""

    dtype: Any
    data: Any


def _ndarray(*args: Any) -> Any:
    """Stand-in for numpy.ndarray, which files name and never call."""
    raise ForeignNameError('a call to numpy.ndarray')


def _bytes(*args: Any) -> bytes:
    """Stand-in for bytes, which files call for b'' alone."""
    if args:
        raise ForeignNameError('a call to bytes')
    return b''


class _OneCycleParamScheduler(_State):
    __slots__ = ()


class _Method:
    """Stand-in for a method that MMEngine's files hold. An object keeps the one of its class."""

    __slots__ = ()


def _getattr(owner: Any, name: Any) -> _Method:
    """Stand-in for getattr, by which MMEngine's files look up methods."""
    if owner not in (_HistoryBuffer, _OneCycleParamScheduler):
        raise ForeignNameError('builtins.getattr')
    return _Method()


_STAND_INS: dict[str, Callable[..., Any]] = {
    YACS_NODE[1]: YACS_NODE[0],
    'argparse.Namespace': _Namespace,
    'builtins.bytes': _bytes,
    'builtins.getattr': _getattr,
    'mmengine.config.config.ConfigDict': _ConfigDict,
    'mmengine.logging.history_buffer.HistoryBuffer': _HistoryBuffer,
    'mmengine.optim.scheduler.param_scheduler.OneCycleParamScheduler': _OneCycleParamScheduler,
    'numpy.dtype': _Dtype,
    'numpy.ndarray': _ndarray,
    'numpy.core.multiarray._reconstruct': _Array,
    'numpy.core.multiarray.scalar': _Scalar,
    'numpy._core.multiarray._reconstruct': _Array,
    'numpy._core.multiarray.scalar': _Scalar,
}


#: The allowed classes are those of the whole process.
_LOCK = threading.RLock()


@contextlib.contextmanager
def stand_ins() -> Iterator[None]:
    """Allow the stand-ins in :func:`torch.load`, in place of allowed classes of the same names."""
    with _LOCK:
        before = get_safe_globals()
        clear_safe_globals()
        add_safe_globals([pair for pair in before if _is_of_user(pair)])
        add_safe_globals([(stand_in, name) for name, stand_in in _STAND_INS.items()])
        try:
            yield
        finally:
            clear_safe_globals()
            add_safe_globals(before)


def _is_of_user(pair: Any) -> bool:
    """Return True for a class that the user allowed; torch allows some of its own."""
    name = _name_of(pair)
    return name not in _STAND_INS and not name.startswith('torch.')


def _name_of(pair: Any) -> str:
    return pair[1] if isinstance(pair, tuple) else f'{pair.__module__}.{pair.__qualname__}'


# ---- the content ----


class Rebuilder:
    """Copy what :func:`torch.load` has built into new objects.

    Tensors lose hooks and attributes, dictionaries their attributes, so that nothing from the file
    stands in front of a method.

    Args:
        max_bytes (int): Limit for the content without tensors when everything is copied. Shared
            objects let a small file fill the memory.
        max_tensor_bytes (int): Limit for the tensors when everything is copied.
        history_buffer (type, optional): MMEngine's HistoryBuffer. Defaults to None, a dictionary.
        config_dict (type): MMEngine's ConfigDict, or a dictionary in its place.
        keeps_unknown (bool): Whether objects of other classes stay as they are, because the user
            allowed names in this file.
    """

    def __init__(
        self,
        max_bytes: int,
        max_tensor_bytes: int,
        history_buffer: type | None,
        config_dict: type,
        keeps_unknown: bool,
    ) -> None:
        self._bytes_left = max_bytes
        self._tensor_bytes_left = max_tensor_bytes
        self._history_buffer = history_buffer
        self._config_dict = config_dict
        self._keeps_unknown = keeps_unknown
        self._done: dict[int, tuple[Any, int]] = {}  # copies and their bytes by id of the original
        self._parents: set[int] = set()
        self._dtypes: dict[int, torch.dtype] = {}  # by the address of a storage

    def rebuild(self, value: Any) -> Any:
        """Return the copy of a value.

        Raises:
            RefusedError: If it is of a kind that checkpoints do not hold.
        """
        if isinstance(value, _SCALARS):
            self._spend(len(value) if isinstance(value, str | bytes) else 1)
            return value
        if id(value) in self._done:
            copied, size = self._done[id(value)]
            self._spend(size)
            return copied
        if id(value) in self._parents or len(self._parents) > _MAX_DEPTH:
            raise RefusedError('an object contains itself, or is nested too deeply')
        before = self._bytes_left
        self._parents.add(id(value))
        copied = self._rebuilt(value)
        self._parents.remove(id(value))
        self._spend(1)
        self._done[id(value)] = copied, before - self._bytes_left
        return copied

    def _spend(self, size: int) -> None:
        self._bytes_left -= size
        if self._bytes_left < 0:
            raise RefusedError('the content is many times larger than the file')

    def _rebuilt(self, value: Any) -> Any:
        kind = type(value)
        if kind in (dict, OrderedDict, Counter, _ConfigDict):
            return self._dictionary(value)
        if kind in (list, tuple, set):
            return kind(self.rebuild(item) for item in value)
        if kind is torch.Size:
            self._spend(len(value))
            # torch.Size takes integers of any length, and cannot print those beyond int64.
            if not all(abs(size) <= _MAX_SIZE for size in value):
                raise RefusedError('it contains a torch.Size with a number out of range')
            return value
        if kind is torch.device:
            return value
        if kind in (Tensor, torch.nn.Parameter):
            return self._tensor(value)
        if kind in (_Array, _Scalar, _Dtype):
            new = _to_numpy(value)
            self._spend(getattr(new, 'nbytes', 1))
            return new
        if kind is _Namespace:
            return argparse.Namespace(**self._attributes(value))
        if kind is _HistoryBuffer:
            return self._buffer(value)
        if self._keeps_unknown:
            attributes = getattr(value, '__dict__', None)
            if type(attributes) is dict:
                attributes.update({key: self.rebuild(item) for key, item in attributes.items()})
            return value
        name = value.__name__ if callable(value) and hasattr(value, '__name__') else kind.__name__
        raise RefusedError(f'it contains {name} as a value')

    def _dictionary(self, value: dict[Any, Any]) -> dict[Any, Any]:
        kind = self._config_dict if type(value) is _ConfigDict else type(value)
        new = kind()
        # ConfigDict copies what is assigned, in exponential time if parts are shared.
        assign = OrderedDict.__setitem__ if kind is OrderedDict else dict.__setitem__
        for key, item in type(value).items(value):
            if type(item) is _Method:
                continue
            assign(new, self.rebuild(key), self.rebuild(item))
        metadata = getattr(value, '__dict__', {}).get('_metadata')
        if metadata is not None:  # the versions of modules in a state dict
            new._metadata = self.rebuild(metadata)
            if not all(type(module.get('version', 1)) is int for module in new._metadata.values()):
                raise RefusedError('_metadata of a state dict must contain versions')
        return new

    def _tensor(self, value: Tensor) -> Tensor:
        tensor = Tensor.detach(value)
        if tensor.is_neg() or tensor.is_conj():  # by the metadata in the file
            raise RefusedError('it contains a lazily negated or conjugated tensor')
        # Parts of a model may share memory, which copies do not.
        self._tensor_bytes_left -= tensor.numel() * tensor.element_size()
        if self._tensor_bytes_left < 0:
            raise RefusedError('the tensors are many times larger than the file')
        # torch.save writes a storage for one dtype alone, and would refuse this content.
        address = tensor.untyped_storage().data_ptr()
        if address and self._dtypes.setdefault(address, tensor.dtype) != tensor.dtype:
            raise RefusedError('two dtypes share the memory of a tensor')
        return tensor

    def _buffer(self, value: _HistoryBuffer) -> Any:
        state = self._attributes(value)
        if self._history_buffer is None:
            return state
        logs, counts = state['_log_history'], state['_count_history']
        if not logs.ndim == counts.ndim == 1 or logs.dtype.kind == 'b':
            raise RefusedError('a HistoryBuffer must contain two rows of numbers')
        return self._history_buffer(logs, counts, int(state['max_length']))

    def _attributes(self, value: _State) -> dict[str, Any]:
        state = getattr(value, 'state', {})
        if type(state) is not dict or not all(type(key) is str for key in state):
            raise RefusedError('attributes must be a dictionary of names')
        return self.rebuild(state)


def _to_numpy(value: _Array | _Scalar | _Dtype) -> Any:
    import numpy as np  # torch alone does not need it

    if isinstance(value, _Dtype):
        return np.dtype(value.with_byte_order())
    if isinstance(value, _Scalar):
        return _array(np, (), value.dtype, value.data)[()]
    _, shape, dtype, is_fortran, data = value.state
    return _array(np, shape, dtype, data, 'F' if is_fortran else 'C')


def _array(np: Any, shape: Any, dtype: Any, data: Any, order: str = 'C') -> Any:
    """Build an array from bytes after a check of their number."""
    if type(dtype) is not _Dtype or type(data) is not bytes or type(shape) is not tuple:
        raise RefusedError('a NumPy array needs a dtype, a shape and bytes')
    if not all(type(size) is int and size >= 0 for size in shape):
        raise RefusedError(f'it contains a NumPy array of shape {shape!r:.40}')
    if len(data) != math.prod(shape) * _ITEM_SIZES[dtype.code]:
        raise RefusedError(f'it has {len(data)} bytes for a NumPy array of shape {shape}')
    return (
        np.frombuffer(data, dtype.with_byte_order()).reshape(shape, order=order).copy(order=order)
    )
