"""COCO annotation files: their format, their problems, and the classes that they leave empty."""

import json
import math
import os
import random

import pytest
from mmdet.datasets import CocoDataset
from mmengine.registry import DATASETS

from mmvmamba.engine.checks import coco as checks
from mmvmamba.engine.checks.coco import check_coco, read_coco
from mmvmamba.engine.checks.coco_rules import RULES
from mmvmamba.engine.checks.report import Report
from mmvmamba.engine.errors import UserError

from .datasets import build, wrapped
from .datasets import coco as coco_dataset

SQUARE = [[2, 2, 22, 2, 22, 12, 2, 12]]
RLE = dict(size=[30, 40], counts=[600, 100, 500])


def annotation(key):
    fields = dict(id=key, image_id=key, category_id=1 + key % 2, bbox=[2, 2, 20, 10], area=200)
    return dict(fields, iscrowd=0, segmentation=SQUARE)


def valid():
    images = [dict(id=i, file_name=f'{i}.jpg', width=40, height=30) for i in (1, 2, 3, 4)]
    categories = [dict(id=1, name='cat'), dict(id=2, name='dog')]
    annotations = [annotation(i) for i in (1, 2, 3, 4)]
    return dict(images=images, annotations=annotations, categories=categories)


def leaf_of(folder, content, **settings):
    metainfo = dict(classes=('cat', 'dog'))
    return dict(coco_dataset(folder, content), metainfo=metainfo, filter_cfg=None) | settings


def groups(folder, content, stage='train', needs_masks=True, **settings):
    report = Report()
    check_coco(leaf_of(folder, content, **settings), report, stage, needs_masks)
    return list(report.groups())


@pytest.mark.parametrize('stage', ['train', 'val', 'test'])
@pytest.mark.parametrize('mask', [SQUARE, RLE], ids=['polygon', 'RLE'])
def test_a_valid_file(tmp_path, stage, mask):
    content = valid()
    content['annotations'][0].update(segmentation=mask, bbox=[2, 2, 38.5, 28.5])
    content['images'][0]['height'] = 30.0
    assert groups(tmp_path, content, stage) == []


