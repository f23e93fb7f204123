"""Checks of the folders and files of mmpretrain's datasets."""

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from .classes import Head
from .folders import (
    IMAGE_SUFFIXES,
    Folder,
    report_hidden_images,
    report_missing,
    report_unreadable,
)
from .image_files import read_all, read_image, report_images, spread
from .report import Report
from .segmentation import read_lines
from .settings import class_names, data_folder, image_loader, join_root, setting

_SUFFIXES = ('.jpg', '.jpeg', '.png', '.ppm', '.bmp', '.pgm', '.tif')
_SPLITS = {'train', 'training', 'val', 'valid', 'validation', 'test', 'testing'}


def check_classification(
    leaf: Mapping[str, Any],
    report: Report,
    sample: int | None,
    channels: int | None = None,
    head: Head | None = None,
) -> None:
    """Check the folders, or the list, of a dataset that is read as ``CustomDataset`` reads it.

    Args:
        leaf (Mapping[str, Any]): The config of the dataset.
        report (Report): Gets the problems.
        sample (int, optional): The number of images to decode; None for all.
        channels (int, optional): Number of image channels of the model. Defaults to None, unknown.
        head (Head, optional): The head that is trained with the labels. Defaults to None.
    """
    path, list_path = _paths(leaf)
    if path is None:
        report.add('error', 'data_prefix', '`data_prefix` is not a path')
        return
    folder = Folder(path)
    has_labels = bool(setting(leaf, 'with_label', True)) and leaf.get('split') != 'test'
    if list_path:
        names = _check_list(leaf, report, folder, list_path, has_labels)
    else:
        names = _check_folders(leaf, report, folder, has_labels)
        if has_labels and head is not None:
            _report_head(report, folder, head)
    loader = image_loader(leaf, channels)
    paths = [os.path.join(path, name) for name in spread(names, sample)]
    report_images(report, path, read_all(lambda p: read_image(p, loader), paths), loader)


