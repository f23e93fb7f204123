"""What is wrong in a COCO annotation file, before it is trained on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

#: Images that only have background; COCO has a thousand of them.
HARMLESS = 'no annotation'
_MARGIN = 1.0  # pixels by which boxes of rounded polygons may reach out


def audit_coco(path: str) -> dict[str, list[str]]:
    """Finds annotations that cannot be used.

    Args:
        path (str): A JSON file; one that does not have COCO's lists has nothing to find.

    Returns:
        dict[str, list[str]]: The file names of the images for each kind of mistake.
    """
    with open(path, encoding='utf-8') as file:
        coco = json.load(file)
    if not isinstance(coco, dict) or not {'images', 'annotations', 'categories'} <= coco.keys():
        return {}
    names = {category.get('id'): category.get('name') for category in coco['categories']}
    images = {image.get('id'): image for image in coco['images']}
    found: dict[str, dict[str, None]] = {}
    empty = dict.fromkeys(images)
    for annotation in coco['annotations']:
        image = images.get(annotation.get('image_id'))
        empty.pop(annotation.get('image_id'), None)
        name = f'annotation {annotation.get("id")}' if image is None else image.get('file_name')
        for kind in _mistakes(annotation, image, names):
            found.setdefault(kind, {})[str(name)] = None
    kinds = {kind: list(files) for kind, files in sorted(found.items())}
    if empty:
        kinds[HARMLESS] = [str(images[key].get('file_name')) for key in empty]
    return kinds


def _mistakes(
    annotation: Mapping[str, Any], image: Mapping[str, Any] | None, names: Mapping[Any, str]
) -> Iterator[str]:
    if annotation.get('category_id') not in names:
        yield f'class id {annotation.get("category_id")}, which the file does not define,'
    if image is None:
        yield f'image id {annotation.get("image_id")}, which the file does not define,'
        return
    width, height = image.get('width'), image.get('height')
    box = annotation.get('bbox')
    if not _is_box(box):
        yield f'box {box}, which is empty or no box,'
    elif width is not None and height is not None:
        left, top, right, bottom = box[0], box[1], box[0] + box[2], box[1] + box[3]
        if min(left, top) < -_MARGIN or right > width + _MARGIN or bottom > height + _MARGIN:
            yield 'a box outside the image'
    mask = annotation.get('segmentation')
    if isinstance(mask, dict) and mask.get('size') not in (None, [height, width]):
        yield 'a mask of another size than the image'


def _is_box(box: Any) -> bool:
    if not isinstance(box, list | tuple) or len(box) != 4:
        return False
    return all(isinstance(v, int | float) for v in box) and box[2] > 0 and box[3] > 0
