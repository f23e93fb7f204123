"""Files of segmentation datasets."""

import pytest

from mmvmamba.engine.checks.classes import Head
from mmvmamba.engine.checks.segmentation import check_segmentation, read_lines

from .images import Report, groups, label_map, only, picture, truncate

NAMES = ['a', 'b', 'sub/c']


@pytest.fixture
def leaf(tmp_path):
    for name in NAMES:
        picture(tmp_path / 'images' / f'{name}.jpg')
        label_map(tmp_path / 'maps' / f'{name}.png', 0, 1, 255)
    return dict(
        type='mmseg.BaseSegDataset',
        data_root=str(tmp_path),
        data_prefix=dict(img_path='images', seg_map_path='maps'),
        metainfo=dict(classes=('cat', 'dog')),
    )


def check(leaf, sample=64, **settings):
    return groups(check_segmentation, dict(leaf, **settings), Report, sample)


def write_list(tmp_path, *lines):
    (tmp_path / 'list.txt').write_text('\n'.join(lines))
    return dict(ann_file='list.txt')


def test_without_problems(leaf, tmp_path):
    for sample in (64, None, 2, 0):
        assert check(leaf, sample) == []
    assert check(leaf, **write_list(tmp_path, *NAMES)) == []
    assert check(leaf, **write_list(tmp_path, 'a')) == []
    assert check(leaf, ann_file='') == check(leaf, ann_file='maps') == []
    assert check(leaf, data_prefix=dict(img_path='images')) == []
    (tmp_path / 'images' / 'readme.txt').touch()
    (tmp_path / 'maps' / 'a_color.tif').touch()
    assert check(leaf) == []


def test_images_and_label_maps_in_one_folder(tmp_path):
    picture(tmp_path / 'a.jpg')
    label_map(tmp_path / 'a.png', 0, 1)
    leaf = dict(type='mmseg.BaseSegDataset', data_root=str(tmp_path))
    assert check(leaf) == []
    label_map(tmp_path / 'maps' / 'a.png', 0, 1)
    only(check(leaf), 'warning', "label map has no image: 'maps/a.png'")
    assert check(leaf, data_prefix=dict(img_path='', seg_map_path='maps'))[0].items == ["'a.png'"]
    (tmp_path / 'a.png').unlink()
    assert check(leaf, data_prefix=dict(img_path='', seg_map_path='maps')) == []


def test_suffixes_of_a_class(tmp_path):
    picture(tmp_path / 'images' / 'x' / 'a_leftImg8bit.png')
    for kind in ('labelTrainIds', 'color', 'instanceIds'):
        label_map(tmp_path / 'maps' / 'x' / f'a_gtFine_{kind}.png', *range(19))
    prefix = dict(img_path='images', seg_map_path='maps')
    leaf = dict(type='mmseg.CityscapesDataset', data_root=str(tmp_path), data_prefix=prefix)
    assert check(leaf) == []


def test_missing_label_map(leaf, tmp_path):
    (tmp_path / 'maps' / 'sub' / 'c.png').unlink()
    group = only(check(leaf), 'error', "label map does not exist: 'sub/c.png'. Add the label maps")
    assert group.path == str(tmp_path / 'maps')
    (tmp_path / 'maps' / 'sub' / 'c.tif').touch()
    assert (
        "Found 'sub/c.tif' instead" in only(check(leaf), 'error', 'label map does not exist').hint
    )


def test_missing_images_of_a_list(leaf, tmp_path):
    (tmp_path / 'images' / 'a.jpg').unlink()
    settings = write_list(tmp_path, *NAMES)
    assert 'remove the lines' in only(check(leaf, **settings), 'error', "'a.jpg'").hint
    settings = write_list(tmp_path, 'b.jpg')
    found = check(leaf, **settings)
    assert [g.items for g in found] == [["'b.jpg.jpg'"], ["'b.jpg.png'"]]


def test_label_map_without_image(leaf, tmp_path):
    (tmp_path / 'images' / 'b.jpg').unlink()
    only(check(leaf), 'warning', "label map has no image: 'b.png'")
    assert check(leaf, **write_list(tmp_path, 'a')) == []


def test_mixed_suffixes(leaf, tmp_path):
    (tmp_path / 'images' / 'a.jpg').rename(tmp_path / 'images' / 'a.png')
    picture(tmp_path / 'images' / 'd.JPG')
    upper, png, lone = check(leaf)
    assert [g.severity for g in (upper, png, lone)] == ['warning'] * 3
    assert upper.items == ["'d.JPG'"] and 'case-sensitive' in upper.hint
    assert png.items == ["'a.png'"] and "`img_suffix` is '.jpg'" in png.kind
    assert lone.kind == 'label map has no image'


