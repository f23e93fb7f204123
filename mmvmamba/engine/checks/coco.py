"""Checks of COCO annotation files."""

import functools
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from mmvmamba.engine.errors import UserError

from .configs import annotation_file, dataset_class, leaf_datasets

#: The kind of images with background only, of which COCO has a thousand.
HARMLESS = 'no annotation'
_LISTS = ('images', 'annotations', 'categories')
_MARGIN = 1.0  # pixels by which the boxes of rounded polygons may exceed the image


class CocoFile(NamedTuple):
    """Summary of an annotation file, which may be too large to keep in memory."""

    categories: tuple[str, ...]  # names in the order of the file
    mistakes: Mapping[str, list[str]]  # file names of the images for each kind


def read_coco(path: str) -> CocoFile:
    """Read and check an annotation file, and cache the result until the file changes.

    Raises:
        UserError: If the file does not hold the ``images``, ``annotations`` and ``categories`` of
            COCO.
    """
    return _read(path, os.stat(path).st_mtime_ns)


def coco_files(cfg: Mapping[str, Any] | None) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Yield each data set that mmdet reads with the API of COCO, and its annotation file."""
    for leaf in leaf_datasets(cfg):
        path = annotation_file(leaf)
        if path and path.endswith('.json') and os.path.isfile(path):
            # Other data sets, such as those of mmpretrain, have a JSON format of their own.
            if hasattr(dataset_class(leaf), 'COCOAPI'):
                yield leaf, path


@functools.lru_cache(maxsize=16)
def _read(path: str, modified: int) -> CocoFile:
    try:
        with open(path, encoding='utf-8') as file:
            content = json.load(file)
    except ValueError as error:
        raise UserError(f'annotation file {path!r} is not JSON: {error}') from error
    # The files of test images have no annotations.
    lists = {'annotations': [], **content} if isinstance(content, dict) else {}
    wrong = [name for name in _LISTS if not _is_list_of_objects(lists.get(name))]
    if wrong:
        raise UserError(
            f'annotation file {path!r} is not COCO: {wrong} must be lists of objects; the file has '
            f'the keys {sorted(content) if lists else []}'
        )
    names = tuple(category.get('name') for category in lists['categories'])
    return CocoFile(names, _find_mistakes(lists))


def _is_list_of_objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, dict) for entry in value)


def _find_mistakes(content: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the file names of the images for each kind of unusable annotation."""
    categories = {category.get('id') for category in content['categories']}
    images = {image.get('id'): image for image in content['images']}
    found: dict[str, dict[str, None]] = {}
    empty = dict.fromkeys(images)
    for annotation in content['annotations']:
        image = images.get(annotation.get('image_id'))
        empty.pop(annotation.get('image_id'), None)
        if 'segments_info' in annotation:  # of a panoptic file
            continue
        name = f'annotation {annotation.get("id")}' if image is None else image.get('file_name')
        for kind in _annotation_mistakes(annotation, image, categories):
            found.setdefault(kind, {})[str(name)] = None
    mistakes = {kind: list(files) for kind, files in sorted(found.items())}
    if empty:
        mistakes[HARMLESS] = [str(images[key].get('file_name')) for key in empty]
    return mistakes


def _annotation_mistakes(
    annotation: Mapping[str, Any], image: Mapping[str, Any] | None, categories: set[Any]
) -> Iterator[str]:
    if annotation.get('category_id') not in categories:
        yield f'class id {annotation.get("category_id")}, which the file does not define,'
    if image is None:
        yield f'image id {annotation.get("image_id")}, which the file does not define,'
        return
    width, height = image.get('width'), image.get('height')
    box = annotation.get('bbox')
    valid = isinstance(box, list) and len(box) == 4 and all(isinstance(v, int | float) for v in box)
    if not valid or min(box[2:]) <= 0:
        yield f'box {box}, which is empty or not a box,'
    elif isinstance(width, int | float) and isinstance(height, int | float):
        left, top, right, bottom = box[0], box[1], box[0] + box[2], box[1] + box[3]
        if min(left, top) < -_MARGIN or right > width + _MARGIN or bottom > height + _MARGIN:
            yield 'a box outside the image'
    mask = annotation.get('segmentation')
    if isinstance(mask, dict) and mask.get('size') not in (None, [height, width]):
        yield 'a mask of another size than the image'
