"""Requests against servers on this machine that do all that servers may do."""

import base64
import contextlib
import itertools
import re
import threading
import time

import pytest

from mmvmamba.checkpoint import http_client
from mmvmamba.checkpoint.http_client import RequestError, open_url, read_body, split_url

from ..servers import redirect, response, serve

BODY = bytes(range(256)) * 40


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch):
    for name in ('http_proxy', 'https_proxy', 'all_proxy', 'no_proxy'):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def get(url):
    with contextlib.closing(open_url(url)) as answer:
        return b''.join(read_body(answer))


def fails(url, words):
    with pytest.raises(RequestError, match=words) as raised:
        get(url)
    shown = raised.value
    while shown is not None:  # as in a traceback
        assert 'secret' not in str(shown)
        shown = shown.__cause__ or (None if shown.__suppress_context__ else shown.__context__)


def chunks(*sizes, end=b'0\r\n\r\n'):
    """The bytes of a chunked response with a body of so many zeros."""
    parts = [b'%x\r\n%b\r\n' % (size, bytes(size)) for size in sizes]
    head = response(Content_Length=None, Transfer_Encoding='chunked')
    return head + b''.join(parts) + end


def test_body():
    with serve(response(BODY)) as server:
        assert get(f'http://{server.address}/a%20b/x.pth?t=%2f#fragment') == BODY
    assert server.requests[0].startswith('GET /a%20b/x.pth?t=%2f HTTP/1.1\r\n')
    assert 'authorization' not in server.requests[0].lower()
    with serve(chunks(3, 70000, 1)) as server:
        assert get(f'http://{server.address}/x.pth') == bytes(70004)


def test_a_connection_that_stays_open_does_not_matter():
    def answer(head, connection):
        connection.sendall(response(BODY))
        connection.recv(1)

    with serve(answer) as server:
        assert get(f'http://{server.address}/x.pth') == BODY


def test_characters_beyond_ascii_are_encoded():
    with serve(response(BODY)) as server:
        assert get(f'http://{server.address}/gewichte-\u00e4.pth') == BODY
    assert server.requests[0].startswith('GET /gewichte-%C3%A4.pth ')


@pytest.mark.parametrize(
    'url',
    [
        'ftp://host/x.pth',
        'file:///etc/passwd',
        'data:text/plain,x',
        'http:///x.pth',
        'http://host:secret/x.pth',
        'http://user:sec/ret@host/x.pth',
        'http://[secret/x.pth',
        'http://us\u2100er:secret@host/x.pth',
        'http://host/secret x.pth',
        'http://host/secret\r\nHost: other',
        'http://host/\x00secret',
        "http://host/'secret",
        'http://host\\@other/secret',
    ],
)
def test_malformed_urls_are_refused(url):
    with pytest.raises(RequestError, match='percent-encoded') as raised:
        split_url(url)
    assert 'secret' not in str(raised.value)


def test_a_host_without_an_address_is_named_by_the_system():
    fails('http://host.invalid/x.pth?secret', r'\w')
    fails('http://a..b/x.pth?secret', 'UnicodeError')


@pytest.mark.parametrize(
    ('data', 'words'),
    [
        (response(status='404 secret'), '404 Not Found'),
        (response(status='503 secret'), '503 Service Unavailable'),
        (response(status='206 Partial'), '206 Partial Content'),
        (response(status='204 No Content', Content_Length=None), '204'),
        (response(status='302 Found'), '302 Found'),
        (response(BODY, Content_Length=None), 'neither a Content-Length'),
        (response(BODY, Content_Length=len(BODY) + 1), 'closed after 10,240 of 10,241 bytes'),
        (response(b'', Content_Length=5), 'closed after 0 of 5 bytes'),
        (chunks(3, end=b''), 'closed too early'),
        (chunks(3, end=b'9\r\n12'), 'closed too early'),
        (chunks(3, end=b'secret\r\n'), 'closed too early'),
        (b'', 'closed connection'),
        (b'secret', 'BadStatusLine'),
        (response(**{f'H{i}': 1 for i in range(200)}), 'HTTPException'),
    ],
)
def test_answers_that_are_no_whole_file(data, words):
    with serve(data) as server:
        fails(f'http://{server.address}/x.pth?secret', words)


