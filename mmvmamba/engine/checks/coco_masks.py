"""Checks of the masks of COCO annotations: polygons and run-length encodings (RLE)."""

from collections.abc import Iterator
from typing import Any

NUMBERS = frozenset((int, float))  # not bool
_FAR = 0.1  # of the longer side, by which a polygon may exceed the image
_HUGE = 1e6  # pycocotools allocates memory for each pixel of an outline


def mask_problems(mask: Any, size: tuple[int, int] | None) -> set[str]:
    """Return the keys of ``coco_rules.RULES`` that apply to a ``segmentation``.

    Args:
        mask: Any JSON value.
        size (tuple, optional): Height and width of the image, if known.
    """
    if not mask:
        return {'segmentation.missing'}
    if type(mask) is list:
        return _polygon_problems(mask, size)
    if type(mask) is dict:
        return set(_rle_problems(mask, size))
    return {'segmentation.type'}


def is_trained(mask: Any, problems: set[str]) -> bool:
    """Return True if mmdet trains a mask in spite of its problems."""
    if type(mask) is not list or problems & {'segmentation.type', 'segmentation.infinite'}:
        return not problems
    return any(len(polygon) >= 6 and len(polygon) % 2 == 0 for polygon in mask)


def _polygon_problems(polygons: list[Any], size: tuple[int, int] | None) -> set[str]:
    found = set()
    for i, polygon in enumerate(polygons):
        if type(polygon) is not list or not NUMBERS.issuperset(map(type, polygon)):
            found.add('segmentation.type')
        elif polygon and not -_HUGE < min(polygon) <= max(polygon) < _HUGE:
            found.add('segmentation.infinite')
        elif len(polygon) < 6:
            # pycocotools takes the first one for a box, or refuses it.
            found.add('segmentation.short' if i == 0 and len(polygon) < 5 else 'segmentation.line')
        else:
            if len(polygon) % 2:
                found.add('segmentation.odd')
            if size is not None and _is_far_outside(polygon, size):
                found.add('segmentation.outside')
    return found


def _is_far_outside(polygon: list[float], size: tuple[int, int]) -> bool:
    height, width = size
    margin = _FAR * max(size)
    if min(polygon) < -margin:
        return True
    if max(polygon) <= min(size) + margin:
        return False
    return max(polygon[::2]) > width + margin or max(polygon[1::2]) > height + margin


def _rle_problems(rle: dict[str, Any], image_size: tuple[int, int] | None) -> Iterator[str]:
    counts, size = rle.get('counts'), rle.get('size')
    if type(counts) not in (list, str) or not _is_size(size):
        yield 'segmentation.rle'
        return
    if image_size is not None and tuple(size) != image_size:
        yield 'segmentation.size'
    runs = decode_counts(counts) if type(counts) is str else counts
    if runs is None or not NUMBERS.issuperset(map(type, runs)) or (runs and min(runs) < 0):
        yield 'segmentation.counts'
    elif sum(map(min, runs, [2**32] * len(runs))) != size[0] * size[1]:
        yield 'segmentation.sum'


def _is_size(size: Any) -> bool:
    return type(size) is list and [type(n) for n in size] == [int, int] and min(size) > 0


def decode_counts(text: str) -> list[int] | None:
    """Decode the compressed counts of pycocotools, or return None if they are not valid.

    A character holds five bits, the lowest first, and a sixth bit if more follow. From the fourth
    count on, the difference from the count before the last one is stored.
    """
    counts: list[int] = []
    value = shift = 0
    for code in map(ord, text):
        code -= 48
        if not 0 <= code < 64 or shift > 60:
            return None
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            if code & 16:
                value -= 1 << shift
            counts.append(value + counts[-2] if len(counts) > 2 else value)
            value = shift = 0
    return None if shift else counts
