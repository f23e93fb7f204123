"""Checks of the files of mmseg's datasets."""

import os
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
from .image_files import read_all, read_image, report_images, report_sizes, spread
from .label_maps import labels_of, read_label_map, report_head, report_labels
from .report import Report
from .settings import Loader, data_folder, image_loader, join_root, label_map_loader, setting


def check_segmentation(
    leaf: Mapping[str, Any],
    report: Report,
    sample: int | None,
    channels: int | None = None,
    head: Head | None = None,
) -> None:
    """Check images and label maps of a dataset whose files ``BaseSegDataset`` lists.

    Args:
        leaf (Mapping[str, Any]): The config of the dataset.
        report (Report): Gets the problems.
        sample (int, optional): The number of images and label maps to decode; None for all.
        channels (int, optional): Number of image channels of the model. Defaults to None, unknown.
        head (Head, optional): The head that is trained with the labels. Defaults to None.
    """
    path = data_folder(leaf, 'img_path')
    suffix = setting(leaf, 'img_suffix', '.jpg')
    map_suffix = setting(leaf, 'seg_map_suffix', '.png')
    if path is None or not isinstance(suffix, str) or not isinstance(map_suffix, str):
        hint = '`data_prefix.img_path`, `img_suffix` and `seg_map_suffix` must be strings'
        report.add('error', str(path), 'the images cannot be listed', hint=hint)
        return
    images = Folder(path)
    map_path = data_folder(leaf, 'seg_map_path')
    maps = None if map_path is None else Folder(map_path)
    listed = _listed_names(leaf, report)
    if listed is None:
        names = [n[: -len(suffix) or None] for n in images.files() if n.endswith(suffix)]
        missing: set[str] = set()
        report_unreadable(report, images)
        report_hidden_images(report, path, (name + suffix for name in names))
        _report_other_images(report, images, suffix, map_path, map_suffix)
        if not names:
            return
    else:
        names = listed
        hint = f'Add the files or remove the lines from {join_root(leaf, leaf.get("ann_file"))!r}'
        if any(name.endswith(suffix) for name in names):
            hint = f'Remove the suffix {suffix!r} from the lines: it is added to each of them'
        missing = report_missing(report, images, 'image', [n + suffix for n in names], hint)
    missing_maps = set()
    if maps is not None:
        hint = 'Add the label maps or remove the images'
        expected = [n + map_suffix for n in names]
        missing_maps = report_missing(report, maps, 'label map', expected, hint)
        if listed is None:
            _report_lone_maps(report, maps, map_suffix, set(names))
    usable = [n for n in names if n + suffix not in missing and n + map_suffix not in missing_maps]
    loader = image_loader(leaf, channels)
    _check_sample(leaf, report, images, maps, usable, sample, loader, head)


def _listed_names(leaf: Mapping[str, Any], report: Report) -> list[str] | None:
    """Return the lines of the annotation file, or None if the dataset lists the folder."""
    path = join_root(leaf, leaf.get('ann_file'))
    if not leaf.get('ann_file') or path is None or os.path.isdir(path):
        return None
    lines = read_lines(path, report)
    if '' in lines:
        hint = 'Remove empty lines: they are read as image names'
        report.add('error', path, 'line is empty', f'line {lines.index("") + 1}', hint)
    if not lines:
        report.add('error', path, 'the file has no lines, so the dataset is empty')
    return [line for line in lines if line]


def read_lines(path: str, report: Report) -> list[str]:
    """Return the stripped lines of a text file; a file that cannot be read has none."""
    try:
        with open(path, encoding='utf-8') as file:
            return [line.strip() for line in file]
    except (OSError, ValueError) as error:
        reason = getattr(error, 'strerror', None) or str(error)
        report.add('error', path, f'the file cannot be read ({reason})')
        return []


def _report_other_images(
    report: Report, images: Folder, suffix: str, map_path: str | None, map_suffix: str
) -> None:
    """Report images that the suffix leaves out, unless they are label maps."""
    files = images.files()
    extension = os.path.splitext('x' + suffix)[1]
    used = sum(name.endswith(suffix) for name in files)
    inside = os.path.relpath(map_path, images.path) if map_path else '..'
    same_folder = inside == os.curdir
    others: dict[str, list[str]] = {}
    for name in files:
        other = os.path.splitext(name)[1]
        is_label_map = name.startswith(inside + os.sep) or (
            same_folder and name.endswith(map_suffix)
        )
        if other.lower() in IMAGE_SUFFIXES and other != extension and not is_label_map:
            others.setdefault(other, []).append(name)
    for other, names in sorted(others.items()):
        hint = f'Rename or convert them, or set `img_suffix={other!r}`. A dataset has one suffix'
        if other.lower() == extension.lower():
            hint = f'`img_suffix` is case-sensitive. Rename them to {extension!r}'
        kind = f'image with suffix {other!r} is ignored because `img_suffix` is {suffix!r}'
        for name in names:
            report.add('warning' if used else 'error', images.path, kind, repr(name), hint)
    if not used and not others:
        hint = '`data_root`, `data_prefix.img_path` or `img_suffix` is probably wrong'
        kind = f'no files in the folder end in {suffix!r}, so the dataset is empty'
        report.add('error', images.path, kind, hint=hint)


def _report_lone_maps(report: Report, maps: Folder, suffix: str, names: set[str]) -> None:
    files = [n for n in maps.files() if n.endswith(suffix)]
    report_unreadable(report, maps)
    hint = 'If its image has a different suffix or name, that image is not used'
    for name in files:
        if name[: -len(suffix) or None] not in names:
            report.add('warning', maps.path, 'label map has no image', repr(name), hint)


def _check_sample(
    leaf: Mapping[str, Any],
    report: Report,
    images: Folder,
    maps: Folder | None,
    names: Sequence[str],
    sample: int | None,
    loader: Loader,
    head: Head | None,
) -> None:
    """Decode some of the images and label maps, and compare their sizes."""
    suffix, map_suffix = setting(leaf, 'img_suffix'), setting(leaf, 'seg_map_suffix')
    chosen = spread(names, sample)
    paths = [os.path.join(images.path, name + suffix) for name in chosen]
    files = read_all(lambda path: read_image(path, loader), paths)
    usable = report_images(report, images.path, files, loader)
    if maps is None or not chosen:
        return
    map_loader = label_map_loader(leaf)
    if not map_loader.is_stock:
        kind = f'labels are not checked because `{map_loader.name}` loads them'
        report.add('note', maps.path, kind)
        return
    map_paths = [os.path.join(maps.path, name + map_suffix) for name in chosen]
    label_maps = read_all(lambda path: read_label_map(path, map_loader), map_paths)
    is_complete = len(chosen) == len(names)
    labels = labels_of(leaf)
    readable = report_labels(report, maps.path, label_maps, labels, is_complete)
    if head is not None:
        report_head(report, maps.path, readable, labels, head)
    sizes = {m.file.path: (m.file.width, m.file.height) for m in readable}
    map_of = dict(zip(paths, map_paths, strict=True))
    pairs = [(i, sizes[map_of[i.path]]) for i in usable if map_of[i.path] in sizes]
    report_sizes(report, images.path, 'label map', pairs, loader)
