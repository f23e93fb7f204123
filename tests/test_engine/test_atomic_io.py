"""Crash-safe files, and the checkpoint to resume from."""

import errno
import os
import time
from fractions import Fraction

import pytest
import torch

from mmvmamba.engine.atomic_io import (
    AtomicBackend,
    is_complete,
    last_complete_checkpoint,
    remove_parts,
)
from mmvmamba.engine.errors import UserError


def save(path, iteration, optimizer=True):
    content = dict(meta=dict(iter=iteration), message_hub={}, state_dict=dict(w=torch.ones(999)))
    if optimizer:
        content['optimizer'] = {}
    torch.save(content, path)
    time.sleep(0.01)  # modification times differ


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


def test_whole(tmp_path):
    path = tmp_path / 'a.pth'
    save(path, 1)
    content = path.read_bytes()
    assert is_complete(path)
    for broken in (content[:-1], content[: len(content) // 2], b'', b'text'):
        path.write_bytes(broken)
        assert not is_complete(path)
    middle = content.find(torch.ones(4).numpy().tobytes())
    path.write_bytes(content[:middle] + bytes(400) + content[middle + 400 :])
    assert not is_complete(path)
    assert not is_complete(tmp_path / 'nothing.pth')


def test_last_complete_checkpoint(tmp_path):
    folder = str(tmp_path)
    assert last_complete_checkpoint(folder) is None
    pointer = tmp_path / 'last_checkpoint'
    names = [str(tmp_path / f'iter_{i}.pth') for i in range(4)]
    save(names[3], 30)  # of an older run
    save(names[0], 1)
    save(names[1], 2)
    pointer.write_text(names[1])
    assert last_complete_checkpoint(folder) == names[1]
    save(tmp_path / 'best_iter_3.pth', 3, optimizer=False)
    assert last_complete_checkpoint(folder) == names[1]
    save(names[2], 3)  # killed before the pointer was written
    assert last_complete_checkpoint(folder) == names[2]
    (tmp_path / 'iter_2.pth').write_bytes(b'half')
    assert last_complete_checkpoint(folder) == names[1]
    pointer.write_text('')
    assert last_complete_checkpoint(folder) == names[1]
    pointer.write_text('/moved/from/iter_0.pth')
    assert last_complete_checkpoint(folder) == names[1]


def test_what_is_not_of_the_run(tmp_path):
    """A newer file with unknown classes is skipped; in one that the run wrote they are an error."""
    folder, pointer = str(tmp_path), tmp_path / 'last_checkpoint'
    foreign, saved = tmp_path / 'foreign.pth', tmp_path / 'iter_1.pth'
    save(saved, 1)
    pointer.write_text(str(saved))
    for content in (dict(model=Fraction(1)), dict(meta={}, message_hub={}, optimizer={})):
        torch.save(content, foreign)
        assert last_complete_checkpoint(folder) == str(saved)
    torch.save(dict(model=Fraction(1)), saved)
    with pytest.raises(ValueError, match=r'needs fractions.Fraction'):
        last_complete_checkpoint(folder)


def test_folders(tmp_path):
    """A second folder of checkpoints, and a folder that is a checkpoint."""
    work_dir, other = tmp_path / 'run', tmp_path / 'other'
    work_dir.mkdir()
    other.mkdir()
    save(other / 'iter_1.pth', 1)
    save(other / 'iter_2.pth', 2)
    folders = str(work_dir), str(other)
    assert last_complete_checkpoint(*folders) == str(other / 'iter_2.pth')
    (work_dir / 'last_checkpoint').write_text('/moved/from/iter_1.pth')
    (other / 'iter_2.pth').write_bytes(b'half')
    assert last_complete_checkpoint(*folders) == str(other / 'iter_1.pth')
    (work_dir / 'iter_3.pth').mkdir()
    (work_dir / 'last_checkpoint').write_text(str(work_dir / 'iter_3.pth'))
    assert last_complete_checkpoint(*folders) == str(work_dir / 'iter_3.pth')


@pytest.mark.parametrize(
    ('age', 'iteration', 'newer'),
    [(1, 3, True), (1, 2, False), (1, 1, False), (0, 3, False), (-1, 3, False)],
)
def test_a_checkpoint_beside_the_named_one(tmp_path, age, iteration, newer):
    """It is chosen if it is newer and has done more iterations."""
    named, other = tmp_path / 'iter_2.pth', tmp_path / 'other.pth'
    for path, done, second in ((named, 2, 1000), (other, iteration, 1000 + age)):
        save(path, done)
        os.utime(path, (second, second))
    (tmp_path / 'last_checkpoint').write_text(str(named))
    assert last_complete_checkpoint(str(tmp_path)) == str(other if newer else named)


def test_a_newer_checkpoint_with_wrong_bytes(tmp_path):
    """It can be read, but its checksum does not match."""
    saved, newer = tmp_path / 'iter_1.pth', tmp_path / 'iter_2.pth'
    save(saved, 1)
    save(newer, 2)
    (tmp_path / 'last_checkpoint').write_text(str(saved))
    assert last_complete_checkpoint(str(tmp_path)) == str(newer)
    content = newer.read_bytes()
    middle = content.find(torch.ones(4).numpy().tobytes())
    newer.write_bytes(content[:middle] + bytes(400) + content[middle + 400 :])
    assert last_complete_checkpoint(str(tmp_path)) == str(saved)


@pytest.mark.parametrize(('iteration', 'found'), [(0, False), (1, True)])
def test_a_checkpoint_of_a_run_that_has_begun(tmp_path, iteration, found):
    save(tmp_path / 'some.pth', iteration)
    assert last_complete_checkpoint(str(tmp_path)) == (
        str(tmp_path / 'some.pth') if found else None
    )


def test_parts_of_checkpoints_alone_are_removed(tmp_path):
    keep = ['epoch_1.pth', '.hidden.pth', '.text.writing']
    for name in (*keep, '.epoch_2.pth.writing'):
        (tmp_path / name).touch()
    remove_parts(str(tmp_path))
    assert sorted(os.listdir(tmp_path)) == sorted(keep)