# ---- time ----


def test_a_silent_server(monkeypatch):
    monkeypatch.setattr(http_client, 'TIMEOUT', 0.1)
    release = threading.Event()
    for start in (b'', b'HTTP/1.1 200', response(b'a', Content_Length=5), chunks(3, end=b'5')):

        def answer(head, connection, start=start):
            connection.sendall(start)
            release.wait(20)

        with serve(answer) as server:
            fails(f'http://{server.address}/x.pth', 'no response for 0.1 seconds|timed out')
    release.set()


@pytest.mark.parametrize(
    'start',
    [b'', response(Content_Length=10**6), chunks(3, end=b''), chunks(end=b'0\r\n'), b'HTTP/1.1 '],
    ids=['head', 'body', 'chunk', 'trailer', 'status'],
)
def test_a_server_that_sends_single_bytes(start, monkeypatch):
    """Each byte comes within the time limit of a read."""
    monkeypatch.setattr(http_client, 'GRACE_PERIOD', 0.2)

    def answer(head, connection):
        connection.sendall(start)
        for _ in itertools.count():
            connection.sendall(b'0')
            time.sleep(0.01)

    with serve(answer) as server:
        fails(f'http://{server.address}/x.pth', 'less than 1024 bytes per second')


@pytest.mark.parametrize(
    'block',
    [b'HTTP/1.1 100 Continue\r\n\r\n', chunks(end=b'0\r\n') + b'a: b\r\n', chunks(5, end=b'')],
    ids=['continue', 'trailer', 'chunk'],
)
def test_a_server_without_an_end(block, monkeypatch):
    monkeypatch.setattr(http_client, 'MAX_SIZE', 1 << 20)

    def answer(head, connection):
        connection.sendall(block)
        while True:
            connection.sendall(block.rpartition(b'\r\n\r\n')[2] * 100 or block * 100)

    with serve(answer) as server:
        fails(f'http://{server.address}/x.pth', 'more than 1048576 bytes')


# ---- redirects and credentials ----


@pytest.mark.parametrize('status', ['301 Moved', '302 Found', '303 Other', '307 x', '308 x'])
def test_redirects(status):
    def answer(head, connection):
        path = head.split()[1]
        connection.sendall(response(BODY) if path == '/b/x.pth' else redirect('b/x.pth', status))

    with serve(answer) as server:
        assert get(f'http://{server.address}/a.pth') == BODY


@pytest.mark.parametrize(
    'location',
    [
        'file:///etc/passwd',
        'FILE:/etc/passwd',
        'ftp://127.0.0.1/secret',
        'data:text/plain,secret',
        'gopher://127.0.0.1/',
        'http://host:secret/',
        'http://[secret',
    ],
)
def test_redirects_elsewhere_are_refused(location):
    with serve(redirect(location)) as server:
        fails(f'http://{server.address}/x.pth', 'redirects to an address that is not http or https')
    assert len(server.requests) == 1


def test_redirects_to_plain_http_are_refused():
    https = split_url('https://host/x.pth')
    with pytest.raises(RequestError, match='redirects from https to http'):
        http_client._redirected(https, 'http://host/x.pth')
    assert http_client._redirected(https, '/y.pth').geturl() == 'https://host/y.pth'
    assert http_client._redirected(https, '//b/y.pth').geturl() == 'https://b/y.pth'


def test_redirects_without_an_end():
    with serve(redirect('/secret')) as server:
        fails(f'http://{server.address}/x.pth', 'redirects more than 5 times')
    assert len(server.requests) == 6


def test_a_redirect_with_a_body_without_an_end_is_followed():
    def answer(head, connection):
        if head.startswith('GET /b'):
            connection.sendall(response(BODY))
        connection.sendall(response(Content_Length=10**9, status='302 Found', Location='/b'))
        while True:
            connection.sendall(BODY)

    with serve(answer) as server:
        assert get(f'http://{server.address}/a') == BODY


