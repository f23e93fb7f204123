"""Checks of the labels in label maps, read as they are in the file."""

import io
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import mmcv
import numpy as np
from PIL import Image

from .classes import Head
from .configs import dataset_class
from .image_files import ImageFile, item_name, read_bytes, report_problem, undecodable
from .report import Report
from .settings import Loader, class_names, setting

_SHOWN = 12  # classes or labels in a message
_IGNORED = 255


class LabelMap(NamedTuple):
    """Labels of a label map.

    Attributes:
        file (ImageFile): Its path, size, or problem.
        counts (Mapping[Any, int] | None): The pixels of each label in the file; None if it has
            several channels.
        has_equal_channels (bool): True for several channels that are equal.
    """

    file: ImageFile
    counts: Mapping[Any, int] | None = None
    has_equal_channels: bool = False


class Labels(NamedTuple):
    """How a dataset of mmseg numbers the labels of a file.

    Attributes:
        classes (Sequence[str] | None): Names, if known.
        final (np.ndarray): The label that mmseg trains for each of the 256 labels of a file.
        ignored (frozenset[int]): Final labels that are no class.
        reduces_zero (bool): ``reduce_zero_label``.
    """

    classes: Sequence[str] | None
    final: np.ndarray
    ignored: frozenset[int]
    reduces_zero: bool

    def is_known(self, label: int) -> bool:
        """Return True if a label of a file is a class or ignored."""
        final = int(self.final[label])
        return final in self.ignored or self.classes is None or final < len(self.classes)


def labels_of(leaf: Mapping[str, Any]) -> Labels:
    """Return the labels of a dataset, with the arithmetic of mmseg's ``LoadAnnotations``."""
    classes = class_names(leaf)
    try:
        mapping = dataset_class(leaf).get_label_map(classes)  # of a part of the classes
    except ValueError:  # other classes; the dataset refuses them
        mapping = None
    final = np.arange(256, dtype=np.uint8)
    reduces_zero = bool(setting(leaf, 'reduce_zero_label', False))
    if reduces_zero:
        final[1:] -= 1
        final[[0, 255]] = _IGNORED
    if mapping:
        before = final.copy()
        for old, new in mapping.items():
            final[before == old] = new
        # Labels beyond the classes of the file must not count as classes.
        final[(before >= len(mapping)) & (before < 254)] = 254
    ignored = setting(leaf, 'ignore_index', _IGNORED)
    known = {_IGNORED} | ({ignored} if isinstance(ignored, int) else set())
    return Labels(classes, final, frozenset(known), reduces_zero)


def read_label_map(path: str, loader: Loader) -> LabelMap:
    """Read a label map and count its labels, without a conversion to 8 bits."""
    content = read_bytes(path)
    if isinstance(content, ImageFile):
        return LabelMap(content)
    try:
        if loader.backend == 'pillow':
            with Image.open(io.BytesIO(content)) as image:
                array = np.asarray(image)
        else:
            array = mmcv.imfrombytes(content, flag='unchanged', backend=loader.backend)
    except Exception as error:  # readers raise all kinds of exceptions for broken files
        return LabelMap(undecodable(path, error))
    if not isinstance(array, np.ndarray) or array.ndim < 2 or not array.size:
        return LabelMap(undecodable(path, ValueError('')))
    file = ImageFile(path, array.shape[1], array.shape[0])
    array = array.squeeze()
    if array.ndim > 2:
        colors = array[..., :-1] if array.shape[-1] in (2, 4) else array  # without transparency
        return LabelMap(file, None, bool((colors == colors[..., :1]).all()))
    if array.dtype == bool:
        array = array.astype(np.uint8)
    values, counts = np.unique(array, return_counts=True)
    return LabelMap(file, dict(zip(values.tolist(), counts.tolist(), strict=True)))


def report_labels(
    report: Report, folder: str, maps: Iterable[LabelMap], labels: Labels, is_complete: bool
) -> list[LabelMap]:
    """Report wrong labels and classes without a pixel; return the label maps that decode.

    Args:
        report (Report): Gets the problems.
        folder (str): The folder of the label maps.
        maps (Iterable[LabelMap]): The label maps of the sample.
        labels (Labels): The labels of the dataset.
        is_complete (bool): True if the sample has all label maps.
    """
    readable, raw = [], Counter()
    wrong: dict[str, list[int]] = {}
    for label_map in maps:
        if label_map.file.problem:
            report_problem(report, folder, 'label map', label_map.file)
            continue
        readable.append(label_map)
        item = item_name(label_map.file.path, folder)
        if label_map.counts is None:
            _report_channels(report, folder, item, label_map.has_equal_channels)
        elif _are_bytes(report, folder, item, label_map.counts):
            raw.update({int(v) & 255: n for v, n in label_map.counts.items()})
            unknown = [int(v) & 255 for v in label_map.counts if not labels.is_known(int(v) & 255)]
            if unknown:
                wrong[item] = unknown
    for item, unknown in wrong.items():
        kind = f'label is not one of the {len(labels.classes or ())} classes'
        hint = _wrong_labels_hint(raw, labels, readable[0].file.path)
        report.add('error', folder, kind, f'{item} has {_list(unknown)}', hint, single=True)
    if raw and not wrong:
        _report_classes(report, folder, raw, labels, is_complete)
    return readable


