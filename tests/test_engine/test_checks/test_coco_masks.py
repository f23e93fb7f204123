"""Masks of COCO annotations."""

import random

import numpy as np
import pytest
from pycocotools import mask as pycocotools_mask

from mmvmamba.engine.checks.coco_masks import decode_counts, is_trained, mask_problems

TRIANGLE = [1, 1, 9, 1, 9, 9]


@pytest.mark.parametrize('seed', range(20))
def test_decoded_counts(seed):
    """They are those of the pixels that pycocotools encodes."""
    generator = np.random.default_rng(seed)
    shape = generator.integers(1, 90, size=2)
    pixels = np.asfortranarray(generator.random(shape) < generator.random() ** 3, dtype=np.uint8)
    text = pycocotools_mask.encode(pixels)['counts'].decode()
    flat = pixels.flatten(order='F')
    changes = np.flatnonzero(np.diff(flat, prepend=0)).tolist()
    assert decode_counts(text) == np.diff([0, *changes, flat.size]).tolist()
    rle = dict(size=shape.tolist(), counts=text)
    assert mask_problems(rle, tuple(shape.tolist())) == set()


@pytest.mark.parametrize('text', ['`', '0P`', 'p' * 20, ' ', '\ud800', '\x00', 'é'])
def test_counts_that_cannot_be_decoded(text):
    assert decode_counts(text) is None


def test_cut_counts_are_found():
    pixels = np.asfortranarray(np.random.default_rng(0).random((50, 60)) < 0.3, dtype=np.uint8)
    text = pycocotools_mask.encode(pixels)['counts'].decode()
    for length in random.Random(0).sample(range(len(text)), 20):
        found = mask_problems(dict(size=[50, 60], counts=text[:length]), (50, 60))
        assert found in ({'segmentation.sum'}, {'segmentation.counts'})


@pytest.mark.parametrize(
    ('mask', 'trained'),
    [
        ([TRIANGLE], True),
        ([TRIANGLE, [1, 2]], True),
        ([TRIANGLE, [*TRIANGLE, 1]], True),
        ([[1, 2]], False),
        ([[*TRIANGLE, 1]], False),
        ([TRIANGLE, 3], False),
        ([], False),
        (None, False),
        (dict(size=[2, 2], counts=[3]), False),
        (dict(size=[2, 2], counts=[4]), True),
    ],
)
def test_masks_that_are_trained(mask, trained):
    assert is_trained(mask, mask_problems(mask, None)) == trained


@pytest.mark.parametrize(
    ('mask', 'problem'),
    [
        ([[1, 2, 3, 4]], 'short'),
        ([[1, 2, 3, 4, 5]], 'line'),
        ([TRIANGLE, []], 'line'),
        ([TRIANGLE, [float('inf')] * 2], 'infinite'),
        ([[1, 1, 2e6, 1, 9, 9]], 'infinite'),
    ],
)
def test_polygons(mask, problem):
    assert mask_problems(mask, (30, 40)) == {f'segmentation.{problem}'}


@pytest.mark.parametrize(('x', 'outside'), [(44, False), (44.1, True), (-4, False), (-4.1, True)])
def test_a_tenth_of_the_image_is_far(x, outside):
    found = mask_problems([[1, 1, x, 1, 9, 9]], (30, 40))
    assert ('segmentation.outside' in found) == outside