ANNOTATION = "annotation 1 of '1.jpg'"
# Key of the rule; list and index of the entry; field and value, or None to remove the field; item.
FAULTS = [
    ('entry', 'images', 3, None, 7, 'images[3]'),
    ('entry', 'annotations', 3, None, 'x', 'annotations[3]'),
    ('entry', 'categories', 1, None, [], 'categories[1]'),
    ('image.id', 'images', 0, 'id', None, "'1.jpg'"),
    ('image.id', 'images', 0, 'id', [1], "'1.jpg'"),
    ('image.file_name', 'images', 0, 'file_name', None, 'images[0]'),
    ('image.file_name', 'images', 0, 'file_name', 5, 'images[0]'),
    ('image.size', 'images', 0, 'width', None, "'1.jpg'"),
    ('image.size', 'images', 0, 'height', '30', "'1.jpg'"),
    ('image.size', 'images', 0, 'height', 0, "'1.jpg'"),
    ('image.size', 'images', 0, 'height', math.nan, "'1.jpg'"),
    ('image.id', 'images', 0, 'id', 10**400, "'1.jpg'"),
    ('image.mixed_ids', 'images', 0, 'id', '1', "id '1'"),
    ('image.same_id', 'images', 1, 'id', 1, "id 1 of '2.jpg'"),
    ('image.same_file_name', 'images', 1, 'file_name', '1.jpg', "'1.jpg'"),
    ('category.id', 'categories', 0, 'id', None, "'cat'"),
    ('category.name', 'categories', 0, 'name', None, 'categories[0]'),
    ('category.name', 'categories', 0, 'name', 3, 'categories[0]'),
    ('category.mixed_ids', 'categories', 0, 'id', '1', "id '1'"),
    ('category.same_id', 'categories', 1, 'id', 1, "id 1 of 'dog'"),
    ('category.same_name', 'categories', 1, 'name', 'cat', "'cat'"),
    ('category.similar_name', 'categories', 1, 'name', ' Cat', "'cat' and ' Cat'"),
    ('id.type', 'annotations', 0, 'id', None, "annotations[0] of '1.jpg'"),
    ('id.type', 'annotations', 0, 'id', {}, "annotations[0] of '1.jpg'"),
    ('id.type', 'annotations', 0, 'id', math.inf, "annotations[0] of '1.jpg'"),
    ('id.text', 'annotations', 0, 'id', 'a', "annotation 'a' of '1.jpg'"),
    ('id.repeated', 'annotations', 1, 'id', 1, "annotation 1 of '2.jpg'"),
    ('id.zero', 'annotations', 0, 'id', 0, "annotation 0 of '1.jpg'"),
    ('image_id.type', 'annotations', 0, 'image_id', None, 'annotation 1'),
    ('image_id.type', 'annotations', 0, 'image_id', [], 'annotation 1 (image_id [])'),
    ('image_id.unknown', 'annotations', 0, 'image_id', 9, 'annotation 1 (image_id 9)'),
    ('image_id.unknown', 'annotations', 0, 'image_id', '1', "annotation 1 (image_id '1')"),
    ('category_id.type', 'annotations', 0, 'category_id', None, ANNOTATION),
    ('category_id.unknown', 'annotations', 0, 'category_id', 7, f'{ANNOTATION} (category_id 7)'),
    ('bbox.type', 'annotations', 0, 'bbox', None, ANNOTATION),
    ('bbox.type', 'annotations', 0, 'bbox', [1, 2, 3], f'{ANNOTATION} (bbox [1, 2, 3])'),
    ('bbox.type', 'annotations', 0, 'bbox', ['1', 2, 3, 4], f"{ANNOTATION} (bbox ['1', 2, 3, 4])"),
    ('bbox.infinite', 'annotations', 0, 'bbox', [1, 2, math.nan, 4], f'{ANNOTATION} (bbox [1, 2'),
    ('bbox.infinite', 'annotations', 0, 'bbox', [1, 2, 10**400, 4], f'{ANNOTATION} (bbox [1, 2'),
    ('bbox.empty', 'annotations', 0, 'bbox', [3, 3, 0, 5], f'{ANNOTATION} (bbox [3, 3, 0, 5])'),
    ('bbox.empty', 'annotations', 0, 'bbox', [3, 3, -2, 5], f'{ANNOTATION} (bbox [3, 3, -2, 5])'),
    ('bbox.small', 'annotations', 0, 'bbox', [3, 3, 0.5, 5], f'{ANNOTATION} (bbox [3, 3, 0.5, 5])'),
    ('bbox.outside', 'annotations', 0, 'bbox', [3, 3, 39, 5], f'{ANNOTATION} (bbox [3, 3, 39, 5])'),
    ('bbox.outside', 'annotations', 0, 'bbox', [-1.1, 3, 9, 5], f'{ANNOTATION} (bbox [-1.1, 3'),
    ('bbox.elsewhere', 'annotations', 0, 'bbox', [50, 3, 9, 5], f'{ANNOTATION} (bbox [50, 3'),
    ('area.type', 'annotations', 0, 'area', None, ANNOTATION),
    ('area.type', 'annotations', 0, 'area', '9', f"{ANNOTATION} (area '9')"),
    ('area.type', 'annotations', 0, 'area', math.inf, f'{ANNOTATION} (area inf)'),
    ('area.zero', 'annotations', 0, 'area', 0, f'{ANNOTATION} (area 0)'),
    ('iscrowd.missing', 'annotations', 0, 'iscrowd', None, ANNOTATION),
    ('iscrowd.type', 'annotations', 0, 'iscrowd', '0', f"{ANNOTATION} (iscrowd '0')"),
    ('segmentation.missing', 'annotations', 0, 'segmentation', None, ANNOTATION),
    ('segmentation.missing', 'annotations', 0, 'segmentation', [], ANNOTATION),
    ('segmentation.short', 'annotations', 0, 'segmentation', [[]], ANNOTATION),
    ('segmentation.short', 'annotations', 0, 'segmentation', [[1, 1, 9, 9]], ANNOTATION),
    ('segmentation.line', 'annotations', 0, 'segmentation', [*SQUARE, [1, 1, 9, 9]], ANNOTATION),
    ('segmentation.odd', 'annotations', 0, 'segmentation', [[1, 1, 9, 9, 1, 9, 5]], ANNOTATION),
    ('segmentation.type', 'annotations', 0, 'segmentation', SQUARE[0], ANNOTATION),
    ('segmentation.type', 'annotations', 0, 'segmentation', [['1'] * 8], ANNOTATION),
    ('segmentation.type', 'annotations', 0, 'segmentation', 'mask.png', ANNOTATION),
    ('segmentation.infinite', 'annotations', 0, 'segmentation', [[math.nan] * 6], ANNOTATION),
    ('segmentation.outside', 'annotations', 0, 'segmentation', [[1, 1, 60, 9, 1, 9]], ANNOTATION),
    ('segmentation.rle', 'annotations', 0, 'segmentation', dict(size=[30, 40]), ANNOTATION),
    ('segmentation.rle', 'annotations', 0, 'segmentation', dict(counts=[1200]), ANNOTATION),
    ('segmentation.size', 'annotations', 0, 'segmentation', dict(RLE, size=[40, 30]), ANNOTATION),
    ('segmentation.sum', 'annotations', 0, 'segmentation', dict(RLE, counts=[9, 9]), ANNOTATION),
    ('segmentation.counts', 'annotations', 0, 'segmentation', dict(RLE, counts='`'), ANNOTATION),
]


