"""Checks of loaded samples, before augmentation hides what is wrong with them."""

import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform
from PIL import Image

from mmvmamba.engine.errors import UserError
from mmvmamba.registry import TRANSFORMS

_TAIL = 4096  # bytes at the end of a file in which its end marker must be
#: The first bytes of a format, and its end marker.
_ENDS = ((b'\xff\xd8', b'\xff\xd9'), (b'\x89PNG', b'IEND'))
_EXIF_HINT = (
    '; if loading rotates it by its EXIF orientation, set '
    "`color_type='color_ignore_orientation'` in `LoadImageFromFile`"
)


@TRANSFORMS.register_module()
class CheckSample(BaseTransform):
    """Check a sample; ``BadDataHook`` inserts this after the loading transforms.

    Args:
        num_classes (int, optional): The number of classes; labels must be less than this. Defaults
            to None, which skips this check.
        ignore_index (int): The label of ignored pixels. Defaults to 255.
    """

    def __init__(self, num_classes: int | None = None, ignore_index: int = 255) -> None:
        self.num_classes = num_classes
        self.ignore_index = ignore_index

    def transform(self, results: dict) -> dict:
        """Return the sample unchanged.

        Raises:
            UserError: If the sample cannot be used.
        """
        for mistake in self._mistakes(results):
            raise UserError(mistake)
        return results

    def _mistakes(self, results: Mapping[str, Any]) -> Iterator[str]:
        for key in ('img_path', 'seg_map_path'):
            path = results.get(key)
            if path and os.path.isfile(path) and is_truncated(path):
                yield f'{path!r} is truncated'
        image = results.get('img')
        if image is None:
            return
        size = tuple(image.shape[:2])
        annotated = results.get('height'), results.get('width')
        if None not in annotated and annotated != size:
            hint = _EXIF_HINT if annotated == size[::-1] else ''
            yield f'the image is {_text(size)}, but its annotation is for {_text(annotated)}{hint}'
        yield from self._label_map_mistakes(results.get('gt_seg_map'), size)
        masks = results.get('gt_masks')
        if masks is not None and (masks.height, masks.width) != size:
            yield f'a mask is {_text((masks.height, masks.width))}, but the image is {_text(size)}'
        yield from self._box_mistakes(results, size)

    def _label_map_mistakes(self, labels: Any, size: tuple[int, int]) -> Iterator[str]:
        if labels is None:
            return
        if labels.shape != size:
            yield f'the label map is {_text(labels.shape)}, but the image is {_text(size)}'
        if self.num_classes is None:
            return
        wrong = labels[self._is_wrong(labels) & (labels != self.ignore_index)]
        if wrong.size:
            values = np.unique(wrong)[:8].tolist()
            yield f'the label map has the values {values}, but there are {self.num_classes} classes'

    def _box_mistakes(self, results: Mapping[str, Any], size: tuple[int, int]) -> Iterator[str]:
        labels = results.get('gt_bboxes_labels')
        if labels is not None and self.num_classes is not None:
            labels = np.asarray(labels)
            if self._is_wrong(labels).any():
                ids = np.unique(labels).tolist()
                yield f'the class ids are {ids}, but there are {self.num_classes} classes'
        boxes = results.get('gt_bboxes')
        if boxes is None or not len(boxes):
            return
        boxes = np.asarray(getattr(boxes, 'tensor', boxes), dtype=np.float64)
        outside = ~np.isfinite(boxes).all(axis=1)
        if boxes.shape[1] == 4:
            outside |= (boxes[:, :2] >= (size[1], size[0])).any(axis=1)
            outside |= (boxes[:, 2:] <= 0).any(axis=1)
        if outside.any():
            yield f'box {boxes[outside][0].tolist()} is outside the image of {_text(size)}'

    def _is_wrong(self, labels: np.ndarray) -> np.ndarray:
        return (labels < 0) | (labels >= self.num_classes)


def is_truncated(path: str) -> bool:
    """Return True if a JPEG or PNG file lacks its end, which OpenCV does not report."""
    with open(path, 'rb') as file:
        head = file.read(4)
        end = next((e for start, e in _ENDS if head.startswith(start)), None)
        if end is None:
            return False
        file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
        if end in file.read():
            return False
    try:  # Some programs append their own data.
        with Image.open(path) as image:
            image.load()
    except (OSError, SyntaxError):
        return True
    return False


def _text(size: Any) -> str:
    return ' x '.join(str(side) for side in size)
