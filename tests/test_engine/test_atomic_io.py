"""Crash-safe files."""

import errno
import os

import pytest

from mmvmamba.engine.atomic_io import AtomicBackend, remove_parts
from mmvmamba.engine.errors import UserError


@pytest.mark.parametrize('call', ['fsync', 'replace'])
def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch, call):
    path = tmp_path / 'folder' / 'file.pth'
    AtomicBackend().put(b'old', path)

    def fail(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(UserError, match=r"file\.pth' cannot be written: No space left on device"):
        AtomicBackend().put(b'new', path)
    assert path.read_bytes() == b'old'
    assert os.listdir(path.parent) == ['file.pth']


def test_parts_of_checkpoints_alone_are_removed(tmp_path):
    keep = ['epoch_1.pth', '.hidden.pth', '.text.writing']
    for name in (*keep, '.epoch_2.pth.writing'):
        (tmp_path / name).touch()
    remove_parts(str(tmp_path))
    assert sorted(os.listdir(tmp_path)) == sorted(keep)
