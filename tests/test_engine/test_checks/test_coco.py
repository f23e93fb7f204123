"""COCO annotation files: their format, their annotations."""

import json
import os
from pathlib import Path

import pytest

from mmvmamba.engine.checks import coco as checks
from mmvmamba.engine.checks.coco import read_coco
from mmvmamba.engine.errors import UserError

from .datasets import build, coco_file, wrapped
from .datasets import coco as coco_dataset


@pytest.mark.parametrize(
    ('annotation', 'words'),
    [
        (dict(category_id=7), 'class id 7'),
        (dict(bbox=[30, 10, 20, 10]), 'box outside'),
        (dict(bbox=[-5, 10, 20, 10]), 'box outside'),
        (dict(bbox=[3, 3, 0, 5]), 'empty'),
        (dict(bbox=[3, 3]), 'not a box'),
        (dict(segmentation=dict(size=[40, 30], counts='0')), 'mask of another size'),
    ],
)
def test_mistakes_name_the_image(tmp_path, annotation, words):
    found = read_coco(coco_file(tmp_path, **annotation)).mistakes
    assert found.pop('no annotation') == ['2.jpg']
    ((kind, names),) = found.items()
    assert words in kind
    assert names == ['1.jpg']


def test_files_of_test_images_have_no_annotations(tmp_path):
    content = dict(images=[dict(id=1, file_name='1.jpg')], categories=[dict(id=1, name='cat')])
    (tmp_path / 'test.json').write_text(json.dumps(content))
    assert read_coco(str(tmp_path / 'test.json')).categories == ('cat',)


def test_sizes_that_are_no_numbers_are_not_compared(tmp_path):
    path = coco_file(tmp_path, bbox=[20, 10, 90, 90])
    content = json.loads(Path(path).read_text())
    for image in content['images']:
        image['width'] = str(image['width'])
    Path(path).write_text(json.dumps(content))
    assert read_coco(path).mistakes == {'no annotation': ['2.jpg']}


def test_good_files(tmp_path):
    # Half a pixel too far is what rounding does.
    good = read_coco(coco_file(tmp_path, bbox=[20, 10, 20.5, 20.5]))
    assert good.mistakes == {'no annotation': ['2.jpg']}


@pytest.mark.parametrize('margin', [1.0, 1.01])
def test_the_margin_of_a_box(tmp_path, margin):
    found = read_coco(coco_file(tmp_path, bbox=[-margin, 0, 20, 10])).mistakes
    assert ('a box outside the image' in found) == (margin > 1)


@pytest.mark.parametrize(
    ('content', 'words'),
    [
        ('{', 'is not JSON: Expecting'),
        ('[1]', r"is not COCO: \['images', 'annotations', 'categories'\] must be lists of objects"),
        (
            '{"images": [], "a": 1}',
            r"\['categories'\] must .* keys \['a', 'images'\]",
        ),
        ('{"images": [], "annotations": {}, "categories": []}', r"\['annotations'\] must be lists"),
        ('{"images": [], "annotations": [], "categories": [1]}', r"\['categories'\] must be lists"),
    ],
)
def test_other_files(tmp_path, content, words):
    path = tmp_path / 'other.json'
    path.write_text(content)
    with pytest.raises(UserError, match=words):
        read_coco(str(path))


def test_a_panoptic_file(tmp_path):
    path = tmp_path / 'panoptic.json'
    images = [dict(id=0, file_name='0.jpg', width=40, height=30)]
    annotations = [dict(image_id=0, file_name='0.png', segments_info=[dict(id=1, category_id=1)])]
    content = dict(images=images, annotations=annotations, categories=[dict(id=1, name='cat')])
    path.write_text(json.dumps(content))
    assert read_coco(str(path)) == (('cat',), {})


def test_a_file_is_read_once_until_it_changes(tmp_path, monkeypatch):
    path, reads = coco_file(tmp_path), []
    load = json.load
    monkeypatch.setattr(checks.json, 'load', lambda file: reads.append(1) or load(file))
    for _ in range(2):
        assert read_coco(path).categories == ('cat',)
    assert len(reads) == 1
    coco_file(tmp_path, category_id=7)
    os.utime(path, ns=(0, 0))
    assert len(read_coco(path).mistakes) == 2
    assert len(reads) == 2


@pytest.mark.parametrize('wrap', [dict, wrapped], ids=['plain', 'repeated'])
def test_a_data_set_of_another_file(tmp_path, wrap):
    with pytest.raises(UserError, match=r"is not COCO: \['categories'\] must be lists"):
        build(wrap(coco_dataset(tmp_path, dict(images=[], annotations=[]))))
    other = dict(images=[dict(id=0, file_name='0.png', width=9, height=9)], annotations=[])
    with pytest.raises(UserError, match=r"the categories \['chair leg'\], .*classes \['person'"):
        build(wrap(coco_dataset(tmp_path, dict(other, categories=[dict(id=1, name='chair leg')]))))
