"""The lock of a work directory, and the checkpoint to resume from."""

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
from fractions import Fraction

import pytest
import torch

from mmvmamba.engine.errors import UserError
from mmvmamba.engine.work_dir import (
    Progress,
    last_checkpoint,
    last_complete_checkpoint,
    locked,
    read_last_checkpoint,
    saved_progress,
)


def save(path, iteration, run='this', **content):
    meta = dict(iter=iteration, epoch=0, run=run)
    state = dict(meta=meta, message_hub={}, optimizer={}, state_dict=dict(w=torch.ones(999)))
    torch.save(state | content, path)
    return str(path)


def found(*folders):
    return last_complete_checkpoint(*map(str, folders))[0]


def skipped(*folders):
    return last_complete_checkpoint(*map(str, folders))[1]


def damage(path):
    """Zero values of a tensor, which leaves a file that can be read."""
    content = path.read_bytes()
    middle = content.find(torch.ones(4).numpy().tobytes())
    path.write_bytes(content[:middle] + bytes(400) + content[middle + 400 :])


# ---- the checkpoint to resume from ----


def test_the_checkpoint_with_the_most_iterations(tmp_path):
    assert last_complete_checkpoint(str(tmp_path)) == (None, [])
    names = [save(tmp_path / f'iter_{i}.pth', i) for i in (1, 2, 10, 9)]
    for name, second in zip(names, (4000, 3000, 2000, 1000), strict=True):
        os.utime(name, (second, second))  # copied in another order
    assert found(tmp_path) == names[2]
    for pointer in (names[0], names[2], '', '/moved/from/iter_1.pth', '/moved/from/nothing.pth'):
        (tmp_path / 'last_checkpoint').write_text(pointer)
        assert found(tmp_path) == names[2]


def test_the_named_checkpoint_is_chosen_among_equal_ones(tmp_path):
    for name in ('a.pth', 'b.pth', 'c.pth'):
        save(tmp_path / name, 3)
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'b.pth'))
    assert found(tmp_path) == str(tmp_path / 'b.pth')


def test_checkpoints_of_another_run_in_the_same_folder(tmp_path):
    save(tmp_path / 'iter_30.pth', 30, run='before')
    save(tmp_path / 'iter_1.pth', 1)
    newer = save(tmp_path / 'iter_2.pth', 2)
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'iter_1.pth'))
    assert found(tmp_path) == newer
    (tmp_path / 'iter_1.pth').unlink()
    assert found(tmp_path) == str(tmp_path / 'iter_30.pth')


def test_weights_alone_and_runs_that_have_not_begun_are_not_resumed(tmp_path):
    torch.save(dict(meta=dict(iter=9, epoch=1), state_dict={}), tmp_path / 'best.pth')
    torch.save([1], tmp_path / 'list.pth')
    save(tmp_path / 'zero.pth', 0)
    assert last_complete_checkpoint(str(tmp_path)) == (None, [])
    assert saved_progress(str(tmp_path / 'best.pth')) is None
    assert saved_progress(str(tmp_path / 'zero.pth')) == Progress(0, 'this')
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'zero.pth'))
    assert found(tmp_path) == str(tmp_path / 'zero.pth')


def test_named_weights_alone_are_skipped_and_named(tmp_path):
    torch.save(dict(state_dict={}), tmp_path / 'best.pth')
    (tmp_path / 'last_checkpoint').write_text('best.pth')
    words = r"best\.pth' contains weights but no training state"
    with pytest.raises(UserError, match=words):
        last_complete_checkpoint(str(tmp_path))
    saved = save(tmp_path / 'iter_1.pth', 1)
    assert found(tmp_path) == saved
    assert re.search(words, *skipped(tmp_path))