def authorization(head):
    found = re.search(r'^authorization: basic (.*)\r$', head, re.IGNORECASE | re.MULTILINE)
    return found and base64.b64decode(found[1]).decode()


def test_user_and_password():
    with serve(response(BODY)) as server:
        assert get(f'http://us%40er:pass%2Fword%3A%C3%A4@{server.address}/x.pth') == BODY
        assert get(f'http://token@{server.address}/x.pth') == BODY
    assert [authorization(head) for head in server.requests] == [
        'us@er:pass/word:\u00e4',
        'token:',
    ]
    assert all(f'Host: {server.address}\r\n' in head for head in server.requests)


def test_credentials_stay_with_their_server():
    def answer(head, connection):
        is_first = head.startswith('GET /a ')
        connection.sendall(redirect('/b' if is_first else f'http://u:p@{second.address}/c?d'))

    with serve(response(BODY)) as second, serve(answer) as first:
        assert get(f'http://user:secret@{first.address}/a') == BODY
    assert [authorization(head) for head in first.requests] == ['user:secret', 'user:secret']
    assert [authorization(head) for head in second.requests] == [None]
    assert second.requests[0].startswith('GET /c?d ')


@pytest.mark.parametrize(
    ('first', 'then', 'sent'),
    [
        ('http://u:p@host/', 'http://host:80/', True),
        ('http://u:p@host/', 'https://host/', True),
        ('https://u:p@HOST:443/', 'https://host/', True),
        ('https://u:p@host/', 'https://host:8443/', False),
        ('http://u:p@host:8080/', 'https://host/', False),
        ('http://u:p@host/', 'http://host.other/', False),
    ],
)
def test_servers_that_get_credentials(first, then, sent):
    header = http_client._authorization(split_url(first), split_url(then))
    assert header == ('Basic dTpw' if sent else None)


# ---- proxies ----


def test_proxy_of_the_environment(monkeypatch):
    with serve(response(BODY)) as proxy:
        monkeypatch.setenv('http_proxy', f'http://user:secret@{proxy.address}')
        assert get('http://host.invalid/x.pth?t=1') == BODY
        monkeypatch.setenv('no_proxy', '127.0.0.1')
        with serve(response(b'direct')) as server:
            assert get(f'http://{server.address}/x.pth') == b'direct'
    assert proxy.requests[0].startswith('GET http://host.invalid/x.pth?t=1 ')
    assert 'proxy-authorization: basic ' in proxy.requests[0].lower()
    assert 'proxy' not in server.requests[0].lower()


def test_a_redirect_past_the_proxy_does_not_carry_its_password(monkeypatch):
    with serve(response(BODY)) as server, serve(redirect(f'http://{server.address}/')) as proxy:
        monkeypatch.setenv('http_proxy', f'http://user:secret@{proxy.address}')
        monkeypatch.setenv('no_proxy', '127.0.0.1')
        assert get('http://host.invalid/x.pth') == BODY
    assert 'proxy' not in server.requests[0].lower()


def test_proxies_that_refuse(monkeypatch):
    with serve(response(status='407 Proxy \x1b[31m')) as proxy:
        monkeypatch.setenv('https_proxy', f'http://{proxy.address}')
        fails('https://host.invalid/x.pth?secret', r"'Tunnel connection failed: 407 Proxy \\x1b")
    monkeypatch.setenv('http_proxy', 'socks5://user:secret@127.0.0.1:1')
    fails('http://host.invalid/x.pth', 'unknown url type: socks5')
    monkeypatch.setenv('http_proxy', 'http:/secret')
    fails('http://host.invalid/x.pth', 'ValueError')


def test_https_against_a_plain_server():
    with serve(b'HTTP/1.1 200 OK\r\n') as server:
        fails(f'https://{server.address}/x.pth?secret', r'\[SSL: ')
