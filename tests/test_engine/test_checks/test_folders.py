"""Listings of folders, and files that do not exist."""

import os

import pytest
from mmengine.fileio import list_dir_or_file

from mmvmamba.engine.checks.folders import Folder, report_missing
from mmvmamba.engine.checks.report import Report

from .images import groups, only


@pytest.fixture
def root(tmp_path):
    for name in ('a.jpg', 'b.JPG', 'sub/c.png', 'sub/deep/d.jpg', '.hidden.jpg', '.cache/e.jpg'):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / 'dangling.jpg').symlink_to(tmp_path / 'nowhere')
    (tmp_path / 'link.jpg').symlink_to(tmp_path / 'a.jpg')
    (tmp_path / 'folder.jpg').mkdir()
    os.mkfifo(tmp_path / 'fifo.jpg')
    (tmp_path / 'loop.jpg').symlink_to('loop.jpg')
    return tmp_path


def missing(folder, names, hint='Add it'):
    return groups(report_missing, Report, folder, 'image', names, hint)


def test_the_files_are_those_of_mmengine(root):
    (root / 'loop.jpg').unlink()  # MMEngine raises OSError
    expected = sorted(list_dir_or_file(str(root), list_dir=False, recursive=True))
    assert Folder(str(root)).files() == expected
    assert Folder(str(root)).files('sub') == ['sub/c.png', 'sub/deep/d.jpg']
    assert Folder(str(root)).entries().folders == ('.cache', 'folder.jpg', 'sub')


def test_links_to_folders(root, tmp_path_factory):
    other = tmp_path_factory.mktemp('other')
    (other / 'f.jpg').touch()
    (other / 'back').symlink_to(root)
    (root / 'sub' / 'up').symlink_to(root)
    (root / 'other').symlink_to(other)
    files = Folder(str(root)).files()
    assert 'other/f.jpg' in files and len(files) == len(set(files)) < 12


def test_each_folder_is_listed_once(root, monkeypatch):
    listed = []
    scandir = os.scandir
    monkeypatch.setattr(os, 'scandir', lambda path: listed.append(path) or scandir(path))
    folder = Folder(str(root))
    for _ in range(3):
        folder.files()
        assert folder.has('a.jpg') and folder.has('sub/deep/d.jpg') and not folder.has('x/y.jpg')
    assert len(listed) == len(set(listed)) == 6


@pytest.mark.parametrize(
    'name', ['a.jpg', './a.jpg', 'link.jpg', 'sub/c.png', 'sub/../a.jpg', '.hidden.jpg']
)
def test_files_that_exist(root, name):
    assert Folder(str(root)).has(name)
    assert Folder('/nowhere').has(str(root / name))
    assert not missing(Folder(str(root)), [name])


@pytest.mark.parametrize(
    'name',
    ['x.jpg', 'dangling.jpg', 'folder.jpg', 'fifo.jpg', 'loop.jpg', '', 'sub', 'sub/', 'a.jpg/b']
    + ['a\0.jpg', 'x\0/a.jpg', '\ud800/a.jpg', '/', '..', 'x' * 5000, 'x' * 5000 + '/a.jpg'],
)
def test_files_that_do_not_exist(root, name):
    found = missing(Folder(str(root)), [name, 'a.jpg'])
    group = next(g for g in found if g.kind == 'image does not exist')
    assert group.items == [repr(name)] and group.severity == 'error'


def test_the_likely_cause(root):
    group = only(missing(Folder(str(root)), ['b.jpg', 'a.jpg']), 'error', "'b.jpg'")
    assert "Found 'b.JPG' instead of 'b.jpg'. Names are case-sensitive" in group.hint
    group = only(missing(Folder(str(root)), ['x.jpg', 'sub/c.jpg']), 'error', '(2 times)')
    assert "Found 'sub/c.png' instead of 'sub/c.jpg'. Correct the suffix" in group.hint
    assert 'Add it' in only(missing(Folder(str(root)), ['x.jpg', 'a.jpg']), 'error', 'x.jpg').hint
    group = only(missing(Folder(str(root / 'no')), ['x.jpg', 'a.jpg']), 'error', 'x.jpg')
    assert '`data_prefix` is probably wrong' in group.hint
    assert missing(Folder(str(root)), []) == []


def test_file_systems_that_ignore_case(root, monkeypatch):
    (root / 'b.jpg').touch()
    folder = Folder(str(root))
    entries = folder.entries()
    folder._entries[''] = entries._replace(files=entries.files - {'b.jpg'})
    assert folder.has('b.jpg')


def test_a_folder_without_permission(root, monkeypatch):
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith('sub'):
            raise PermissionError(13, 'Permission denied')
        return scandir(path)

    monkeypatch.setattr(os, 'scandir', refuse)
    first, second = missing(Folder(str(root)), ['sub/c.png', 'a.jpg'])
    assert first.kind == 'the folder cannot be read (Permission denied)'
    assert first.path == str(root / 'sub') and second.items == ["'sub/c.png'"]


def test_returned_names(root):
    assert report_missing(Report(), Folder(str(root)), 'image', ['x', 'a.jpg'], '') == {'x'}