def test_no_image_with_the_suffix(leaf):
    group = only(check(leaf, img_suffix='.png'), 'error', "image with suffix '.jpg' is ignored")
    assert group.count == 3 and "set `img_suffix='.jpg'`" in group.hint
    words = "no files in the folder end in '.jpg', so the dataset is empty"
    only(check(leaf, data_prefix=dict(img_path='no')), 'error', words)
    only(check(leaf, data_root='/nowhere'), 'error', words)


def test_hidden_folder(leaf, tmp_path):
    picture(tmp_path / 'images' / '.ipynb_checkpoints' / 'a.jpg')
    hidden, missing = sorted(check(leaf), key=lambda group: group.path)
    assert hidden.items == ["'.ipynb_checkpoints/a.jpg'"] and hidden.severity == 'warning'
    assert missing.items == ["'.ipynb_checkpoints/a.png'"] and missing.severity == 'error'


@pytest.mark.parametrize(
    ('fault', 'severity', 'words'),
    [
        (lambda f: label_map(f / 'maps/a.png', 0, 40), 'error', "'a.png' has 40"),
        (lambda f: label_map(f / 'maps/a.png', 0, 1, size=(6, 8)), 'error', '8 x 6 and 6 x 8'),
        (lambda f: truncate(picture(f / 'images/a.jpg', (80, 60))), 'error', 'image is truncated'),
        (lambda f: picture(f / 'images/a.jpg', orientation=6), 'error', 'EXIF'),
        (lambda f: picture(f / 'images/a.jpg', mode='L'), 'note', 'gray'),
    ],
)
def test_faults_of_files(leaf, tmp_path, fault, severity, words):
    fault(tmp_path)
    only(check(leaf), severity, words)


def test_the_sample_may_miss_classes(leaf, tmp_path):
    for name in NAMES:
        label_map(tmp_path / 'maps' / f'{name}.png', 0, 1)
    label_map(tmp_path / 'maps' / 'sub' / 'c.png', 2)
    settings = dict(metainfo=dict(classes=('cat', 'dog', 'cow')))
    assert check(leaf, **settings) == []
    only(check(leaf, 2, **settings), 'note', '1 of 3 classes never occur in the sample')


def test_label_maps_of_another_loader(leaf, tmp_path):
    label_map(tmp_path / 'maps' / 'a.png', 99)
    found = check(leaf, pipeline=[dict(type='LoadBiomedicalAnnotation')])
    only(found, 'note', 'not checked because `LoadBiomedicalAnnotation` loads them')


@pytest.mark.parametrize(
    'settings',
    [
        dict(data_prefix=None),
        dict(data_prefix=dict(img_path=3)),
        dict(img_suffix=None),
        dict(img_suffix=('.jpg', '.png')),
        dict(seg_map_suffix=3),
    ],
)
def test_settings_of_a_wrong_type(leaf, settings):
    only(check(leaf, **settings), 'error', 'the images cannot be listed')


@pytest.mark.parametrize('suffix', ['', '.', 'jpg', '/', '\0'])
def test_weird_settings_never_raise(leaf, tmp_path, suffix):
    check(leaf, img_suffix=suffix, seg_map_suffix=suffix)
    check(leaf, ann_file=suffix, img_suffix=suffix, seg_map_suffix=suffix)
    prefix = dict(img_path='images' + suffix, seg_map_path='maps' + suffix)
    check(leaf, data_prefix=prefix)
    check(leaf, ann_file=3, metainfo=[], reduce_zero_label='x', ignore_index=[])
    check(leaf, **write_list(tmp_path, '\0', '/', '..', 'x' * 5000, 'a'))


def test_lists(leaf, tmp_path):
    found = check(leaf, **write_list(tmp_path, 'a', '', 'b', ''))
    only(found, 'error', 'line is empty: line 2')
    only(check(leaf, **write_list(tmp_path)), 'error', 'the file has no line')
    (tmp_path / 'list.txt').write_bytes(b'\xff\xfe\x00')
    found = check(leaf, ann_file='list.txt')
    assert found[0].kind.startswith("the file cannot be read ('utf-8' codec")
    assert read_lines(str(tmp_path), report := Report()) == []
    assert 'Is a directory' in next(report.groups()).kind


def test_a_head_for_fewer_classes_than_labels(leaf):
    assert groups(check_segmentation, leaf, Report, 64, head=Head('model.decode_head', 2)) == []
    found = groups(check_segmentation, leaf, Report, 64, head=Head('model.auxiliary_head', 1))
    only(found, 'error', 'but model.auxiliary_head.num_classes is 1')
