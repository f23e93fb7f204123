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
    for name in (*keep, '.epoch_2.pth.writing', '.last_checkpoint.writing'):
        (tmp_path / name).touch()
    remove_parts(str(tmp_path))
    assert sorted(os.listdir(tmp_path)) == sorted(keep)


def test_a_folder_with_the_name_of_a_part_is_skipped(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr('mmvmamba.engine.atomic_io.print_log', lambda text, *_: said.append(text))
    (tmp_path / '.a.pth.writing').mkdir()
    (tmp_path / '.b.pth.writing').touch()
    remove_parts(str(tmp_path))
    assert os.listdir(tmp_path) == ['.a.pth.writing']
    assert len(said) == 1
    assert ".a.pth.writing' cannot be removed: Is a directory" in said[0]
    words = r"a\.pth' cannot be written: '.*\.a\.pth\.writing' is a folder; earlier"
    with pytest.raises(UserError, match=words):
        AtomicBackend().put(b'new', tmp_path / 'a.pth')


@pytest.mark.parametrize('kind', ['link', 'dangling link', 'pipe', 'file'])
def test_what_has_the_name_of_a_part_is_replaced(tmp_path, kind):
    part, victim = tmp_path / '.a.pth.writing', tmp_path / 'victim'
    if kind == 'pipe':
        os.mkfifo(part)
    elif kind == 'file':
        part.write_bytes(b'a longer one')
    else:
        part.symlink_to(victim)
    if kind == 'link':
        victim.write_bytes(b'old')
    AtomicBackend().put(b'new', tmp_path / 'a.pth')
    assert (tmp_path / 'a.pth').read_bytes() == b'new'
    assert not (tmp_path / 'a.pth').is_symlink()
    if kind == 'link':
        assert victim.read_bytes() == b'old'
    assert sorted(os.listdir(tmp_path)) == ['a.pth', *(['victim'] if kind == 'link' else [])]