def test_runs_that_cannot_be_told_apart(tmp_path):
    """Checkpoints with more iterations count if they are newer, others if the named one is bad."""
    for name, iteration, time in (('1', 1, 1000), ('12', 12, 1000), ('2', 2, 2000), ('3', 3, 3000)):
        path = save(tmp_path / f'epoch_{name}.pth', iteration, run=None)
        os.utime(path, (time, time))
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_2.pth'))
    save(tmp_path / 'epoch_99.pth', 99)
    assert found(tmp_path) == str(tmp_path / 'epoch_3.pth')
    (tmp_path / 'epoch_3.pth').unlink()
    assert found(tmp_path) == str(tmp_path / 'epoch_2.pth')
    damage(tmp_path / 'epoch_2.pth')
    os.utime(tmp_path / 'epoch_2.pth', (2000, 2000))
    assert found(tmp_path) == str(tmp_path / 'epoch_1.pth')


def test_a_copied_folder(tmp_path):
    """``last_checkpoint`` names the original."""
    original, copy = tmp_path / 'original', tmp_path / 'copy'
    original.mkdir()
    save(original / 'iter_1.pth', 1)
    (original / 'last_checkpoint').write_text(str(original / 'iter_1.pth'))
    shutil.copytree(original, copy)
    save(original / 'iter_2.pth', 2)
    assert found(copy) == str(copy / 'iter_1.pth')
    assert found(original) == str(original / 'iter_2.pth')
    (copy / 'iter_1.pth').unlink()  # the named file is left, as is one of another out_dir
    assert found(copy) == str(original / 'iter_1.pth')


@pytest.mark.parametrize('name', ['.', '..', '/', 'FOLDER', 'OTHER.pth', 'sub', './sub/'])
def test_folders_that_are_not_checkpoints(tmp_path, name, monkeypatch):
    work_dir = tmp_path / 'run'
    for folder in ('run', 'run/sub', 'other.pth'):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(work_dir)
    name = name.replace('FOLDER', str(work_dir)).replace('OTHER', str(tmp_path / 'other'))
    (work_dir / 'last_checkpoint').write_text(name)
    path, reasons = last_complete_checkpoint(str(work_dir))
    assert path is None
    assert len(reasons) == 1
    assert re.search(r"last_checkpoint' names '.*', which is not a checkpoint", reasons[0])


def half(path):
    save(path, 9)
    path.write_bytes(path.read_bytes()[:500])


def with_wrong_bytes(path):
    save(path, 9)
    damage(path)


def with_foreign_class(path):
    save(path, 9, extra=Fraction(1, 2))


def with_nested_keys(path):
    path.write_bytes(b'\x80\x02}' + b')' + b'\x85' * 100_000 + b'Ns.')


INTRUDERS = {
    'half': (half, 'may be truncated'),
    'empty': (lambda path: path.touch(), 'may be truncated'),
    'text': (lambda path: path.write_text('no checkpoint'), 'may be truncated'),
    'wrong bytes': (with_wrong_bytes, 'is damaged'),
    'foreign class': (with_foreign_class, r'needs fractions\.Fraction'),
    'hostile': (with_nested_keys, 'may be truncated or not a checkpoint'),
    'no iteration': (lambda path: save(path, None), 'must contain the epoch and iteration'),
    'text as iteration': (lambda path: save(path, '9'), 'must contain the epoch and iteration'),
    'dangling link': (lambda path: path.symlink_to('nowhere'), 'does not exist'),
    'link to itself': (lambda path: path.symlink_to(path.name), 'does not exist'),
    'folder': (lambda path: path.mkdir(), 'is not a file'),
    'pipe': (lambda path: os.mkfifo(path), 'is not a file'),
}


@pytest.mark.parametrize('kind', INTRUDERS)
def test_other_things_in_the_folder_are_skipped_and_named(tmp_path, kind):
    make, words = INTRUDERS[kind]
    saved = save(tmp_path / 'iter_1.pth', 1)
    make(tmp_path / 'newer.pth')
    for pointer in (None, saved, str(tmp_path / 'newer.pth')):
        if pointer is not None:
            (tmp_path / 'last_checkpoint').write_text(pointer)
        if pointer == str(tmp_path / 'newer.pth') and kind == 'folder':
            continue  # the checkpoint of a strategy
        path, reasons = last_complete_checkpoint(str(tmp_path))
        assert path == saved
        assert len(reasons) == 1
        assert "newer.pth'" in reasons[0]
        assert re.search(words, reasons[0])