def broken(name, index, field, value):
    content = valid()
    # A second object of each class, in other images, keeps the classes alive.
    content['annotations'] += [dict(annotation(i), id=i + 10) for i in (1, 2, 3, 4)]
    if field is None:
        content[name][index] = value
    elif value is None:
        del content[name][index][field]
    else:
        content[name][index][field] = value
    return content


@pytest.mark.parametrize('stage', ['train', 'val'])
@pytest.mark.parametrize(('key', 'name', 'index', 'field', 'value', 'item'), FAULTS)
def test_faults(tmp_path, stage, key, name, index, field, value, item):
    rule = RULES[key]
    severity = rule.train if stage == 'train' else rule.evaluation
    found = groups(tmp_path, broken(name, index, field, value), stage)
    same = [group for group in found if group.kind == rule.kind]
    if not severity:
        assert same == []
        return
    (group,) = same
    assert (group.severity, group.hint, group.count) == (severity, rule.hint, 1)
    assert group.items[0].startswith(item) if '(bbox' in item else group.items == [item]


@pytest.mark.parametrize('test_mode', [False, True])
@pytest.mark.parametrize(('key', 'name', 'index', 'field', 'value', 'item'), FAULTS)
def test_only_errors_make_mmdet_fail(tmp_path, test_mode, key, name, index, field, value, item):
    settings = leaf_of(tmp_path, broken(name, index, field, value), test_mode=test_mode)
    del settings['type']
    severity = RULES[key].evaluation if test_mode else RULES[key].train
    try:
        CocoDataset(**settings)
    except (AssertionError, KeyError, TypeError, ValueError):
        assert severity == 'error'


def test_every_rule_has_a_fault():
    assert set(RULES) - {'bbox.corners', 'bbox.normalised'} == {fault[0] for fault in FAULTS}


@pytest.mark.parametrize('margin', [1.0, 1.01])
def test_the_margin_of_a_box(tmp_path, margin):
    content = broken('annotations', 0, 'bbox', [-margin, 0, 20, 10])
    assert bool(groups(tmp_path, content)) == (margin > 1)


@pytest.mark.parametrize(
    ('key', 'box', 'without'),
    [
        ('bbox.corners', [20, 15, 35, 25], 'bbox.outside'),
        ('bbox.normalised', [0.1, 0.2, 0.3, 0.4], 'bbox.small'),
    ],
)
def test_boxes_of_another_format(tmp_path, key, box, without):
    content = valid()
    for entry in content['annotations']:
        entry['bbox'] = box
    found = {group.kind: group for group in groups(tmp_path, content)}
    assert found[RULES[key].kind].severity == 'error'
    assert RULES[without].kind not in found


def changed(**settings):
    content = valid()
    for entry in content['annotations']:
        entry.update(settings)
    return content