def report_head(
    report: Report, folder: str, maps: Iterable[LabelMap], labels: Labels, head: Head
) -> None:
    """Report labels that are classes of the dataset but not of a head."""
    for label_map in maps:
        values = [
            v for v in label_map.counts or () if _is_whole(v) and labels.is_known(int(v) & 255)
        ]
        final = {int(labels.final[int(v) & 255]) for v in values}
        final -= labels.ignored | {head.ignore_index}
        wrong = [label for label in final if label >= head.num_classes]
        if wrong:
            kind = f'label is a class of the dataset, but {head.name}.num_classes is '
            kind += f'{head.num_classes}'
            item = f'{item_name(label_map.file.path, folder)} has class {_list(wrong)}'
            report.add('error', folder, kind, item, f'Set {head.name}.num_classes')


def _report_channels(report: Report, folder: str, item: str, are_equal: bool) -> None:
    hint = 'Replace each color by its class index and save a grayscale or palette image'
    if are_equal:
        hint = 'All channels are equal. Save one of them'
    report.add('error', folder, 'label map has several channels', item, hint)


def _are_bytes(report: Report, folder: str, item: str, counts: Mapping[Any, int]) -> bool:
    """Report labels that mmseg changes when it converts them to 8 bits."""
    # -1 becomes 255, which is ignored.
    wrong = [v for v in counts if not (_is_whole(v) and -1 <= v <= 255)]
    if not wrong:
        return True
    value = wrong[0]
    if _is_whole(value):
        kind = 'label is outside 0 to 255 and wraps around because mmseg reads 8 bits'
        item = f'{item} has {value}, which is read as {int(value) & 255}'
        hint = 'Save class indices, with 255 for pixels without a class'
    else:
        kind, item = 'label is not an integer', f'{item} has {value}'
        hint = 'Save class indices as 8-bit integers'
    report.add('error', folder, kind, item, hint)
    return False


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) or (isinstance(value, float) and value.is_integer())


def _wrong_labels_hint(raw: Counter, labels: Labels, path: str) -> str:
    """Return the likely cause of labels that are not classes."""
    count = len(labels.classes or ())
    used = [v for v in raw if int(labels.final[v]) not in labels.ignored]
    if os.path.splitext(path)[1].lower() in ('.jpg', '.jpeg'):
        return 'JPEG compression changes labels. Save label maps as PNG'
    if not labels.reduces_zero and min(used) >= 1 and max(used) == count:
        return (
            'The labels seem to start at 1. Subtract 1, or set `reduce_zero_label=True`, which '
            'ignores 0'
        )
    if not labels.reduces_zero and max(used) == count and 0 in used:
        return (
            'There is one more label than classes. Add the class of label 0 (the background) to '
            '`metainfo.classes`, or set `reduce_zero_label=True`, which ignores 0'
        )
    return (
        'Add the classes to `metainfo.classes` and `num_classes`, or set these pixels to 255 to '
        'ignore them'
    )


def _report_classes(
    report: Report, folder: str, raw: Counter, labels: Labels, is_complete: bool
) -> None:
    """Report classes that do not occur in the sample."""
    pixels = Counter()
    for value, count in raw.items():
        pixels[int(labels.final[value])] += count
    found = [index for index in pixels if index not in labels.ignored]
    if not found:
        hint = '255 means ignore. Label foreground pixels with their class index'
        if labels.reduces_zero:
            hint = '`reduce_zero_label=True` ignores 0 and subtracts 1 from the other labels'
        kind = f'every pixel is ignored: the labels are {_list(raw)}'
        report.add('error', folder, kind, hint=hint)
        return
    if labels.classes is None or len(labels.classes) < 2:
        return
    if found == [0] and 255 in raw and len(labels.classes) == 2 and not labels.reduces_zero:
        kind = f'class {labels.classes[1]!r} never occurs: the labels are 0 and 255'
        hint = '255 means ignore. Label foreground pixels with 1'
        report.add('error', folder, kind, hint=hint)
        return
    where = '' if is_complete else ' in the sample'
    if len(found) == 1:
        kind = f'all pixels{where} belong to class {labels.classes[found[0]]!r}'
        hint = f'The labels are {_list(raw)}, and 255 is ignored. Check the label maps'
        report.add('warning', folder, kind, hint=hint)
        return
    absent = [name for i, name in enumerate(labels.classes) if i not in pixels]
    if absent:
        kind = f'{len(absent)} of {len(labels.classes)} classes never occur{where}'
        hint = f'Missing classes: {_list(absent)}. Labels: {_list(raw)}'
        report.add('warning' if is_complete else 'note', folder, kind, hint=hint)


def _list(values: Iterable[Any]) -> str:
    ordered = list(values)
    if all(isinstance(v, int) for v in ordered):
        ordered.sort()
    more = f' and {len(ordered) - _SHOWN} more' if len(ordered) > _SHOWN else ''
    return ', '.join(map(str, ordered[:_SHOWN])) + more
