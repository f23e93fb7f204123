"""Folders of images, each listed once."""

import os
from collections.abc import Iterable
from typing import NamedTuple

from .report import Report

#: Suffixes of files that are images, whether or not a dataset reads them.
IMAGE_SUFFIXES = frozenset(
    '.bmp .gif .jp2 .jpeg .jpg .pgm .png .ppm .tif .tiff .webp'.split()  # in lower case
)
_CASE_HINT = 'Names are case-sensitive. Rename the files or correct the names in the dataset'


class Entries(NamedTuple):
    """Names directly in a folder."""

    files: frozenset[str] = frozenset()
    folders: tuple[str, ...] = ()


class Folder:
    """A folder whose subfolders are listed when they are needed, and only once.

    A file is listed without a call of its own, which would take minutes on network file systems.

    Args:
        path (str): The folder, which may be missing: it then has no files.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.unreadable: dict[str, str] = {}  # subfolders and the reasons
        self._entries: dict[str, Entries] = {}
        self._similar: dict[str, dict[str, str]] = {}

    def entries(self, subfolder: str = '') -> Entries:
        """Return the names directly in a subfolder."""
        if subfolder not in self._entries:
            self._entries[subfolder] = self._list(subfolder)
        return self._entries[subfolder]

    def files(self, subfolder: str = '') -> list[str]:
        """Return the sorted relative paths that MMEngine lists in a subfolder, at any depth.

        Like MMEngine, this leaves hidden files out, but enters hidden folders.
        """
        found: list[str] = []
        pending = [(subfolder, (self._real(subfolder),))]
        while pending:
            current, parents = pending.pop()
            entries = self.entries(current)
            found += [os.path.join(current, n) for n in entries.files if not n.startswith('.')]
            for name in entries.folders:
                child = os.path.join(current, name)
                if not os.path.islink(os.path.join(self.path, child)):
                    pending.append((child, parents))
                elif not _is_inside(self._real(current), self._real(child), parents):
                    pending.append((child, (*parents, self._real(child))))
        return sorted(found)

    def has(self, name: str) -> bool:
        """Return True if a file of this relative or absolute path exists."""
        head, tail = os.path.split(name)
        files = self.entries(head).files
        if tail in files:
            return True
        # Some file systems ignore case.
        other = self.similar(name)
        return other.lower() == name.lower() and os.path.isfile(os.path.join(self.path, name))

    def similar(self, name: str) -> str:
        """Return a file that differs from a missing one in case or suffix only, or ''."""
        head, tail = os.path.split(name)
        if head not in self._similar:
            files = sorted(self.entries(head).files)
            names = {os.path.splitext(file)[0].lower(): file for file in files}
            self._similar[head] = names | {file.lower(): file for file in files}
        names = self._similar[head]
        found = names.get(tail.lower()) or names.get(os.path.splitext(tail)[0].lower())
        return os.path.join(head, found) if found else ''

    def _real(self, subfolder: str) -> str:
        path = os.path.join(self.path, subfolder)
        return path if '\0' in path else os.path.realpath(path)

    def _list(self, subfolder: str) -> Entries:
        files, folders = [], []
        try:
            with os.scandir(os.path.join(self.path, subfolder)) as entries:
                for entry in entries:
                    try:
                        if entry.is_file():
                            files.append(entry.name)
                        elif entry.is_dir():
                            folders.append(entry.name)
                    except OSError:  # a symbolic link that leads nowhere
                        continue
        except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: not a path
            return Entries()
        except OSError as error:
            self.unreadable[subfolder] = error.strerror or type(error).__name__
        return Entries(frozenset(files), tuple(sorted(folders)))


def _is_inside(path: str, link: str, parents: Iterable[str]) -> bool:
    """Return True if a symbolic link to a folder leads back to a folder that contains it."""
    return link in parents or f'{path}{os.sep}'.startswith(link.rstrip(os.sep) + os.sep)


def report_missing(
    report: Report, folder: Folder, kind: str, names: Iterable[str], hint: str
) -> set[str]:
    """Report the files of a list that do not exist, and the folders that cannot be read.

    Args:
        report (Report): Gets an error if files are missing.
        folder (Folder): The folder with the files.
        kind (str): What is missing, e.g. 'image'.
        names (Iterable[str]): Paths relative to the folder.
        hint (str): The remedy, if no file has a similar name.

    Returns:
        set[str]: The files that do not exist.
    """
    names = list(names)
    missing = [name for name in names if not folder.has(name)]
    report_unreadable(report, folder)
    similar = next(((n, other) for n in missing if (other := folder.similar(n))), None)
    if similar:
        name, other = similar
        hint = f'Found {other!r} instead of {name!r}. ' + (
            _CASE_HINT
            if name.lower() == other.lower()
            else 'Correct the suffix in the config or annotation file, or convert the files'
        )
    elif missing and len(missing) == len(names):
        hint = 'None of the files exist, so `data_root` or `data_prefix` is probably wrong'
    single = len(missing) < len(names)
    for name in missing:
        report.add('error', folder.path, f'{kind} does not exist', repr(name), hint, single=single)
    return set(missing)


def report_unreadable(report: Report, folder: Folder) -> None:
    """Report the subfolders that were listed in vain, once."""
    for name, reason in folder.unreadable.items():
        path = os.path.join(folder.path, name) if name else folder.path
        hint = 'Give this user permission to read and enter the folder'
        report.add('error', path, f'the folder cannot be read ({reason})', hint=hint)
    folder.unreadable.clear()


def report_hidden_images(report: Report, path: str, names: Iterable[str]) -> None:
    """Report images in hidden folders, which MMEngine lists like all others."""
    for name in names:
        if any(part.startswith('.') for part in os.path.dirname(name).split(os.sep)):
            kind = 'image in a hidden folder is also used'
            hint = 'Remove the folder. Jupyter, for example, creates such copies'
            report.add('warning', path, kind, repr(name), hint)
