"""Safe reading of checkpoint files."""

import contextlib
import hashlib
import io
import logging
import os
import re
import zipfile
from collections.abc import Iterator, Mapping
from typing import IO, Any

import torch
from torch import Tensor

from .redaction import redacted
from .tensors import shown, unusable
from .unpickling import ForeignNameError, Rebuilder, RefusedError, check_pickle, stand_ins

_logger = logging.getLogger(__name__)
#: `-<hash>` at the end of a name, as of torch.hub and of publish_model.py, and the end of a UUID.
_HASH = re.compile(r'-([0-9a-f]{8,64})\.\w+$')
_UUID = re.compile(r'[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\.\w+$')
_ZIP = b'PK\x03\x04'
#: The first pickle of a file that torch.save wrote before it wrote zip files.
_LEGACY = b'\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.'
#: Limit for the bytes of the content, as a multiple of the file's size, and for small files.
_MAX_GROWTH, _MIN_LIMIT = 10, 1 << 20
_MAX_TENSOR_GROWTH, _MIN_TENSOR_LIMIT = 64, 1 << 30
_CHUNK = 1 << 20
_PAGE_START = 1 << 10


class _DamagedError(Exception):
    """Raised for a file whose content does not match its checksums or the hash in its name.

    An HTML page in the place of a checkpoint counts as well.
    """


