"""Problems of COCO annotation files: their wording, severity and remedy."""

from typing import NamedTuple


class Rule(NamedTuple):
    """A kind of problem.

    Attributes:
        kind (str): The problem in plain words.
        train (str): The severity in training data; empty if training is not affected.
        evaluation (str): The severity in validation and test data.
        hint (str): The likely cause and the remedy.
    """

    kind: str
    train: str
    evaluation: str
    hint: str = ''


_UNIQUE = 'mmdet needs unique ids; number the entries from 1'
_BOX_SKIPPED = 'Training skips these boxes; evaluation counts them as missed'
_MASK_SKIPPED = 'Training skips these masks; evaluation fails or is wrong'
_WRONG_SIZE = 'Width and height may be swapped, or the images resized without the annotations'

#: The problems by key. The first part of the keys of annotations is the field.
RULES = {
    'entry': Rule('an entry is not an object', 'error', 'error'),
    'image.id': Rule(
        '`id` of an image is missing or not a number or string', 'error', 'error', _UNIQUE
    ),
    'image.file_name': Rule('`file_name` is missing or not a string', 'error', 'error'),
    'image.size': Rule(
        '`width` or `height` of an image is missing or not a positive integer',
        'error',
        'error',
        'Write the size of the image file in pixels',
    ),
    'image.mixed_ids': Rule(
        '`id` is a string in some images and a number in others',
        'warning',
        'error',
        'Evaluation cannot sort mixed ids; use numbers',
    ),
    'image.same_id': Rule('`id` is used by another image', 'error', 'error', _UNIQUE),
    'image.same_file_name': Rule(
        '`file_name` is used by another image',
        'warning',
        'warning',
        'Write one entry per image, not per object. Otherwise, training treats the other objects '
        'of the image as background',
    ),
    'category.id': Rule(
        '`id` of a category is missing or not a number or string', 'error', 'error', _UNIQUE
    ),
    'category.name': Rule('`name` of a category is missing or not a string', 'error', 'error'),
    'category.mixed_ids': Rule(
        '`id` is a string in some categories and a number in others',
        'warning',
        'error',
        'Evaluation cannot sort mixed ids; use numbers',
    ),
    'category.same_id': Rule('`id` is used by another category', 'error', 'error', _UNIQUE),
    'category.same_name': Rule(
        '`name` is used by another category',
        'error',
        'error',
        'mmdet would mix up the class indices. Merge the categories or rename one',
    ),
    'category.similar_name': Rule(
        'category names differ only in case or spaces',
        'warning',
        'warning',
        'They are separate classes. Merge them if they mean the same thing',
    ),
    'id.type': Rule('`id` of an annotation is missing or not a number', 'error', 'error', _UNIQUE),
    'id.text': Rule(
        '`id` of an annotation is a string', '', 'error', 'pycocotools needs numbers starting at 1'
    ),
    'id.repeated': Rule('`id` is used by another annotation', 'error', 'error', _UNIQUE),
    'id.zero': Rule(
        '`id` of an annotation is 0',
        'warning',
        'error',
        'pycocotools uses 0 for "no match", so AP would be wrong. Number the annotations from 1',
    ),
    'image_id.type': Rule(
        '`image_id` is missing or not a number or string',
        'error',
        'error',
        'It must be the `id` of an image',
    ),
    'image_id.unknown': Rule(
        '`image_id` is not the `id` of any image',
        'warning',
        'warning',
        'These annotations are ignored. The images may have been removed, or the ids may have '
        'different types (1 and "1")',
    ),
    'category_id.type': Rule(
        '`category_id` is missing or not a number or string',
        'error',
        'error',
        'It must be the `id` of a category',
    ),
    'category_id.unknown': Rule(
        '`category_id` is not the `id` of any category',
        'warning',
        'warning',
        'These annotations are ignored, and the objects are treated as background. Check whether '
        'both ids start at the same number, 0 or 1',
    ),
    'bbox.type': Rule(
        '`bbox` is missing or not a list of four numbers',
        'error',
        'error',
        'It must be [x, y, width, height] in pixels',
    ),
    'bbox.infinite': Rule(
        '`bbox` contains NaN, infinite or huge values', 'warning', 'error', _BOX_SKIPPED
    ),
    'bbox.empty': Rule(
        'width or height of `bbox` is not positive', 'warning', 'warning', _BOX_SKIPPED
    ),
    'bbox.small': Rule(
        '`bbox` is less than one pixel wide or high', 'warning', 'warning', _BOX_SKIPPED
    ),
    'bbox.outside': Rule(
        '`bbox` extends beyond the image',
        'warning',
        'warning',
        _WRONG_SIZE,
    ),
    'bbox.elsewhere': Rule(
        '`bbox` is entirely outside the image',
        'warning',
        'warning',
        f'{_BOX_SKIPPED}. {_WRONG_SIZE}',
    ),
    'bbox.corners': Rule(
        '`bbox` contains two corners in most annotations',
        'error',
        'error',
        'It must be [x, y, width, height], but looks like [x1, y1, x2, y2]. Write '
        '[x1, y1, x2 - x1, y2 - y1]',
    ),
    'bbox.normalised': Rule(
        'all values of `bbox` are between 0 and 1',
        'error',
        'error',
        'It must be in pixels, but looks normalized by the image size',
    ),
    'area.type': Rule(
        '`area` is missing or not a finite number',
        'error',
        'error',
        'mmdet and pycocotools need it. Write the area of the mask, or width x height of the box',
    ),
    'area.zero': Rule(
        '`area` is not positive', 'warning', 'warning', 'Training skips these objects'
    ),
    'iscrowd.missing': Rule(
        '`iscrowd` is missing', '', 'error', 'pycocotools needs it. Write 0 for a single object'
    ),
    'iscrowd.type': Rule(
        '`iscrowd` is not 0 or 1',
        'error',
        'error',
        'Training ignores objects with any value except 0, even "0"',
    ),
    'segmentation.missing': Rule(
        '`segmentation` is missing or empty',
        'warning',
        'error',
        'Training fails on these images or skips them, and mask evaluation fails. Write polygons '
        'or RLE, or remove the annotations',
    ),
    'segmentation.type': Rule(
        '`segmentation` is neither a list of polygons nor RLE',
        'warning',
        'error',
        'It must be a list of polygons, each a list [x1, y1, x2, y2, ...] of numbers',
    ),
    'segmentation.short': Rule(
        '`segmentation` starts with a polygon of fewer than three points',
        'warning',
        'error',
        f'{_MASK_SKIPPED}. Remove the polygon',
    ),
    'segmentation.line': Rule(
        '`segmentation` contains a polygon of fewer than three points',
        'warning',
        'warning',
        'Training skips these polygons; evaluation draws them as lines',
    ),
    'segmentation.odd': Rule(
        '`segmentation` contains a polygon with an odd number of values',
        'warning',
        'warning',
        'Training skips these polygons; evaluation ignores the last value',
    ),
    'segmentation.infinite': Rule(
        '`segmentation` contains NaN, infinite or huge coordinates',
        'error',
        'error',
        'pycocotools would draw wrong masks or run out of memory',
    ),
    'segmentation.outside': Rule(
        '`segmentation` contains a polygon far outside the image',
        'warning',
        'warning',
        _WRONG_SIZE,
    ),
    'segmentation.rle': Rule(
        '`segmentation` is RLE without valid `counts` and `size`',
        'warning',
        'error',
        f'{_MASK_SKIPPED}. `size` is [height, width]',
    ),
    'segmentation.size': Rule(
        '`segmentation` is RLE with a different size than the image',
        'error',
        'error',
        'The mask would be scrambled or never match. `size` is [height, width] of the image',
    ),
    'segmentation.counts': Rule(
        '`segmentation` is RLE with `counts` that cannot be decoded',
        'error',
        'error',
        'pycocotools would read random memory. Encode the mask again',
    ),
    'segmentation.sum': Rule(
        '`segmentation` is RLE with `counts` that do not sum to height x width',
        'error',
        'error',
        'pycocotools would read random memory or hang. Encode the mask again',
    ),
}