def class_folders(leaf: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Return the folders that a dataset numbers as its classes, or None if it has a list."""
    path, list_path = _paths(leaf)
    if path is None or list_path or not setting(leaf, 'with_label', True):
        return None
    return Folder(path).entries().folders


def _paths(leaf: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Return the folder of the images and the annotation file, if there is one."""
    split = leaf.get('split')
    if isinstance(split, str) and split and not leaf.get('data_prefix'):  # of ImageNet
        leaf = {**leaf, 'data_prefix': split}
    list_path = join_root(leaf, leaf.get('ann_file')) if leaf.get('ann_file') else None
    if isinstance(split, str) and split and not list_path:
        found = join_root(leaf, os.path.join('meta', f'{split}.txt'))
        list_path = found if found and os.path.isfile(found) else None
    return data_folder(leaf, 'img_path'), list_path


def _check_list(
    leaf: Mapping[str, Any], report: Report, folder: Folder, path: str, has_labels: bool
) -> list[str]:
    """Check the lines of an annotation file, and return the images that exist."""
    lines = read_lines(path, report)
    if not has_labels:
        names = lines
    else:
        names = []
        classes = class_names(leaf)
        positions = {_plain(name): i for i, name in enumerate(classes or ())}
        for i, line in enumerate(lines):
            name, _, label = line.rpartition(' ')
            if not name or not re.fullmatch(r'[+-]?\d+', label):
                hint = 'Each line must be an image path, a space and a class index'
                report.add('error', path, 'line has no label', f'line {i + 1}: {line!r}', hint)
                continue
            names.append(name)
            item, number = repr(name), int(label)
            if number < 0 or (classes is not None and number >= len(classes)):
                kind = 'label is negative'
                if number >= 0:
                    kind = f'label is out of range for {len(classes or ())} classes'
                report.add('error', path, kind, f'{item} has {number}', 'Labels start at 0')
            expected = positions.get(_plain(name.split('/')[0])) if '/' in name else None
            if expected not in (None, number):
                kind = 'label does not match the class folder'
                item = f'{item} has {number}, but the index of its folder is {expected}'
                report.add('error', path, kind, item, 'Labels are indices into `classes`')
    if not lines:
        report.add('error', path, 'the file has no lines, so the dataset is empty')
    hint = f'Add the files or remove the lines from {path!r}'
    missing = report_missing(report, folder, 'image', names, hint)
    return [name for name in names if name not in missing]


def _check_folders(
    leaf: Mapping[str, Any], report: Report, folder: Folder, has_labels: bool
) -> list[str]:
    """Check the folders of the classes, and return the images that the dataset uses."""
    given = setting(leaf, 'extensions', _SUFFIXES)
    suffixes = tuple(str(s).lower() for s in given) if isinstance(given, list | tuple) else ()
    files = folder.files()
    report_unreadable(report, folder)
    images = [name for name in files if name.lower().endswith(suffixes)]
    for name in files:
        suffix = os.path.splitext(name)[1]
        if suffix.lower() in IMAGE_SUFFIXES and not name.lower().endswith(suffixes):
            kind = f'image with suffix {suffix!r} is ignored'
            hint = f'Convert the images or add the suffix to `extensions`, now {suffixes}'
            report.add('warning', folder.path, kind, repr(name), hint)
    if has_labels:
        folders = folder.entries().folders
        _report_hidden(report, folder, folders, images)
        _report_empty(report, folder, folders, images)
        visible = [name for name in folders if not name.startswith('.')]
        _report_names(leaf, report, folder.path, visible)
        for name in [n for n in images if os.sep not in n]:
            hint = 'Move it to the folder of its class'
            report.add('warning', folder.path, 'image is not in a class folder', repr(name), hint)
        images = [name for name in images if os.sep in name]
    if not images:
        kind = 'no images in class folders' if has_labels else 'no images in the folder'
        hint = f'`data_root` or `data_prefix` may be wrong; image suffixes are {suffixes}'
        report.add('error', folder.path, kind, hint=hint)
    return images


def _report_head(report: Report, folder: Folder, head: Head) -> None:
    """Report class folders beyond the head's ``num_classes``."""
    folders = [name for name in folder.entries().folders if not name.startswith('.')]
    if len(folders) > head.num_classes:
        kind = f'there are {len(folders)} class folders, but {head.name}.num_classes is '
        kind += f'{head.num_classes}'
        report.add('error', folder.path, kind, hint=f'Set {head.name}.num_classes')


def _report_hidden(
    report: Report, folder: Folder, folders: Sequence[str], images: Sequence[str]
) -> None:
    """Report hidden folders, such as those of Jupyter, which mmpretrain does not leave out."""
    for name in folders:
        if name.startswith('.'):
            kind = 'hidden folder is treated as a class'
            hint = 'Remove it: mmpretrain gives it label 0 and shifts all other labels'
            report.add('error', folder.path, kind, repr(name), hint)
    report_hidden_images(report, folder.path, [n for n in images if not n.startswith('.')])


def _report_empty(
    report: Report, folder: Folder, folders: Sequence[str], images: Sequence[str]
) -> None:
    used = {name.split(os.sep)[0] for name in images}
    for name in folders:
        if name not in used and not name.startswith('.'):
            kind = 'class folder has no images'
            hint = 'It still counts as a class. Add images or remove the folder'
            report.add('warning', folder.path, kind, repr(name), hint)
    if folders and {name.lower() for name in folders} <= _SPLITS:
        kind = f'the class folders are {list(folders)}, which look like dataset splits'
        hint = 'Set `data_prefix` to one of them; its subfolders are the classes'
        report.add('error', folder.path, kind, hint=hint)


def _report_names(
    leaf: Mapping[str, Any], report: Report, path: str, folders: Sequence[str]
) -> None:
    """Compare the folders, which mmpretrain numbers by their sorted names, with the classes."""
    classes = class_names(leaf)
    if classes is None or not folders:
        return
    plain, names = [_plain(n) for n in folders], [_plain(n) for n in classes]
    common = set(plain) & set(names)
    if len(folders) != len(classes):
        lacking = [n for n, p in zip(classes, names, strict=True) if p not in common][:8]
        other = [n for n, p in zip(folders, plain, strict=True) if p not in common][:8]
        kind = f'there are {len(folders)} class folders, but {len(classes)} classes'
        hint = f'Folders without a class: {other}. Classes without a folder: {lacking}'
        report.add('error', path, kind, hint=hint if common else '')
        return
    wrong = [
        f'folder {folders[i]!r} is class {classes[i]!r}'
        for i in range(len(folders))
        if plain[i] != names[i]
    ]
    swapped = [i for i, name in enumerate(plain) if name in common and names[i] != name]
    if swapped:
        hint = 'mmpretrain numbers folders in sorted order. List `classes` in that order'
        for text in wrong:
            report.add('error', path, '`classes` and folders are in different order', text, hint)
    elif common:
        for text in wrong:
            kind = 'class name differs from its folder'
            report.add('warning', path, kind, text, 'Check `classes` for typos')
    elif all(name.isdecimal() for name in folders) and folders != sorted(folders, key=int):
        kind = 'folder names are numbers, which mmpretrain sorts as text'
        hint = "10 sorts before 2. List `classes` in that order, or name the folders '02' and '10'"
        report.add('warning', path, kind, ', '.join(wrong[:3]), hint)
    elif leaf.get('classes') or leaf.get('metainfo'):  # ImageNet's own differ altogether
        for text in wrong:
            report.add('note', path, 'class name differs from its folder', text)


def _plain(name: str) -> str:
    return re.sub(r'[\s_-]+', ' ', name).strip().lower()
