"""Checks of the images, categories and annotations of a COCO file.

The problems are keys of ``coco_rules.RULES``. Every field may hold any JSON value; NaN has been
read as infinity.
"""

import reprlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .coco_masks import NUMBERS, is_trained, mask_problems

_SHOWN = 5  # items that are kept of each problem, as many as a report shows
_MARGIN = 1  # pixels by which the boxes of rounded polygons may exceed the image
_MAX_SIDE = 10**6  # pixels
_MAX_ID = 2**53  # pycocotools stores ids as float
_MIN_CORNERS = 3  # boxes beyond the image, of which fewer can be single mistakes


class Image(NamedTuple):
    """An image of an annotation file; the size is None if the file has no valid one."""

    file_name: str
    size: tuple[int, int] | None  # height, width


@dataclass
class ClassCounts:
    """Numbers of annotations of a class in the images of a file."""

    annotations: int = 0
    crowd: int = 0
    boxes: int = 0  # that mmdet trains
    masks: int = 0  # of those with such a box


@dataclass
class Problem:
    """Number of entries that have a problem, and the first of them."""

    count: int = 0
    items: list[str] = field(default_factory=list)


class Problems(dict[str, Problem]):
    """Problems by key."""

    def add(self, key: str, item: str) -> None:
        problem = self.setdefault(key, Problem())
        problem.count += 1
        if len(problem.items) < _SHOWN:
            problem.items.append(item)


def check_images(entries: list[Any], problems: Problems) -> dict[Any, Image]:
    """Return the images by id, as far as they have one."""
    images: dict[Any, Image] = {}
    names: set[str] = set()
    for i, entry in enumerate(entries):
        item = f'images[{i}]'
        if type(entry) is not dict:
            problems.add('entry', item)
            continue
        name, key = entry.get('file_name'), entry.get('id')
        if type(name) is not str or not name:
            problems.add('image.file_name', item)
            name = ''
        elif name in names:
            problems.add('image.same_file_name', repr(name))
        names.add(name)
        item = repr(name) if name else item
        size = _size(entry.get('height'), entry.get('width'))
        if size is None:
            problems.add('image.size', item)
        if not _is_id(key):
            problems.add('image.id', item)
        elif key in images:
            problems.add('image.same_id', f'id {_short(key)} of {item}')
        else:
            images[key] = Image(name, size)
    _check_id_types('image.mixed_ids', images, problems)
    return images


def _size(height: Any, width: Any) -> tuple[int, int] | None:
    for side in (height, width):
        if type(side) not in NUMBERS or not 0 < side <= _MAX_SIDE or side != int(side):
            return None
    return int(height), int(width)


def _is_id(value: Any) -> bool:
    return type(value) is str or (type(value) in NUMBERS and -_MAX_ID <= value <= _MAX_ID)


def _check_id_types(key: str, ids: Collection[Any], problems: Problems) -> None:
    """Check that not some ids are numbers and others strings, which pycocotools cannot sort."""
    texts = [_short(value) for value in ids if type(value) is str]
    if texts and len(texts) < len(ids):
        problems[key] = Problem(len(texts), [f'id {text}' for text in texts[:_SHOWN]])


def check_categories(entries: list[Any], problems: Problems) -> dict[Any, str]:
    """Return the names of the categories by id, as far as they have both."""
    categories: dict[Any, str] = {}
    names: dict[str, str] = {}
    for i, entry in enumerate(entries):
        item = f'categories[{i}]'
        if type(entry) is not dict:
            problems.add('entry', item)
            continue
        name, key = entry.get('name'), entry.get('id')
        if type(name) is not str or not name:
            problems.add('category.name', item)
            name = ''
        else:
            item = repr(name)
            other = names.setdefault(''.join(name.split()).casefold(), name)
            if name in categories.values():
                problems.add('category.same_name', item)
            elif other != name:
                problems.add('category.similar_name', f'{other!r} and {item}')
        if not _is_id(key):
            problems.add('category.id', item)
        elif key in categories:
            problems.add('category.same_id', f'id {_short(key)} of {item}')
        else:
            categories[key] = name
    _check_id_types('category.mixed_ids', categories, problems)
    return categories


