"""Progress lines of long tasks."""

from types import SimpleNamespace

import pytest

from mmvmamba import progress
from mmvmamba.checkpoint import download
from mmvmamba.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets."""

    class Clock:
        now = 0.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(progress, 'time', clock)
    return clock


def run(clock, total, seconds):
    """Return the lines of a task with steps of equal length."""
    lines = []
    task = Progress(f'reading {total} files', total, lines.append)
    for _ in range(total):
        clock.now += seconds
        task.step()
    return lines


def test_a_short_task_is_silent(clock):
    assert run(clock, 100, 0.04) == []


def test_a_line_for_each_tenth(clock):
    lines = run(clock, 1000, 0.1)
    assert lines[0] == 'reading 1000 files: 10%, eta: 0:01:30'
    assert len(lines) == 9


def test_a_slow_task_has_a_line_every_minute(clock):
    lines = run(clock, 600, 6)
    assert len(lines) <= 59
    assert lines[-1].endswith('%, eta: 0:01:00')


def test_a_task_without_steps(clock):
    assert run(clock, 0, 1) == []


def test_a_download(clock, monkeypatch, tmp_path):
    def read_body(response):
        for _ in range(5):
            clock.now += 20
            yield bytes(200)

    response = SimpleNamespace(length=1000, close=lambda: None)
    monkeypatch.setattr(download, 'open_url', lambda url: response)
    monkeypatch.setattr(download, 'read_body', read_body)
    lines = []
    download.download('https://host/x.pth', str(tmp_path), lines.append)
    assert lines[1] == 'downloading https://host/x.pth: 20%, eta: 0:01:20'
    assert len(lines) == 6
