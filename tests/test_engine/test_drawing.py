"""Text, outlines and their places on images of any size."""

import numpy as np
import pytest

from mmvmamba.engine import drawing
from mmvmamba.engine.drawing import Style

GRAY = 90
RED, BLUE = (230, 20, 20), (40, 40, 250)


def blank(height, width):
    return np.full((height, width, 3), GRAY, np.uint8)


def rectangle_of(picture, color):
    """The bounds of the pixels of one color: a label's background, if nothing else has it."""
    y, x = np.nonzero((picture == color).all(-1))
    return x.min(), y.min(), x.max() + 1, y.max() + 1


def draw(image, boxes, texts, colors, masks=None, alpha=0.5):
    boxes = np.array(boxes, float)
    return drawing.draw_instances(image, boxes, masks, texts, colors, Style.of(image), alpha)


@pytest.mark.parametrize(
    ('shape', 'factor'),
    [((64, 64), 8), ((160, 160), 3), ((480, 640), 1), ((3000, 4000), 1), ((20, 1000), 2)],
)
def test_enlargement(shape, factor):
    assert drawing.enlargement(shape) == factor
    image = drawing.enlarge_image(np.zeros((*shape, 3), np.uint8), factor)
    assert image.shape == (shape[0] * factor, shape[1] * factor, 3)


def test_sizes_grow_with_the_image():
    sizes = [Style.of(blank(side, side)) for side in (64, 480, 1500, 3000)]
    assert sizes == sorted(sizes) and sizes[0].font_size == 14 and sizes[-1].font_size > 60
    assert sizes[0].line_width == 1 and sizes[-1].line_width == 10
    assert Style.of(blank(3000, 10), 20).font_size == 20


@pytest.mark.parametrize('factor', [2, 3, 8])
def test_enlarged_masks_and_label_maps(factor):
    """Areas keep their place, lines of one pixel remain, and borders become smooth."""
    labels = np.zeros((16, 20), np.uint8)
    labels[4:12, 5:15], labels[:, 18] = 3, 7
    large = drawing.enlarge_label_map(labels, factor)
    assert large.shape == (16 * factor, 20 * factor) and set(np.unique(large)) == {0, 3, 7}
    masks = drawing.enlarge_masks(np.stack([labels == 3, labels == 7]), factor)
    for label, mask in zip((3, 7), masks, strict=True):
        small = labels == label
        blocks = np.kron(small, np.ones((factor, factor))).astype(bool)
        for found in (mask, large == label):
            assert (found & blocks).sum() / (found | blocks).sum() > 0.75
    assert drawing.enlarge_masks(np.zeros((0, 4, 4), bool), 2).shape == (0, 8, 8)


def test_colors():
    palette = [(1, 2, 3)]
    assert drawing.class_color(0, palette) == (1, 2, 3)
    colors = [drawing.class_color(i, palette) for i in range(1, 40)]
    assert colors == [drawing.class_color(i) for i in range(1, 40)]
    assert len(set(colors)) == len(colors)
    for color in colors:  # readable on dark and on light
        assert 60 < max(color) and min(color) < 120
    assert drawing.contrasting((250, 230, 60)) == (0, 0, 0)
    assert drawing.contrasting((50, 40, 120)) == (255, 255, 255)


