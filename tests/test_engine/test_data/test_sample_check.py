"""Checks of loaded samples."""

import numpy as np
import pytest
import torch
from PIL import Image

from mmvmamba.engine import CheckSample
from mmvmamba.engine.data.sample_check import is_truncated
from mmvmamba.engine.errors import UserError


@pytest.mark.parametrize('suffix', ['jpg', 'png'])
def test_truncated_images(tmp_path, suffix):
    path = tmp_path / f'image.{suffix}'
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    whole = path.read_bytes()
    assert not is_truncated(path)
    path.write_bytes(whole + bytes(10_000))  # cameras append things
    assert not is_truncated(path)
    path.write_bytes(whole[: len(whole) // 2])
    assert is_truncated(path)
    (tmp_path / 'other.bin').write_bytes(b'anything')
    assert not is_truncated(tmp_path / 'other.bin')


def loaded(**extra):
    return dict(img=np.zeros((30, 40, 3), np.uint8), **extra)


class Masks:
    def __init__(self, height, width):
        self.height, self.width = height, width


@pytest.mark.parametrize(
    ('extra', 'words'),
    [
        (
            dict(height=40, width=30),
            '30 x 40, but its annotation is for 40 x 30; .* EXIF orientation',
        ),
        (dict(height=40, width=40), 'image is 30 x 40, but its annotation is for 40 x 40$'),
        (
            dict(gt_seg_map=np.zeros((30, 20), np.uint8)),
            'label map is 30 x 20, but the image is 30 x 40',
        ),
        (dict(gt_seg_map=np.full((30, 40), 3, np.uint8)), r'values \[3\], but there are 3 classes'),
        (dict(gt_masks=Masks(40, 30)), 'a mask is 40 x 30, but the image is 30 x 40'),
        (dict(gt_bboxes=torch.tensor([[41.0, 0, 50, 9]])), r'box \[41.0, .*\] is outside'),
        (dict(gt_bboxes=torch.tensor([[0, 0, float('nan'), 9]])), 'outside'),
        (
            dict(gt_bboxes_labels=np.array([0, 3])),
            r'class ids are \[0, 3\], but there are 3 classes',
        ),
        (dict(gt_bboxes_labels=np.array([-1])), r'class ids are \[-1\]'),
    ],
)
def test_check_sample(extra, words):
    with pytest.raises(UserError, match=words):
        CheckSample(num_classes=3)(loaded(**extra))


def test_check_sample_lets_good_ones_through():
    labels = np.full((30, 40), 255, np.uint8)
    labels[:5] = 2
    results = loaded(
        height=30,
        width=40,
        gt_seg_map=labels,
        gt_masks=Masks(30, 40),
        gt_bboxes=torch.tensor([[-0.4, 0, 41, 9]]),
        gt_bboxes_labels=np.array([0, 2]),
    )
    assert CheckSample(num_classes=3)(results) is results
    empty = loaded(gt_bboxes=torch.zeros(0, 4), gt_bboxes_labels=np.zeros(0, int))
    assert CheckSample(num_classes=3)(empty) is empty


@pytest.mark.parametrize(
    ('box', 'outside'),
    [
        ((0, 0, 40, 30), False),
        ((39.9, 0, 50, 9), False),
        ((40, 0, 50, 9), True),
        ((0, 29.9, 9, 50), False),
        ((0, 30, 9, 50), True),
        ((-9, 0, 0.1, 9), False),
        ((-9, 0, 0, 9), True),
        ((0, -9, 9, 0.1), False),
        ((0, -9, 9, 0), True),
    ],
)
def test_boxes_at_the_edges_of_the_image(box, outside):
    """A box without overlap with the image of 30 x 40 is outside."""
    results = loaded(gt_bboxes=torch.tensor([(1, 1, 9, 9), box]))
    if not outside:
        assert CheckSample()(results) is results
        return
    with pytest.raises(UserError, match='is outside the image of 30 x 40'):
        CheckSample()(results)


@pytest.mark.parametrize(
    ('label', 'wrong'), [(-2, True), (-1, True), (0, False), (2, False), (3, True), (255, False)]
)
def test_labels_of_pixels(label, wrong):
    """The last class, the number of classes and the ignored label."""
    labels = np.zeros((30, 40), np.int64)
    labels[4, 5] = label
    results = loaded(gt_seg_map=labels)
    if not wrong:
        assert CheckSample(num_classes=3)(results) is results
        return
    with pytest.raises(UserError, match=rf'the values \[{label}\], but there are 3 classes'):
        CheckSample(num_classes=3)(results)


def test_a_negative_label_can_be_ignored():
    results = loaded(gt_seg_map=np.full((30, 40), -1))
    assert CheckSample(num_classes=3, ignore_index=-1)(results) is results


@pytest.mark.parametrize('labels', [[0, 2], []])
def test_class_ids_of_boxes(labels):
    results = loaded(gt_bboxes_labels=np.array(labels, int))
    assert CheckSample(num_classes=3)(results) is results
