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


_UNIQUE = 'mmdet looks objects up by it; number the entries from 1'
_LEFT_OUT = 'Training leaves these boxes out; evaluation counts them as missed'
_MASK_LEFT_OUT = 'Training leaves these masks out; evaluation fails or counts them wrongly'

#: The problems by key. The first part of the keys of annotations is the field.
RULES = {
    'entry': Rule('an entry is not an object', 'error', 'error'),
    'image.id': Rule(
        '`id` of an image is missing or is not a number or string', 'error', 'error', _UNIQUE
    ),
    'image.file_name': Rule('`file_name` is missing or is not a string', 'error', 'error'),
    'image.size': Rule(
        '`width` or `height` of an image is missing or is not a positive integer',
        'error',
        'error',
        'Write the size of the image file in pixels',
    ),
    'image.mixed_ids': Rule(
        '`id` is a string in some images and a number in others',
        'warning',
        'error',
        'The evaluation cannot sort them; write numbers',
    ),
    'image.same_id': Rule('`id` is that of another image', 'error', 'error', _UNIQUE),
    'image.same_file_name': Rule(
        '`file_name` is that of another image',
        'warning',
        'warning',
        'Likely cause: an entry for each object; write one for each image, or the other objects '
        'of the image count as background',
    ),
    'category.id': Rule(
        '`id` of a category is missing or is not a number or string', 'error', 'error', _UNIQUE
    ),
    'category.name': Rule('`name` of a category is missing or is not a string', 'error', 'error'),
    'category.mixed_ids': Rule(
        '`id` is a string in some categories and a number in others',
        'warning',
        'error',
        'The evaluation cannot sort them; write numbers',
    ),
    'category.same_id': Rule('`id` is that of another category', 'error', 'error', _UNIQUE),
    'category.same_name': Rule(
        '`name` is that of another category',
        'error',
        'error',
        'mmdet would number the classes wrongly; merge the categories or rename one',
    ),
    'category.similar_name': Rule(
        'names of categories differ only in case or blanks',
        'warning',
        'warning',
        'They are different classes; merge them if they mean the same',
    ),
    'id.type': Rule(
        '`id` of an annotation is missing or is not a number', 'error', 'error', _UNIQUE
    ),
    'id.text': Rule(
        '`id` of an annotation is a string', '', 'error', 'pycocotools needs numbers from 1 on'
    ),
    'id.repeated': Rule('`id` is that of another annotation', 'error', 'error', _UNIQUE),
    'id.zero': Rule(
        '`id` of an annotation is 0',
        'warning',
        'error',
        'pycocotools takes 0 for "no match", which makes AP wrong; number the annotations from 1',
    ),
    'image_id.type': Rule(
        '`image_id` is missing or is not a number or string',
        'error',
        'error',
        'Write the `id` of an image',
    ),
    'image_id.unknown': Rule(
        '`image_id` is not the `id` of any image',
        'warning',
        'warning',
        'These annotations are not used. Likely cause: images that were removed, or ids of '
        'another type (1 and "1" differ)',
    ),
    'category_id.type': Rule(
        '`category_id` is missing or is not a number or string',
        'error',
        'error',
        'Write the `id` of a category',
    ),
    'category_id.unknown': Rule(
        '`category_id` is not the `id` of any category',
        'warning',
        'warning',
        'These annotations are not used: the objects count as background. Likely cause: ids that '
        'start at 0 in one place and at 1 in the other',
    ),
    'bbox.type': Rule(
        '`bbox` is missing or is not a list of four numbers',
        'error',
        'error',
        'Write [x, y, width, height] in pixels',
    ),
    'bbox.infinite': Rule('`bbox` has NaN, infinite or huge values', 'warning', 'error', _LEFT_OUT),
    'bbox.empty': Rule('`bbox` has no positive width and height', 'warning', 'warning', _LEFT_OUT),
    'bbox.small': Rule(
        '`bbox` is narrower or lower than one pixel', 'warning', 'warning', _LEFT_OUT
    ),
    'bbox.outside': Rule(
        '`bbox` reaches outside the image',
        'warning',
        'warning',
        'Likely cause: width and height of the image swapped, or images resized without their '
        'annotations',
    ),
    'bbox.elsewhere': Rule(
        '`bbox` is entirely outside the image',
        'warning',
        'warning',
        f'{_LEFT_OUT}. Likely cause: width and height of the image swapped, or images resized '
        'without their annotations',
    ),
    'bbox.corners': Rule(
        '`bbox` holds two corners in most annotations',
        'error',
        'error',
        'It must be [x, y, width, height], but seems to be [x1, y1, x2, y2]: write '
        '[x1, y1, x2 - x1, y2 - y1]',
    ),
    'bbox.normalised': Rule(
        '`bbox` has values between 0 and 1 only',
        'error',
        'error',
        'It must be in pixels, but seems to be divided by the size of the image',
    ),
    'area.type': Rule(
        '`area` is missing or is not a finite number',
        'error',
        'error',
        'mmdet and pycocotools read it; write the area of the mask, or width x height of the box',
    ),
    'area.zero': Rule(
        '`area` is not positive', 'warning', 'warning', 'Training leaves these objects out'
    ),
    'iscrowd.missing': Rule(
        '`iscrowd` is missing', '', 'error', 'pycocotools reads it; write 0 for a single object'
    ),
    'iscrowd.type': Rule(
        '`iscrowd` is not 0 or 1',
        'error',
        'error',
        'Any value except 0, "0" too, makes training ignore the object',
    ),
    'segmentation.missing': Rule(
        '`segmentation` is missing or empty',
        'warning',
        'error',
        'Training fails at these images or leaves them out, and the evaluation of masks fails; '
        'write polygons or RLE, or remove the annotations',
    ),
    'segmentation.type': Rule(
        '`segmentation` is neither a list of polygons of numbers nor RLE',
        'warning',
        'error',
        'A polygon is a list [x1, y1, x2, y2, ...] within the list of the parts of the object',
    ),
    'segmentation.short': Rule(
        '`segmentation` begins with a polygon of fewer than three points',
        'warning',
        'error',
        f'{_MASK_LEFT_OUT}; remove the polygon',
    ),
    'segmentation.line': Rule(
        '`segmentation` has a part with fewer than three points',
        'warning',
        'warning',
        'Training leaves out these parts; evaluation draws them as lines',
    ),
    'segmentation.odd': Rule(
        '`segmentation` has a polygon with an odd number of values',
        'warning',
        'warning',
        'Training leaves these polygons out; evaluation ignores the last value',
    ),
    'segmentation.infinite': Rule(
        '`segmentation` has NaN, infinite or huge coordinates',
        'error',
        'error',
        'pycocotools would draw wrong masks or use up the memory',
    ),
    'segmentation.outside': Rule(
        '`segmentation` has a polygon far outside the image',
        'warning',
        'warning',
        'Likely cause: width and height of the image swapped, or images resized without their '
        'annotations',
    ),
    'segmentation.rle': Rule(
        '`segmentation` is RLE without valid `counts` and `size`',
        'warning',
        'error',
        f'{_MASK_LEFT_OUT}; `size` is [height, width]',
    ),
    'segmentation.size': Rule(
        '`segmentation` is RLE of another size than the image',
        'error',
        'error',
        'The mask would be scrambled or never match; `size` is [height, width] of the image',
    ),
    'segmentation.counts': Rule(
        '`segmentation` is RLE whose `counts` cannot be decoded',
        'error',
        'error',
        'pycocotools would read random memory; encode the mask again',
    ),
    'segmentation.sum': Rule(
        '`segmentation` is RLE whose `counts` do not sum to height x width',
        'error',
        'error',
        'pycocotools would read random memory, or hang; encode the mask again',
    ),
}