@pytest.mark.parametrize(
    ('content', 'item', 'metrics_are_wrong'),
    [
        (changed(iscrowd=1), "'cat' (2 annotations, all with `iscrowd: 1`)", True),
        (changed(ignore=1), "'cat' (2 annotations, none with a valid box)", False),
        (changed(area=0), "'cat' (2 annotations, none with a valid box)", False),
        (changed(category_id=9), "'cat' (no annotations)", True),
        (changed(image_id=9), "'cat' (no annotations)", True),
        (changed(segmentation=[[1, 1]]), "'cat' (2 annotations, none with a valid mask)", False),
    ],
)
def test_no_class_has_objects(tmp_path, content, item, metrics_are_wrong):
    for stage, hint in (('train', 'There is nothing to learn'), ('val', 'All metrics would be -1')):
        found = [g for g in groups(tmp_path, content, stage) if g.kind.startswith('no class has')]
        if stage == 'train' or metrics_are_wrong:
            (group,) = found
            assert (group.severity, group.count, group.items[0]) == ('error', 2, item)
            assert group.hint == hint
        else:
            assert found == []


def test_one_class_without_objects(tmp_path):
    content = valid()
    content['annotations'][0]['iscrowd'] = content['annotations'][2]['iscrowd'] = 1
    (group,) = groups(tmp_path, content)
    assert str(group).endswith(
        "class has no objects with a valid mask: 'dog' (2 annotations, all with `iscrowd: 1`)"
    )
    assert group.severity == 'warning'
    assert groups(tmp_path, content, metainfo=dict(classes=('cat',))) == []


def test_a_polygon_that_is_left_out_beside_a_valid_one(tmp_path):
    content = changed(segmentation=[*SQUARE, [1, 2]])
    assert [g.kind for g in groups(tmp_path, content)] == [RULES['segmentation.line'].kind]


def test_classes_of_another_file(tmp_path):
    (group,) = groups(tmp_path, valid(), metainfo=dict(classes=('person',)))
    assert (group.severity, group.kind) == ('error', '`categories` contains none of the classes')
    assert group.hint == "The file has ['cat', 'dog'], the config has ['person']"


@pytest.mark.parametrize(
    ('stage', 'severity', 'words'),
    [
        ('train', 'error', 'nothing to learn'),
        ('val', 'error', 'would remain the best'),
        ('test', 'warning', 'format_only'),
    ],
)
def test_no_annotation_at_all(tmp_path, stage, severity, words):
    content = valid()
    content['annotations'] = []
    (group,) = groups(tmp_path, content, stage)
    assert group.severity == severity
    assert words in group.hint
    del content['annotations']  # as in the files of test images
    assert [g.kind for g in groups(tmp_path, content, stage)] == [group.kind]


@pytest.mark.parametrize('stage', ['train', 'val'])
@pytest.mark.parametrize('mask', [None, []])
def test_no_masks_at_all(tmp_path, stage, mask):
    content = changed(segmentation=mask)
    (group,) = groups(tmp_path, content, stage)
    assert group.severity == 'error'
    assert group.kind.startswith('no annotation has a `segmentation`')
    name = group.hint.split('such as ')[1]
    assert os.path.isfile(os.path.join(os.path.dirname(__file__), '../../..', name))
    assert groups(tmp_path, content, stage, needs_masks=False) == []


def test_a_pipeline_that_loads_masks(tmp_path):
    steps = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_mask=True)]
    leaf = leaf_of(tmp_path, changed(segmentation=[]))
    report = Report()
    check_coco(dict(leaf, pipeline=steps), report, 'val')
    assert [group.severity for group in report.groups()] == ['error']


def test_masks_that_are_not_used(tmp_path):
    content = broken('annotations', 0, 'segmentation', [[1, 2]])
    (group,) = groups(tmp_path, content, needs_masks=False)
    assert group.severity == 'note'


@pytest.mark.parametrize(
    ('stage', 'filter_cfg', 'hint'),
    [
        ('train', None, 'Training uses them as background'),
        ('train', dict(filter_empty_gt=False), 'Training uses them as background'),
        ('train', dict(filter_empty_gt=True), 'Training skips them. Set `filter_cfg.filter_'),
        ('val', dict(filter_empty_gt=True), ''),
    ],
)
def test_images_without_annotations(tmp_path, stage, filter_cfg, hint):
    content = valid()
    images = [dict(content['images'][0], id=i, file_name=f'{i}.jpg') for i in range(5, 12)]
    content['images'] += images
    (group,) = groups(tmp_path, content, stage, filter_cfg=filter_cfg)
    assert (group.severity, group.count, len(group.items)) == ('note', 7, 5)
    assert group.hint.startswith(hint) if hint else not group.hint