def test_files_that_cannot_be_opened_are_skipped(tmp_path, monkeypatch):
    saved = save(tmp_path / 'iter_1.pth', 1)
    save(tmp_path / 'newer.pth', 2)

    def refuse(file, *args, **kwargs):
        if str(file).endswith('newer.pth'):
            raise PermissionError(13, 'Permission denied', str(file))
        return open(file, *args, **kwargs)

    monkeypatch.setattr('mmvmamba.checkpoint.reader.open', refuse, raising=False)
    path, reasons = last_complete_checkpoint(str(tmp_path))
    assert path == saved
    assert 'Permission denied' in reasons[0]


POINTERS = {
    'binary': lambda path: path.write_bytes(b'\xff\xfe\x00'),
    'null byte': lambda path: path.write_bytes(b'a\x00b'),
    'long': lambda path: path.write_bytes(b'a' * 100_000),
    'folder': lambda path: path.mkdir(),
    'pipe': lambda path: os.mkfifo(path),
    'dangling link': lambda path: path.symlink_to('nowhere'),
    'missing file': lambda path: path.write_text('/nowhere/iter_5.pth'),
}


@pytest.mark.parametrize('kind', POINTERS)
def test_broken_pointers_are_skipped_and_named(tmp_path, kind):
    saved = save(tmp_path / 'iter_1.pth', 1)
    POINTERS[kind](tmp_path / 'last_checkpoint')
    path, reasons = last_complete_checkpoint(str(tmp_path))
    assert path == saved
    assert len(reasons) == 1
    assert "last_checkpoint' " in reasons[0]
    assert len(reasons[0]) < 1000


def test_training_does_not_begin_anew_if_all_checkpoints_are_refused(tmp_path):
    with_foreign_class(tmp_path / 'iter_1.pth')
    assert found(tmp_path) is None
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'iter_1.pth'))
    with pytest.raises(
        UserError, match=r'cannot resume from any checkpoint in .*needs fractions\.Fraction.*--work'
    ):
        last_complete_checkpoint(str(tmp_path))


def test_folders(tmp_path):
    """A second folder of checkpoints, and a folder that is a checkpoint."""
    work_dir, other = tmp_path / 'run', tmp_path / 'other'
    work_dir.mkdir()
    other.mkdir()
    save(other / 'iter_1.pth', 1)
    save(other / 'iter_2.pth', 2)
    assert found(work_dir, other) == str(other / 'iter_2.pth')
    (work_dir / 'last_checkpoint').write_text('/moved/from/iter_1.pth')
    damage(other / 'iter_2.pth')
    assert found(work_dir, other) == str(other / 'iter_1.pth')
    (work_dir / 'iter_3.pth').mkdir()
    (work_dir / 'last_checkpoint').write_text(str(work_dir / 'iter_3.pth'))
    assert found(work_dir, other) == str(work_dir / 'iter_3.pth')


def test_the_name_in_last_checkpoint(tmp_path):
    assert read_last_checkpoint(str(tmp_path)) is None
    (tmp_path / 'last_checkpoint').write_text('\n')
    assert read_last_checkpoint(str(tmp_path)) is None
    (tmp_path / 'last_checkpoint').write_text('a/epoch_1.pth\n')
    assert read_last_checkpoint(str(tmp_path)) == 'a/epoch_1.pth'
    (tmp_path / 'last_checkpoint').write_bytes(b'\xff')
    with pytest.raises(ValueError, match="last_checkpoint' cannot be read: 'utf-8' codec"):
        read_last_checkpoint(str(tmp_path))


def test_the_last_checkpoint_of_a_moved_folder(tmp_path):
    with pytest.raises(UserError, match='does not name a checkpoint'):
        last_checkpoint(str(tmp_path))
    (tmp_path / 'last_checkpoint').write_text('/elsewhere/epoch_1.pth\n')
    with pytest.raises(UserError, match=r"names '/elsewhere/epoch_1.pth', which does not exist"):
        last_checkpoint(str(tmp_path))
    (tmp_path / 'epoch_1.pth').touch()
    assert last_checkpoint(str(tmp_path)) == str(tmp_path / 'epoch_1.pth')


