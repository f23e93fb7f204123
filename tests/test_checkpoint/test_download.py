"""Only complete files get into the cache, and no secret into a message."""

import errno
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from mmvmamba.checkpoint import download as module
from mmvmamba.checkpoint.download import cached_path, download

from ..servers import response, serve

BODY = bytes(range(256)) * 4000


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch):
    monkeypatch.setenv('no_proxy', '127.0.0.1')


def files(folder):
    return sorted(p.name for p in folder.rglob('*') if p.is_file() and p.name != '.lock')


def test_a_file_is_downloaded_once(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    lines = []
    with serve(response(BODY)) as server:
        url = f'http://user:secret@{server.address}/a/x-0123abcd.pth?token=secret#part'
        path = download(url, log=lines.append)
    assert open(path, 'rb').read() == BODY
    shown = f'http://{server.address}/a/x-0123abcd.pth?...'
    assert lines == [f'downloading {shown} (1,024,000 bytes)', f'downloaded {shown} to {path}']
    # The server is gone.
    assert download(url.removesuffix('#part'), log=lines.append) == path
    assert len(lines) == 2
    folder, key, name = path.removeprefix(torch.hub.get_dir() + os.sep).rsplit(os.sep, 2)
    assert (folder, name) == (os.path.join('checkpoints', 'mmvmamba'), 'x-0123abcd.pth')
    assert re.fullmatch('[0-9a-f]{16}', key)
    assert files(tmp_path) == [name]


def test_the_whole_url_is_the_key():
    urls = ['http://a/x.pth', 'http://b/x.pth', 'http://a/x.pth?v=2', 'http://u:p@a/x.pth']
    assert len({cached_path(url) for url in urls}) == 4


@pytest.mark.parametrize(
    ('path', 'name'),
    [
        ('/x.pth', 'x.pth'),
        ('/%23v2cls/x%20y.pth', 'x_y.pth'),
        ('', 'checkpoint'),
        ('/a/', 'checkpoint'),
        ('/..', 'checkpoint'),
        ('/%2e%2E', 'checkpoint'),
        ('/a/..%2F..%2Fetc%2Fpasswd', '_.._etc_passwd'),
        ('/..%5C..%5Cx.pth', '_.._x.pth'),
        ('/.bashrc', 'bashrc'),
        ('/a%00b%0A.pth', 'a_b_.pth'),
        ('/%FF%F0.pth', '__.pth'),
        ('/gewichte-\u00e4.pth', 'gewichte-_.pth'),
        ('/' + 'n' * 5000 + '-0123abcd.pth', 'n' * 87 + '-0123abcd.pth'),
        ('/x.pth;v=1', 'x.pth_v=1'),
    ],
)
def test_names(path, name, tmp_path):
    got = cached_path(f'https://host{path}', str(tmp_path))
    assert os.path.basename(got) == name
    assert os.path.dirname(os.path.dirname(got)) == str(tmp_path)


# ---- failures ----


def fails(url, folder, words):
    with pytest.raises(ValueError, match=words) as raised:
        download(url, str(folder))
    assert raised.value.__suppress_context__
    assert 'secret' not in str(raised.value)


def test_failures_leave_no_file(tmp_path):
    for data, words in (
        (response(BODY, Content_Length=len(BODY) + 1), 'closed after 1,024,000 of 1,024,001 bytes'),
        (response(status='404 x'), '404 Not Found'),
    ):
        with serve(data) as server:
            url = f'http://user:secret@{server.address}/x.pth?secret'
            start = rf"checkpoint 'http://{server.address}/x.pth\?...' cannot be downloaded: .*"
            fails(url, tmp_path, start + words)
    fails(url, tmp_path, start + 'Connection refused')
    fails('http://user:sec ret@host/x?secret', tmp_path, "'http://host/x.* must be percent-encoded")
    fails('http://user:12/secret@host/x', tmp_path, "checkpoint 'http://...' cannot")
    assert files(tmp_path) == []


def test_an_interrupted_download_leaves_no_file(tmp_path):
    def answer(head, connection):
        connection.sendall(response(BODY, Content_Length=10**9))
        # An interrupt that meets a finalizer is lost, as Python ignores what that raises.
        for _ in range(4):
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            if release.wait(5):
                break

    release = threading.Event()
    with serve(answer) as server, pytest.raises(KeyboardInterrupt):
        download(f'http://{server.address}/x.pth', str(tmp_path))
    release.set()
    assert files(tmp_path) == []


def test_a_full_disk(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with serve(response(BODY)) as server:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        try:
            fails(f'http://{server.address}/x.pth', tmp_path, 'cannot be written: File too large')
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert files(tmp_path) == []


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / 'file').touch()
    words = "because the cache folder '{}/[0-9a-f]{{16}}' cannot be written: {}"
    cache = tmp_path / 'file'
    fails('http://host/x.pth?secret', cache, words.format(cache, 'Not a directory'))

    def refuse(*args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(module.os, 'makedirs', refuse)
    fails('http://host/x.pth', tmp_path, words.format(tmp_path, 'Read-only file system'))
    # What is there is used nevertheless.
    path = tmp_path / os.path.basename(os.path.dirname(cached_path('http://host/x.pth'))) / 'x.pth'
    path.parent.mkdir()
    path.write_bytes(BODY)
    assert download('http://host/x.pth', str(tmp_path)) == str(path)


# ---- several processes ----

PROCESS = """
import sys
from mmvmamba.checkpoint.download import download
print('ready', flush=True)
sys.stdin.readline()
download(sys.argv[1], sys.argv[2])
"""


def start_processes(number, url, folder):
    """Start processes that begin to download at the same time."""
    command = [sys.executable, '-c', PROCESS, url, str(folder)]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    processes = [subprocess.Popen(command, **pipes) for _ in range(number)]
    for process in processes:
        assert process.stdout.readline() == 'ready\n'
    for process in processes:
        process.stdin.write('\n')
        process.stdin.flush()
    return processes


def test_processes_that_ask_for_the_same_file(tmp_path):
    """Both succeed, and one of them asks the server."""

    def answer(head, connection):
        time.sleep(0.5)
        connection.sendall(response(BODY))

    with serve(answer) as server:
        url = f'http://{server.address}/x.pth'
        processes = start_processes(2, url, tmp_path)
        for process in processes:
            process.communicate(timeout=60)
            assert process.returncode == 0
    assert len(server.requests) == 1
    assert open(cached_path(url, str(tmp_path)), 'rb').read() == BODY
    assert files(tmp_path) == ['x.pth']


def test_file_systems_without_locks(tmp_path, monkeypatch):
    """Each process downloads to a name of its own; the last one wins."""

    def refuse(*args):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    def answer(head, connection):
        together.wait(20)
        connection.sendall(response(BODY))

    monkeypatch.setattr(module.fcntl, 'flock', refuse)
    together = threading.Barrier(2)
    with serve(answer) as server:
        arguments = (f'http://{server.address}/x.pth', str(tmp_path))
        threads = [threading.Thread(target=download, args=arguments) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    assert len(server.requests) == 2
    assert open(cached_path(*arguments), 'rb').read() == BODY
    assert files(tmp_path) == ['x.pth']


def test_the_file_of_a_killed_process_is_removed(tmp_path):
    def answer(head, connection):
        if len(server.requests) == 1:
            connection.sendall(response(BODY, Content_Length=10**9))
            release.wait(60)
        connection.sendall(response(BODY))

    release = threading.Event()
    with serve(answer) as server:
        url = f'http://{server.address}/x.pth'
        [process] = start_processes(1, url, tmp_path)
        while not files(tmp_path) and process.poll() is None:
            time.sleep(0.02)
        process.kill()
        process.communicate(timeout=60)
        assert [os.path.splitext(name)[1] for name in files(tmp_path)] == ['.part']
        download(url, str(tmp_path))
    release.set()
    assert files(tmp_path) == ['x.pth']