def test_small_images(tmp_path):
    filter_cfg = dict(filter_empty_gt=True, min_size=32)
    (group,) = groups(tmp_path, valid(), filter_cfg=filter_cfg)
    assert (group.severity, group.count) == ('note', 4)
    assert groups(tmp_path, valid(), 'val', filter_cfg=filter_cfg) == []


def test_a_file_of_validation_and_test_is_reported_once(tmp_path):
    report, leaf = Report(), leaf_of(tmp_path, broken('annotations', 0, 'bbox', [3, 3, 0, 5]))
    for stage in ('val', 'test'):
        check_coco(leaf, report, stage, needs_masks=True)
    assert [group.count for group in report.groups()] == [1]


def test_data_sets_of_mmdet_with_a_reader_of_their_own(tmp_path):
    content = valid()
    del content['annotations'][0]['iscrowd'], content['images'][0]['file_name']
    assert groups(tmp_path, content, 'val', type='mmdet.LVISV1Dataset') == []


def test_an_unknown_stage(tmp_path):
    with pytest.raises(ValueError, match=r"stage must be one of .*, but got 'valid'"):
        groups(tmp_path, valid(), 'valid')


def test_files_that_are_not_here():
    report = Report()
    for path in ('s3://bucket/a.json', '/missing.json', ''):
        check_coco(dict(type='mmdet.CocoDataset', ann_file=path), report, 'train')
    assert list(report.groups()) == []


JSON_VALUES = [None, True, 0, -1, 1.5, math.nan, math.inf, -math.inf, 10**400, '', '1', '\ud800']
JSON_VALUES += [[], {}, [[]], [1], [None], [[None]], {'size': 3}, {'counts': {}}, [[1e300] * 8]]
JSON_VALUES += [dict(RLE, counts=[10**400, math.inf, 1]), dict(RLE, counts='\ud800')]


def any_value(generator, depth=3):
    if depth == 0 or generator.random() < 0.6:
        return generator.choice(JSON_VALUES)
    parts = [any_value(generator, depth - 1) for _ in range(generator.randrange(7))]
    return parts if generator.random() < 0.5 else {str(i): part for i, part in enumerate(parts)}


def mutate(value, generator, rate):
    """Replace parts of a JSON value by any others."""
    if generator.random() < rate:
        return any_value(generator)
    if isinstance(value, dict):
        entries = [(k, v) for k, v in value.items() if generator.random() > rate / 3]
        return {k: mutate(v, generator, rate) for k, v in entries}
    if isinstance(value, list):
        return [mutate(v, generator, rate) for v in value]
    return value


def test_no_json_value_raises_anything_else(tmp_path):
    generator = random.Random(0)
    base = valid()
    base['annotations'] += [dict(annotation(i), id=i + 10, segmentation=RLE) for i in (1, 2)]
    found, refused = set(), 0
    leaf = leaf_of(tmp_path, base)
    for _ in range(1500):
        content = mutate(base, generator, rate=generator.choice((0.01, 0.03, 0.1)))
        (tmp_path / 'coco.json').write_text(json.dumps(content))
        checks._read.cache_clear()
        report = Report()
        try:
            for stage in checks.STAGES:
                check_coco(leaf, report, stage, needs_masks=generator.random() < 0.5)
        except UserError:
            refused += 1
        found |= {group.kind for group in report.groups()}
        assert all(str(group) for group in report.groups())
    assert len(found) > 30
    assert refused < 700


@pytest.mark.parametrize(
    ('content', 'words'),
    [
        ('{', 'is not valid JSON: Expecting'),
        ('[' * 100000, 'is not valid JSON: '),
        (
            '[1]',
            r"not in COCO format: \['images', 'annotations', 'categories'\] must be lists of",
        ),
        (
            '{"images": [], "a": 1}',
            r"\['categories'\] must .* keys \['a', 'images'\]",
        ),
        ('{"images": [], "annotations": {}, "categories": []}', r"\['annotations'\] must be lists"),
    ],
)
def test_other_files(tmp_path, content, words):
    path = tmp_path / 'other.json'
    path.write_text(content)
    with pytest.raises(UserError, match=words):
        read_coco(str(path))


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match='cannot be read: No such file'):
        read_coco(str(tmp_path / 'missing.json'))
    with pytest.raises(UserError, match='cannot be read: Is a directory'):
        read_coco(str(tmp_path))


