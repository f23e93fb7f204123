"""Messages and logs without the passwords and tokens that URLs may hold."""

import logging
import re
import string
from urllib.parse import quote

#: ASCII characters that may be in a URL without being percent-encoded, besides letters and digits.
URL_PUNCTUATION = ''.join(set(string.punctuation).difference('"\'<>\\'))
#: Scheme, user and password, host and port, path, and query or fragment of URLs within a text.
_URL = re.compile(
    r'(?<![\w+.-])([\w+.-]{2,}:/+)([^\s/?#]*@)?([^\s/?#\'"]*)([^\s?#\'"]*)([?#][^\s\'"]*)?'
)
_HOST_AND_PORT = re.compile(r'(\[[^]]*\]|[^:]*)(:\d*)?')


def redacted(text: str) -> str:
    """Return a text whose URLs have scheme, host, port and path alone, and '?...' for a query."""

    def shown(match: re.Match[str]) -> str:
        scheme, _, host, path, rest = match.groups(default='')
        port = _HOST_AND_PORT.fullmatch(host)
        if port is None or (port[2] and '@' in path + rest):  # perhaps a password with a slash
            return f'{scheme}...'
        end = rest[len(rest.rstrip(':,;)]}')) :]  # of the text; what is redacted stays as it is
        return f'{scheme}{host}{path}' + ('?...' if rest.startswith('?') else '') + end

    return _URL.sub(shown, text)


def redacted_url(url: str) -> str:
    """Redact a single URL, even one with spaces or quotes, which end a URL within a text."""
    return redacted(quote(url, safe=URL_PUNCTUATION))


def redact_record(record: logging.LogRecord) -> bool:
    """Redact the text of a log record: a filter for :meth:`logging.Logger.addFilter`.

    A message that does not match its arguments stays as it is, so that the handlers report it.
    """
    if record.exc_info and not record.exc_text:
        record.exc_text = redacted(logging.Formatter().formatException(record.exc_info))
    try:
        message = record.getMessage()
    except Exception:  # arguments may be of any class
        return True
    record.msg, record.args = redacted(message), None
    return True