@pytest.mark.parametrize('side', [480, 3000])
def test_a_label_is_above_its_box(side):
    box = [side // 4, side // 3, side // 2, side // 2]
    picture = draw(blank(side, side), [box], ['cat 0.93'], [RED])
    left, top, right, bottom = rectangle_of(picture, RED)  # of label and box
    style = Style.of(picture)
    assert abs(left - box[0]) <= style.line_width
    assert abs(top - (box[1] - style.label_height)) <= 1
    inside = picture[box[1] + style.line_width : box[3] - style.line_width]
    inside = inside[:, box[0] + style.line_width : box[2] - style.line_width]
    assert (inside == GRAY).all()


def test_a_label_at_the_top_border_is_below_its_box():
    picture = draw(blank(480, 480), [[100, 0, 200, 60]], ['cat 0.93'], [RED])
    assert (picture[10:50, 110:190] == GRAY).all()
    height = Style.of(picture).label_height
    assert rectangle_of(picture, RED)[3] == 60 + height


@pytest.mark.parametrize('box', [[-5, -5, 480, 480], [470, 470, 500, 500], [0, 475, 480, 480]])
def test_labels_stay_on_the_image(box):
    name = 'traffic light (pedestrian crossing) with a name that no image can hold in one line'
    for text in ('cat', name + ' 0.93'):
        picture = draw(blank(480, 480), [box], [text], [RED])
        assert picture.shape == (480, 480, 3)
        y, x = np.nonzero((picture == RED).all(-1))
        filled = np.bincount(y, minlength=480).max()
        width = Style.of(picture).label_width(text)
        assert filled >= min(width, 160) * 0.5


def test_labels_and_objects_are_not_covered():
    """Two objects on top of each other: the label of the lower one moves away."""
    boxes = [[100, 100, 300, 200], [100, 200, 300, 300]]
    picture = draw(blank(480, 480), boxes, ['dog 0.50', 'cat 0.93'], [RED, BLUE])
    assert (picture[110:190, 110:290] == GRAY).all()
    assert (picture[210:290, 110:290] == GRAY).all()


def test_crowded_labels_do_not_overlap():
    rng = np.random.default_rng(0)
    corners = rng.uniform(50, 400, (8, 2))
    colors = [(200 + i, 20 * i, 255 - i) for i in range(8)]
    boxes = np.hstack([corners, corners + 30])
    picture = draw(blank(480, 480), boxes, ['cat 0.93'] * 8, colors)
    style = Style.of(picture)
    for color in colors:  # half of the label's area is its background, not the text
        area = style.label_width('cat 0.93') * style.label_height
        assert (picture == color).all(-1).sum() > 0.5 * area


@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_boxes_that_are_not_finite_are_not_drawn(bad):
    box, masks = [200, 200, 300, 300], np.zeros((2, 480, 480), bool)
    masks[:, 200:300, 200:300] = True
    boxes, texts, colors = [[bad, 0, 50, 50], box], ['cat', 'dog'], [BLUE, RED]
    for some in (None, masks):
        picture = draw(blank(480, 480), boxes, texts, colors, some)
        alone = draw(blank(480, 480), [box], ['dog'], [RED], None if some is None else some[:1])
        np.testing.assert_array_equal(picture, alone)


def test_masks_are_filled_and_outlined():
    mask = np.zeros((1, 480, 480), bool)
    mask[0, 200:300, 200:300] = True
    picture = draw(blank(480, 480), [[200, 200, 300, 300]], [''], [RED], mask, 0.25)
    want = np.rint(np.multiply(RED, 0.25) + GRAY * 0.75)
    assert (picture[210:290, 210:290] == want).all()
    assert (picture[:190] == GRAY).all() and (picture[200, 200:300] == RED).all()


def test_label_map():
    labels = np.full((480, 480), 255)
    labels[:, :240], labels[100:104, 300:304] = 0, 1
    image = blank(480, 480)
    palette = [RED, BLUE]
    style = Style.of(image)
    picture = drawing.draw_label_map(image, labels, ['road', 'car'], palette, style, 0.5)
    left, top, right, bottom = rectangle_of(picture, RED)
    assert 0 < left < right < 240  # the label is in its region
    assert abs((left + right) / 2 - 120) < 10
    assert right - left == style.label_width('road') and bottom - top == style.label_height
    assert not (picture == BLUE).all(-1).any()  # a speck has no label, but a color
    assert (picture[102, 302] != GRAY).any() and (picture[:, 310:] == GRAY).all()
    plain = drawing.draw_label_map(image, labels, ['road', 'car'], palette, style, 0.5, False)
    assert not (plain == RED).all(-1).any()


def test_a_label_map_without_class_names():
    image = blank(480, 480)
    labels = np.zeros((480, 480), int)
    picture = drawing.draw_label_map(image, labels, [], None, Style.of(image), 0.5)
    np.testing.assert_array_equal(picture, image)


def test_a_thin_region_has_its_label_beside_it():
    labels = np.zeros((480, 480), int)
    labels[100:400, 200:220] = 1
    image = blank(480, 480)
    names, palette = ['road', 'pole'], [RED, BLUE]
    picture = drawing.draw_label_map(image, labels, names, palette, Style.of(image), 0.5)
    left, top, right, bottom = rectangle_of(picture, BLUE)
    assert bottom == 100 and left == 200


def test_caption():
    image = blank(300, 200)
    picture = drawing.add_caption(image, ['a name that is far too long to fit in 0.93', 'b 0.05'])
    assert picture.shape[1] == 200 and picture.shape[0] > 340
    np.testing.assert_array_equal(picture[-300:], image)
    assert picture[0].min() == 255 and picture[:-300].min() == 0