class AnnotationCheck:
    """Check of the annotations of a file, with counts for each class.

    Attributes:
        classes (dict): The :class:`ClassCounts` of each category by its id.
        objects (Counter): The number of annotations of each image by its id.
        is_panoptic (bool): True if the file has the segments of a panoptic file.
        has_masks (bool): True if any annotation has a ``segmentation``.
    """

    def __init__(
        self, images: Mapping[Any, Image], categories: Mapping[Any, str], problems: Problems
    ) -> None:
        self.classes = {key: ClassCounts() for key in categories}
        self.objects: Counter[Any] = Counter()
        self.is_panoptic = False
        self.has_masks = False
        self._images = images
        self._problems = problems
        self._ids: set[Any] = set()
        self._boxes: Counter[str] = Counter()

    def check(self, entries: list[Any]) -> None:
        """Check all annotations."""
        for i, entry in enumerate(entries):
            if type(entry) is not dict:
                self._problems.add('entry', f'annotations[{i}]')
                continue
            image_id = entry.get('image_id')
            image = self._images.get(image_id) if _is_id(image_id) else None
            if image is not None:
                self.objects[image_id] += 1
            if 'segments_info' in entry:
                self.is_panoptic = True
                continue
            for problem in self._check(entry, image):
                self._problems.add(problem, _item(i, entry, image, problem))
        self._check_box_format()

    def _check(self, entry: Mapping[str, Any], image: Image | None) -> list[str]:
        problems = [*self._reference_problems(entry, image)]
        size = image.size if image else None
        boxes = [*box_problems(entry.get('bbox'), size), *_area_problems(entry)]
        self._count_boxes(entry.get('bbox'), size, boxes)
        masks = mask_problems(entry.get('segmentation'), size)
        self.has_masks |= 'segmentation.missing' not in masks
        crowd = entry.get('iscrowd')
        if 'iscrowd' not in entry:
            problems.append('iscrowd.missing')
        elif crowd not in (0, 1):
            problems.append('iscrowd.type')
        category = entry.get('category_id')
        counts = self.classes.get(category) if _is_id(category) else None
        if counts is not None and image is not None:
            counts.annotations += 1
            counts.crowd += bool(crowd)
            # mmdet clips a box that reaches outside the image.
            if not crowd and not entry.get('ignore') and boxes in ([], ['bbox.outside']):
                counts.boxes += 1
                counts.masks += not masks or is_trained(entry.get('segmentation'), masks)
        problems += boxes
        problems += masks
        return problems

    def _reference_problems(self, entry: Mapping[str, Any], image: Image | None) -> Iterator[str]:
        key = entry.get('id')
        if not _is_id(key):
            yield 'id.type'
        elif key in self._ids:
            yield 'id.repeated'
        else:
            self._ids.add(key)
            if key == 0:
                yield 'id.zero'
            if type(key) is str:
                yield 'id.text'
        if image is None:
            known = _is_id(entry.get('image_id'))
            yield 'image_id.unknown' if known else 'image_id.type'
        category = entry.get('category_id')
        if not _is_id(category):
            yield 'category_id.type'
        elif category not in self.classes:
            yield 'category_id.unknown'

    def _count_boxes(self, box: Any, size: tuple[int, int] | None, problems: list[str]) -> None:
        if 'bbox.type' in problems or 'bbox.infinite' in problems:
            return
        left, top, width, height = box
        self._boxes['all'] += 1
        self._boxes['normalised'] += min(box) >= 0 and max(box) <= 1
        if size is not None:
            bottom, right = size[0] + _MARGIN, size[1] + _MARGIN
            self._boxes['beyond'] += left + width > right or top + height > bottom
            self._boxes['corners'] += left < width <= right and top < height <= bottom

    def _check_box_format(self) -> None:
        """Replace the problems of single boxes if all boxes have another format."""
        boxes, beyond = self._boxes['all'], self._boxes['beyond']
        if boxes and self._boxes['normalised'] == boxes:
            self._problems.pop('bbox.small', None)
            self._problems['bbox.normalised'] = Problem(boxes)
        elif beyond >= _MIN_CORNERS and 2 * beyond > boxes and self._boxes['corners'] > 0.9 * boxes:
            self._problems.pop('bbox.outside', None)
            self._problems['bbox.corners'] = Problem(beyond)


def box_problems(box: Any, size: tuple[int, int] | None) -> Iterator[str]:
    """Yield the problems of a ``bbox``, which may be any JSON value."""
    if type(box) is not list or len(box) != 4 or not NUMBERS.issuperset(map(type, box)):
        yield 'bbox.type'
        return
    left, top, width, height = box
    if not -(10**9) < min(box) <= max(box) < 10**9:
        yield 'bbox.infinite'
    elif width <= 0 or height <= 0:
        yield 'bbox.empty'
    else:
        if width < 1 or height < 1:
            yield 'bbox.small'
        if size is None:
            return
        right, bottom = left + width, top + height
        if left >= size[1] or top >= size[0] or right <= 0 or bottom <= 0:
            yield 'bbox.elsewhere'
        elif min(left, top) < -_MARGIN or right > size[1] + _MARGIN or bottom > size[0] + _MARGIN:
            yield 'bbox.outside'


def _area_problems(entry: Mapping[str, Any]) -> Iterator[str]:
    area = entry.get('area')
    if type(area) not in NUMBERS or not -(10**18) < area < 10**18:
        yield 'area.type'
    elif area <= 0:
        yield 'area.zero'


def _item(position: int, entry: Mapping[str, Any], image: Image | None, problem: str) -> str:
    key = entry.get('id')
    item = f'annotation {_short(key)}' if _is_id(key) else f'annotations[{position}]'
    if image is not None:
        item += f' of {image.file_name!r}'
    name = problem.split('.')[0]
    if name in entry and name not in ('id', 'segmentation'):
        item += f' ({name} {_short(entry[name])})'
    return item


def _short(value: Any) -> str:
    return reprlib.repr(value)
