"""Download of checkpoint files into a cache."""

import contextlib
import hashlib
import logging
import os
import re
import uuid
from collections.abc import Callable, Iterator
from urllib.parse import unquote, urldefrag

import torch

from mmvmamba.progress import Progress

from .http_client import RequestError, open_url, read_body, split_url
from .redaction import redacted_url

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_PART = '.part'
_logger = logging.getLogger(__name__)


def is_url(name: str) -> bool:
    """Return True for an http or https URL, which is no path."""
    return name.lower().startswith(('http://', 'https://'))


def download(
    url: str, folder: str | None = None, log: Callable[[str], object] = _logger.info
) -> str:
    """Return the path of a URL's file in the cache, and download it first if it is not there.

    Only a complete file appears in the cache. Processes that ask for the same URL wait for the
    first of them.

    Args:
        url (str): An http or https URL. It may hold a user and a password, percent-encoded.
        folder (str, optional): The cache. Defaults to ``checkpoints/mmvmamba`` in torch.hub's.
        log (Callable): Called with a line before the download, during a long one, and after it.
            Defaults to the ``info`` of this module's logger.

    Raises:
        ValueError: If the URL is malformed, the file cannot be downloaded completely, or the cache
            cannot be written.
    """
    name = redacted_url(url)
    try:
        path = cached_path(url, folder)
        if not os.path.isfile(path):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with _lock(os.path.dirname(path)):
                if not os.path.isfile(path):
                    _fetch(url, path, name, log)
    except RequestError as error:
        raise ValueError(f'checkpoint {name!r} cannot be downloaded: {error}') from None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ValueError(
            f'checkpoint {name!r} cannot be downloaded, because the cache folder '
            f'{os.path.dirname(path)!r} cannot be written: {reason}'
        ) from None
    return path


def cached_path(url: str, folder: str | None = None) -> str:
    """Return the path of a URL's file in the cache.

    Raises:
        RequestError: If the URL is malformed.
    """
    parts = split_url(url)
    if folder is None:
        folder = os.path.join(torch.hub.get_dir(), 'checkpoints', 'mmvmamba')
    key = hashlib.sha256(urldefrag(url).url.encode()).hexdigest()[:16]
    # The end of a name may have the hash that the reader checks.
    base = re.sub(r'[^\w.+=-]', '_', unquote(parts.path.rpartition('/')[2]), flags=re.ASCII)
    return os.path.join(folder, key, base[-100:].lstrip('.') or 'checkpoint')


@contextlib.contextmanager
def _lock(folder: str) -> Iterator[None]:
    """Let one process at a time download into a folder, where the file system has locks.

    The system releases the lock of a killed process, whose incomplete file is removed then.
    """
    with open(os.path.join(folder, '.lock'), 'ab') as file:
        with contextlib.suppress(OSError):
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX)
            for entry in os.scandir(folder):
                if entry.name.endswith(_PART):
                    os.remove(entry.path)  # Windows keeps the files that other processes write
        yield


def _fetch(url: str, path: str, name: str, log: Callable[[str], object]) -> None:
    """Write a file under a temporary name beside ``path`` and rename it when it is complete."""
    part = os.path.join(os.path.dirname(path), uuid.uuid4().hex + _PART)
    try:
        with contextlib.closing(open_url(url)) as response, open(part, 'xb') as file:
            size = response.length
            log(f'downloading {name} ({"unknown size" if size is None else f"{size:,} bytes"})')
            progress = None if size is None else Progress(f'downloading {name}', size, log)
            for data in read_body(response):
                file.write(data)
                if progress is not None:
                    progress.step(len(data))
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        with contextlib.suppress(OSError):
            os.remove(part)
    log(f'downloaded {name} to {path}')
