"""HTTP requests with time limits and strict redirects."""

import base64
import http.client
import io
import ssl
import string
import time
from collections.abc import Iterator
from typing import Any
from urllib import request
from urllib.error import URLError
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit

from .redaction import URL_PUNCTUATION, redacted

#: Limit for connecting and for each read, in seconds.
TIMEOUT = 30.0
#: Lowest average speed in bytes per second, which is checked after so many seconds.
MIN_SPEED, GRACE_PERIOD = 1024, 60.0
#: Limit for a response with its headers, in bytes.
MAX_SIZE = 64 << 30
MAX_REDIRECTS = 5
_BLOCK = 1 << 20
_PORTS = {'http': 80, 'https': 443}


class RequestError(Exception):
    """Failed request. The message is the reason, without the URL."""


def split_url(url: str) -> SplitResult:
    """Check and split a URL.

    Raises:
        RequestError: If it is not an http or https URL, or has characters that must be encoded.
    """
    forbidden = set(string.punctuation).difference(URL_PUNCTUATION)
    if any(c in forbidden or c.isspace() or not c.isprintable() for c in url):
        raise RequestError(
            'spaces, quotes, backslashes and control characters in a URL must be percent-encoded'
        )
    try:
        parts = urlsplit(url)
        valid = parts.scheme in _PORTS and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise RequestError(
            'the URL is malformed; special characters in user and password must be percent-encoded'
        )
    return parts


def open_url(url: str) -> http.client.HTTPResponse:
    """Open a URL and follow redirects; the response is that of a whole file.

    User and password in the URL are sent as Basic authorization, to its own host alone. Proxies are
    those of the environment.

    Raises:
        RequestError: If there is no such response.
    """
    first = parts = split_url(url)
    for _ in range(MAX_REDIRECTS + 1):
        response = _get(parts, authorization=_authorization(first, parts))
        location = response.headers.get('Location')
        if response.status not in (301, 302, 303, 307, 308) or location is None:
            break
        response.close()
        parts = _redirected(parts, location)
    else:
        raise RequestError(f'the server redirects more than {MAX_REDIRECTS} times')
    if response.status != 200:
        response.close()
        reason = http.client.responses.get(response.status, 'unknown status')
        raise RequestError(f'the server returned {response.status} {reason}')
    if response.length is None and not response.chunked:
        response.close()
        raise RequestError('the server sends neither a Content-Length nor a chunked response')
    return response


def read_body(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """Yield a body as it arrives; one with a ``Content-Length`` must have that size.

    Raises:
        RequestError: If the connection breaks, the body ends early or time is up.
    """
    size, done = response.length, 0
    while done != size:
        limit = _BLOCK if size is None else min(_BLOCK, size - done)
        try:
            data = response.read1(limit)  # http.client checks that the last chunk is there
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise RequestError(_reason(error)) from None
        if not data and size is None:
            break
        if not data:
            raise RequestError(f'the connection closed after {done:,} of {size:,} bytes')
        done += len(data)
        yield data


def _get(parts: SplitResult, authorization: str | None) -> http.client.HTTPResponse:
    target = quote(parts._replace(scheme='', netloc='', fragment='').geturl(), safe=URL_PUNCTUATION)
    host = parts.netloc.rpartition('@')[2]
    headers = {'User-Agent': 'mmvmamba'}
    if authorization is not None:
        headers['Authorization'] = authorization
    opener = request.OpenerDirector()
    for handler in (request.ProxyHandler, _HTTPHandler, _HTTPSHandler, request.UnknownHandler):
        opener.add_handler(handler())
    try:
        url = f'{parts.scheme}://{host}{target}'
        return opener.open(request.Request(url, headers=headers), timeout=TIMEOUT)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise RequestError(_reason(error)) from None


def _authorization(first: SplitResult, parts: SplitResult) -> str | None:
    """Return the header for a request to the first URL's server, or to its https form."""

    def server(parts: SplitResult) -> tuple[str, str | None, int]:
        return parts.scheme, parts.hostname, parts.port or _PORTS[parts.scheme]

    allowed = [server(first)]
    if allowed[0] == ('http', first.hostname, 80):
        allowed.append(('https', first.hostname, 443))
    if first.username is None or server(parts) not in allowed:
        return None
    text = f'{unquote(first.username)}:{unquote(first.password or "")}'
    return f'Basic {base64.b64encode(text.encode()).decode()}'


def _redirected(parts: SplitResult, location: str) -> SplitResult:
    # http.client decodes headers as latin-1.
    location = quote(location, safe=URL_PUNCTUATION, encoding='latin-1')
    try:
        new = split_url(urljoin(parts.geturl(), location))
    except (RequestError, ValueError):
        raise RequestError('the server redirects to an address that is not http or https') from None
    if parts.scheme == 'https' and new.scheme == 'http':
        raise RequestError('the server redirects from https to http')
    return new


def _reason(error: Any) -> str:
    """Describe an error without its text, which may hold the URL."""
    if isinstance(error, URLError):
        error = error.reason
    if isinstance(error, http.client.IncompleteRead):
        return 'the connection closed too early'
    if isinstance(error, TimeoutError) and not error.strerror:
        return f'no response for {TIMEOUT:g} seconds'
    if isinstance(error, OSError | str):
        return getattr(error, 'strerror', None) or redacted(ascii(str(error)))
    return type(error).__name__


class _BoundedReader(io.RawIOBase):
    """The bytes of a connection, within limits for size and speed.

    Unlike the time limit of a socket, they also stop a server that sends single bytes, or headers
    without an end.
    """

    def __init__(self, raw: io.RawIOBase) -> None:
        self._raw, self._received, self._start = raw, 0, time.monotonic()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        count = self._raw.readinto(buffer)
        self._received += count or 0
        seconds = time.monotonic() - self._start
        if count and seconds > GRACE_PERIOD and self._received < MIN_SPEED * seconds:
            raise RequestError(f'the server sends less than {MIN_SPEED} bytes per second')
        if self._received > MAX_SIZE:
            raise RequestError(f'the server sends more than {MAX_SIZE} bytes')
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fp = io.BufferedReader(_BoundedReader(self.fp.detach()))


class _HTTPConnection(http.client.HTTPConnection):
    response_class = _Response


class _HTTPSConnection(http.client.HTTPSConnection):
    response_class = _Response


class _HTTPHandler(request.HTTPHandler):
    def http_open(self, req: request.Request) -> http.client.HTTPResponse:
        return self.do_open(_HTTPConnection, req)


class _HTTPSHandler(request.HTTPSHandler):
    def https_open(self, req: request.Request) -> http.client.HTTPResponse:
        return self.do_open(_HTTPSConnection, req, context=ssl.create_default_context())