def test_a_panoptic_file(tmp_path):
    images = [dict(id=0, file_name='0.jpg', width=40, height=30)]
    annotations = [dict(image_id=0, file_name='0.png', segments_info=[dict(id=1, category_id=1)])]
    content = dict(images=images, annotations=annotations, categories=[dict(id=1, name='cat')])
    settings = dict(type='mmdet.CocoPanopticDataset', metainfo=None)
    assert groups(tmp_path, content, 'val', **settings) == []


def test_the_summary(tmp_path):
    content = valid()
    content['annotations'][0].update(iscrowd=1, segmentation=RLE)
    leaf_of(tmp_path, content)
    summary = read_coco(str(tmp_path / 'coco.json'))
    assert summary.categories == ('cat', 'dog')
    assert summary.images[1] == ('2.jpg', (30, 40))
    cat, dog = summary.classes
    assert (cat.annotations, cat.crowd, cat.boxes, cat.masks) == (2, 0, 2, 2)
    assert (dog.annotations, dog.crowd, dog.boxes, dog.masks) == (2, 1, 1, 1)
    assert summary.annotations == 4


def test_a_file_is_read_once_until_it_changes(tmp_path, monkeypatch):
    reads, load = [], checks._load
    monkeypatch.setattr(checks, '_load', lambda path: reads.append(1) or load(path))
    leaf_of(tmp_path, valid())
    path = str(tmp_path / 'coco.json')
    for _ in range(2):
        assert not read_coco(path).problems
    assert len(reads) == 1
    leaf_of(tmp_path, changed(category_id=7))
    assert 'category_id.unknown' in read_coco(path).problems
    assert len(reads) == 2


def test_large_files_are_announced(tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr(checks, 'print_log', lambda text, logger: lines.append(text))
    leaf_of(tmp_path, valid())
    path = str(tmp_path / 'coco.json')
    monkeypatch.setattr(checks, '_LARGE', 1)
    read_coco(path)
    assert checks.log_large_file(path, 'indexing')
    assert [line.split()[0] for line in lines] == ['reading', 'read', 'indexing']
    assert all(repr(path) in line for line in lines)


@pytest.mark.parametrize('wrap', [dict, wrapped], ids=['plain', 'repeated'])
def test_a_data_set_of_another_file(tmp_path, wrap):
    with pytest.raises(UserError, match=r"is not in COCO format: \['categories'\] must be lists"):
        build(wrap(coco_dataset(tmp_path, dict(images=[], annotations=[]))))
    other = dict(images=[dict(id=0, file_name='0.png', width=9, height=9)], annotations=[])
    with pytest.raises(UserError, match=r"the categories \['chair leg'\], .*classes \['person'"):
        build(wrap(coco_dataset(tmp_path, dict(other, categories=[dict(id=1, name='chair leg')]))))


@pytest.mark.parametrize('name', ['coco.json', 'coco.txt', 'coco'])
def test_files_of_any_name(tmp_path, name):
    leaf = dict(coco_dataset(tmp_path, valid()), ann_file=name)
    (tmp_path / 'coco.json').rename(tmp_path / name)
    assert [path for _, path in checks.coco_files(wrapped(leaf))] == [str(tmp_path / name)]
    leaf['type'] = 'mmpretrain.CustomDataset'  # it has a format of its own
    assert not list(checks.coco_files(leaf))


@DATASETS.register_module()
class PickledAnnotations(CocoDataset):
    """A subclass may read files of another format."""

    def load_data_list(self):
        return []


def test_other_formats_are_left_to_their_data_set(tmp_path):
    (tmp_path / 'a.pkl').write_bytes(b'\x80\x04]\x94.')
    leaf = dict(type='PickledAnnotations', data_root=str(tmp_path), ann_file='a.pkl')
    assert not list(checks.coco_files(leaf))