def read_local_checkpoint(
    file: str | os.PathLike[str] | IO[bytes],
    map_location: Any = 'cpu',
    *,
    name: str | None = None,
    history_buffer: type | None = None,
    config_dict: type = dict,
    skip_data: bool = False,
    warn_unverified: bool = True,
) -> Any:
    """Read a checkpoint of the authors, of MMEngine or of timm, or a safetensors file.

    Only tensors, numbers, containers, objects that MMEngine's runner saves, and classes allowed
    with :func:`torch.serialization.add_safe_globals` are built. Checksums are verified: a file that
    ends in ``-<hash>`` is compared with the first digits of its SHA-256, any other zip file with
    its own checksums. For a file that has neither, a warning is logged.

    Args:
        file (str | PathLike | IO): A path, or an open file, which is read from its beginning.
        map_location (Any): As in :func:`torch.load`; for a safetensors file, only a device or its
            name; otherwise the file is read into CPU memory. Defaults to 'cpu'.
        name (str, optional): The name of an open file in messages. Defaults to None.
        history_buffer (type, optional): MMEngine's HistoryBuffer, to read its content. Defaults to
            None, a dictionary in its place.
        config_dict (type): MMEngine's ConfigDict, likewise.
        skip_data (bool): Whether to leave the values of tensors uninitialized and to verify no
            checksums, which is fast if only the other content is needed. Defaults to False.
        warn_unverified (bool): Whether to log the warning. Defaults to True.

    Raises:
        FileNotFoundError: If the file does not exist.
        TypeError: If ``file`` is neither a path nor an open file.
        ValueError: If the file is truncated or damaged, is not a checkpoint, or needs a class that
            is not allowed.
    """
    warn = warn_unverified and not skip_data
    if not isinstance(file, str | os.PathLike) and hasattr(file, 'read'):
        name = name or str(getattr(file, 'name', 'the open file'))
        with _explained(name):
            opened = file if file.seekable() else io.BytesIO(file.read())
            return _read(opened, name, map_location, history_buffer, config_dict, skip_data, warn)
    name = name or redacted(as_filename(file))
    path = os.path.expanduser(as_filename(file))
    if not os.path.isfile(path):  # a folder, or a pipe, which would be waited for
        raise FileNotFoundError(f'checkpoint {name!r} does not exist or is not a file')
    with _explained(name), open(path, 'rb') as opened:
        return _read(opened, path, map_location, history_buffer, config_dict, skip_data, warn)


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turn any error into a ValueError that names the checkpoint."""
    try:
        yield
    except torch.OutOfMemoryError:  # of a GPU
        raise
    except ForeignNameError as error:
        advice = (
            '. If you trust the file, allow the class with torch.serialization.add_safe_globals '
            'first'
        )
        raise ValueError(
            f'checkpoint {name!r} needs {error.name}, which may not be loaded from a file'
            f'{"" if error.name.startswith("torch.") else advice}'
        ) from error
    except RefusedError as error:
        raise ValueError(f'checkpoint {name!r} is rejected: {_printable(str(error))}') from error
    except _DamagedError as error:
        raise ValueError(f'checkpoint {name!r} {error}') from error
    except Exception as error:  # a file can make torch.load and NumPy raise anything
        # torch.load puts a page in front of its own message.
        text = str(error).rpartition('WeightsUnpickler error:')[2].strip()
        reason = f'{type(error).__name__}: {text}'.splitlines()[0].split('. ')[0]
        raise ValueError(
            f'checkpoint {name!r} cannot be read; it may be truncated or not a checkpoint: '
            f'{_printable(reason)}'
        ) from error


def _printable(text: str) -> str:
    return ascii(text)[1:-1][:200]


def _read(
    file: IO[bytes],
    filename: str,
    map_location: Any,
    history_buffer: type | None,
    config_dict: type,
    skip_data: bool,
    warn_unverified: bool,
) -> Any:
    is_verified = skip_data or _verify_hash(file, filename)
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    start = file.read(len(_LEGACY))
    file.seek(0)
    if start.startswith(_ZIP):
        pickled, has_checksums = _verify_zip(file, size, skip_checksums=is_verified)
        allowed_by_user = check_pickle(io.BytesIO(pickled)).allowed_by_user
    elif start == _LEGACY:
        has_checksums = False
        allowed_by_user = _verify_legacy(file, size)
    elif start[7:9] == b'\0{':  # the end of the header's size, and its beginning
        has_checksums = False
    else:
        page = file.read(_PAGE_START).lstrip().lower()
        if page.startswith(b'<') and b'html' in page:
            raise _DamagedError(
                'cannot be read: it is an HTML page, such as a login page, not a checkpoint'
            )
        raise ValueError('its first bytes do not match any checkpoint format')
    if warn_unverified and not is_verified and not has_checksums:
        _logger.warning(
            'checkpoint %r has no checksums, so corruption cannot be detected. To have it '
            'verified, append -<first 8 digits of its SHA-256> to its name',
            os.path.basename(filename),
        )
    file.seek(0)
    if start[7:9] == b'\0{':
        return _load_safetensors(file, map_location)
    with stand_ins(), torch.serialization.skip_data() if skip_data else contextlib.nullcontext():
        content = torch.load(file, map_location, weights_only=True, mmap=False)
    limit = max(_MAX_GROWTH * size, _MIN_LIMIT)
    tensor_limit = _MAX_TENSOR_GROWTH * size + _MIN_TENSOR_LIMIT
    rebuilder = Rebuilder(limit, tensor_limit, history_buffer, config_dict, bool(allowed_by_user))
    return rebuilder.rebuild(content)


def _verify_hash(file: IO[bytes], filename: str) -> bool:
    """Compare a file with the hash in its name; return False if there is none.

    Decimal digits alone may be a date or a number. They count as a hash if they are the file's.
    """
    expected = _HASH.search(filename)
    if expected is None or _UUID.search(filename):
        return False
    digest = hashlib.sha256()
    file.seek(0)
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
    is_equal = digest.hexdigest().startswith(expected[1])
    if not is_equal and not expected[1].isdecimal():
        raise _DamagedError(
            f'does not match the hash in its name: its SHA-256 starts with '
            f'{digest.hexdigest()[:8]}, but the name ends in {expected[1]}. Download it again, or '
            'rename it if the name does not end in a hash'
        )
    return is_equal


def _verify_zip(file: IO[bytes], size: int, skip_checksums: bool) -> tuple[bytes, bool]:
    """Verify the structure and checksums of a zip file.

    Returns:
        tuple[bytes, bool]: The pickle, and whether the file has checksums;
        :func:`torch.serialization.set_crc32_options` turns them off.
    """
    with zipfile.ZipFile(file) as archive:
        records = archive.infolist()
        # torch.load's own zip reader ignores case. It must not find another file than this one.
        names = {record.orig_filename.lower() for record in records}
        if len(names) < len(records) or len({name.partition('/')[0] for name in names}) != 1:
            raise zipfile.BadZipFile('names of records are not unique or not in one folder')
        if any(record.compress_type != zipfile.ZIP_STORED for record in records):
            raise zipfile.BadZipFile('a record is compressed')
        if archive.comment or sum(record.file_size for record in records) > size:
            raise zipfile.BadZipFile('records overlap, or the archive has a comment')
        pickles = [r for r in records if r.orig_filename.partition('/')[2] == 'data.pkl']
        if len(pickles) != 1 or any(name.endswith('/constants.pkl') for name in names):
            raise zipfile.BadZipFile('data.pkl is missing, or this is a TorchScript archive')
        has_checksums = any(record.CRC for record in records)
        if not has_checksums:
            for record in records:
                del record.CRC
        elif not skip_checksums:
            for record in records:
                _verify_record(archive, record)
        return archive.read(pickles[0]), has_checksums


def _verify_record(archive: zipfile.ZipFile, record: zipfile.ZipInfo) -> None:
    try:
        with archive.open(record) as content:
            while content.read(_CHUNK):
                pass
    except zipfile.BadZipFile as error:
        raise _DamagedError(f'is damaged: {str(error)[:80]}. Download or copy it again') from error


def _verify_legacy(file: IO[bytes], size: int) -> set[str]:
    """Verify the pickles of a file of before 2020 and return the names that the user allowed.

    After the first, which is the same in all files, they are a version, the sizes of types, the
    content, and the keys of the storages that follow. The memory of a storage that does not follow
    would stay uninitialized.
    """
    file.seek(len(_LEGACY))
    *_, content, keys = (check_pickle(file) for _ in range(4))
    if not content.storages.keys() <= keys.texts or sum(map(abs, content.storages.values())) > size:
        raise RefusedError('tensors without data')
    return content.allowed_by_user


def _load_safetensors(file: IO[bytes], map_location: Any) -> dict[str, Tensor]:
    from safetensors.torch import load

    device = map_location if isinstance(map_location, str | torch.device) else 'cpu'
    return {name: tensor.to(device) for name, tensor in load(file.read()).items()}


def as_filename(filename: Any) -> str:
    """Return a path or a URL as text."""
    if not isinstance(filename, str | os.PathLike):
        raise TypeError(f'checkpoint must be a path or a URL, but got {redacted(repr(filename))}')
    return os.fsdecode(filename)


#: Where programs keep the weights; a file has one of them on each level.
_WRAPPINGS = ('state_dict', 'model')


def state_dict_of(content: Any, filename: str | None = None) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint: those of its ``state_dict`` or ``model``, or its own.

    Args:
        content (Any): The content of the file.
        filename (str, optional): The file in messages. Defaults to None.

    Raises:
        ValueError: If there are none, if both ``state_dict`` and ``model`` could be meant, or if a
            tensor has no name, no data or is not dense.
    """
    checkpoint = 'the checkpoint' if filename is None else f'checkpoint {redacted(filename)!r}'
    for key in _WRAPPINGS:
        level = content if isinstance(content, Mapping) else {}
        if all(isinstance(level.get(name), Mapping) for name in _WRAPPINGS):
            raise ValueError(
                f"{checkpoint} contains both a 'state_dict' and a 'model', but only one of them "
                'can be loaded; save the right one to a separate file'
            )
        if isinstance(level.get(key), Mapping):
            content = level[key]
    if not isinstance(content, Mapping):
        kind = type(content).__name__
        raise ValueError(f'{checkpoint} must contain a state dict, but contains a {kind}')
    tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f'{checkpoint} contains no tensors')
    for key, value in tensors.items():
        _check_tensor(checkpoint, key, value)
    return tensors


def _check_tensor(checkpoint: str, key: Any, value: Tensor) -> None:
    if not isinstance(key, str):
        raise ValueError(
            f"{checkpoint} contains a tensor with the key '{shown(str(key))}', but tensor names "
            f'must be str, not {type(key).__name__}'
        )
    if kind := unusable(value):
        raise ValueError(
            f"{checkpoint} cannot be loaded: tensor '{shown(key)}' is {kind}, but must be a "
            'dense strided tensor with data. Convert it before saving, for example with '
            'to_dense() or dequantize()'
        )


def class_names_of(content: Any) -> tuple[str, ...] | None:
    """Return the names of the classes in a checkpoint of OpenMMLab, or None if it has none."""
    for key in ('meta', 'dataset_meta', 'classes'):
        content = content.get(key) if isinstance(content, Mapping) else None
    is_list = isinstance(content, list | tuple) and all(isinstance(name, str) for name in content)
    return tuple(content) if content and is_list else None