def test_values_of_tensors_are_not_read_to_compare_iterations(tmp_path):
    save(tmp_path / 'iter_1.pth', 1)
    damage(tmp_path / 'iter_1.pth')
    assert saved_progress(str(tmp_path / 'iter_1.pth')) == Progress(1, 'this')


# ---- the lock ----

HOLDER = """
import multiprocessing, sys, time
from mmvmamba.engine.work_dir import locked

def work():
    time.sleep(60)

with locked(sys.argv[1]):
    worker = multiprocessing.get_context('fork').Process(target=work)
    worker.start()
    print('locked', worker.pid, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock, with a worker that it has forked."""
    command = [sys.executable, '-c', HOLDER, str(tmp_path / 'run')]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    _, worker = process.stdout.readline().split()
    yield process
    process.kill()
    process.wait()
    os.kill(int(worker), signal.SIGKILL)


def test_a_second_run_is_refused_until_the_first_has_ended(tmp_path, holder, monkeypatch):
    folder = str(tmp_path / 'run')
    words = rf'is in use by process {holder.pid} on .*; stop it, or give --work-dir another folder'
    with pytest.raises(UserError, match=words), locked(folder):
        pass
    with locked(str(tmp_path / 'other')):
        pass
    monkeypatch.setenv('RANK', '1')
    with locked(folder, 'pytorch'):  # the first process has the lock for all
        pass
    os.kill(holder.pid, signal.SIGKILL)  # its worker outlives it
    holder.wait()
    with locked(folder):
        assert (tmp_path / 'run' / 'run.lock').read_text().startswith(f'process {os.getpid()} on ')


@pytest.mark.parametrize('kind', ['link', 'dangling link', 'pipe', 'folder'])
def test_a_lock_that_is_not_a_file(tmp_path, kind):
    lock, target = tmp_path / 'run' / 'run.lock', tmp_path / 'target'
    lock.parent.mkdir()
    if kind == 'pipe':
        os.mkfifo(lock)
    elif kind == 'folder':
        lock.mkdir()
    else:
        lock.symlink_to(target)
    if kind == 'link':
        target.write_text('precious')
    with pytest.raises(UserError, match=r"run\.lock' must be a regular file; remove it, or use"):
        with locked(str(tmp_path / 'run')):
            pass
    assert target.read_text() == 'precious' if kind == 'link' else not target.exists()


def test_a_lock_with_other_content(tmp_path):
    (tmp_path / 'run.lock').write_text('precious')
    with pytest.raises(UserError, match=r"run\.lock' must be a lock file, but contains"):
        with locked(str(tmp_path)):
            pass
    assert (tmp_path / 'run.lock').read_text() == 'precious'
    for content in ('', 'process 1 on another machine with a long name'):
        (tmp_path / 'run.lock').write_text(content)
        with locked(str(tmp_path)):
            text = (tmp_path / 'run.lock').read_text()
        assert re.fullmatch(rf'process {os.getpid()} on \S+', text)


def test_a_full_disk(tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr('os.pwrite', refuse)
    with pytest.raises(UserError, match='No space left on device; use another --work-dir'):
        with locked(str(tmp_path)):
            pass


@pytest.mark.parametrize(
    ('path', 'reason'), [('file', 'it is a file'), ('file/run', 'Not a directory')]
)
def test_a_folder_that_cannot_be_made(tmp_path, path, reason):
    (tmp_path / 'file').touch()
    words = rf"work_dir '.*file.*' cannot be used: {reason}; use another --work-dir"
    with pytest.raises(UserError, match=words):
        with locked(str(tmp_path / path)):
            pass


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr('fcntl.lockf', refuse)
    with locked(str(tmp_path)):
        assert (tmp_path / 'run.lock').read_text() == ''
