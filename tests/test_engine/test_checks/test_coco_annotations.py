"""Images, categories and annotations of COCO files; ``test_coco.py`` has a case for each rule."""

from mmvmamba.engine.checks.coco_annotations import (
    AnnotationCheck,
    Problems,
    box_problems,
    check_categories,
    check_images,
)


def test_the_first_items_are_kept():
    problems = Problems()
    for i in range(9):
        problems.add('entry', f'images[{i}]')
    assert problems['entry'].count == 9
    assert problems['entry'].items == [f'images[{i}]' for i in range(5)]


def test_ids_of_strings():
    """mmdet takes them for images and categories."""
    problems = Problems()
    images = check_images([dict(id='a', file_name='a.jpg', width=4, height=3)], problems)
    categories = check_categories([dict(id='x', name='cat')], problems)
    check = AnnotationCheck(images, categories, problems)
    fields = dict(area=4, iscrowd=0, segmentation=[[0, 0, 2, 0, 2, 2]])
    check.check([dict(fields, id=1, image_id='a', category_id='x', bbox=[0, 0, 2, 2])])
    assert not problems
    assert check.objects == {'a': 1}
    assert check.classes['x'].masks == 1


def test_box_problems():
    assert list(box_problems([0, 0, 4, 3], (3, 4))) == []
    assert list(box_problems([0, 0, 4, 3], None)) == []
    assert list(box_problems([0, 0, 0.5, 9], (3, 4))) == ['bbox.small', 'bbox.outside']
    assert list(box_problems([0, 0, True, 3], (3, 4))) == ['bbox.type']
