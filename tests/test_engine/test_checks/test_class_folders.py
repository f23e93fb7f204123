"""Folders and lists of classification datasets."""

import pytest
from mmpretrain.datasets import CustomDataset

from mmvmamba.engine.checks.class_folders import check_classification, class_folders
from mmvmamba.engine.checks.classes import Head

from .images import Report, groups, only, picture, truncate


@pytest.fixture
def leaf(tmp_path):
    for name in ('cat/1.jpg', 'dog/1.png', 'dog/deep/2.JPEG'):
        picture(tmp_path / 'train' / name)
    return dict(type='mmpretrain.CustomDataset', data_root=str(tmp_path), data_prefix='train')


def check(leaf, sample=64, **settings):
    return groups(check_classification, dict(leaf, **settings), Report, sample)


def write_list(tmp_path, *lines):
    (tmp_path / 'list.txt').write_text('\n'.join(lines))
    return dict(ann_file='list.txt')


def test_without_problems(leaf, tmp_path):
    for sample in (64, None, 1, 0):
        assert check(leaf, sample) == []
    assert check(leaf, classes=['cat', 'dog']) == []
    assert check(leaf, metainfo=dict(classes=('Cat', 'DOG '))) == []
    assert check(leaf, with_label=False) == []
    assert check(leaf, data_prefix=dict(img_path='train')) == []
    (tmp_path / 'train' / 'readme.txt').touch()
    (tmp_path / 'train' / 'cat' / '.hidden.jpg').touch()
    assert check(leaf) == []
    assert class_folders(leaf) == ('cat', 'dog')


def test_synsets_of_imagenet(tmp_path):
    from mmpretrain.datasets.categories import IMAGENET_CATEGORIES

    for i in range(len(IMAGENET_CATEGORIES)):
        path = tmp_path / 'train' / f'n{i:08d}' / '0.JPEG'
        path.parent.mkdir(parents=True)
        path.touch()
    leaf = dict(type='mmpretrain.ImageNet', data_root=str(tmp_path), split='train')
    assert check(leaf, 0) == []
    (tmp_path / 'train' / 'n00000000' / '0.JPEG').unlink()
    (tmp_path / 'train' / 'n00000000').rmdir()
    only(check(leaf, 0), 'error', 'there are 999 class folders, but 1000 classes')


def test_the_list_of_a_split(tmp_path):
    picture(tmp_path / 'val' / 'a.jpg')
    (tmp_path / 'meta').mkdir()
    (tmp_path / 'meta' / 'val.txt').write_text('a.jpg 65\nb.jpg 3\n')
    leaf = dict(type='mmpretrain.ImageNet', data_root=str(tmp_path), split='val')
    only(check(leaf), 'error', "image does not exist: 'b.jpg'")
    assert class_folders(leaf) is None


@pytest.mark.parametrize('key', ['classes', 'metainfo'])
def test_another_order(leaf, key):
    classes = ('dog', 'cat')
    settings = {key: dict(classes=classes) if key == 'metainfo' else classes}
    group = only(check(leaf, **settings), 'error', '`classes` and folders are in different order')
    assert group.items[0] == "folder 'cat' is class 'dog'" and group.count == 2


def test_other_names(leaf, tmp_path):
    group = only(check(leaf, classes=['cat', 'doge']), 'warning', "folder 'dog' is class 'doge'")
    assert 'typos' in group.hint
    assert only(check(leaf, classes=['felis', 'canis']), 'note', 'class name differs').count == 2
    for number in ('2', '10', '1'):
        picture(tmp_path / 'numbers' / number / '1.jpg')
    group = only(
        check(leaf, data_prefix='numbers', classes=['a', 'b', 'c']), 'warning', 'sorts as text'
    )
    assert "folder '10' is class 'b'" in group.items[0]
    assert check(leaf, data_prefix='numbers') == []


def test_another_number_of_classes(leaf):
    found = check(leaf, classes=['cat', 'bird', 'dog'])
    group = only(found, 'error', 'there are 2 class folders, but 3 classes')
    assert "Classes without a folder: ['bird']" in group.hint


@pytest.mark.parametrize('classes', [None, ['cat', 'dog']])
def test_hidden_class_folder(leaf, tmp_path, classes):
    (tmp_path / 'train' / '.ipynb_checkpoints').mkdir()
    group = only(check(leaf, classes=classes), 'error', 'hidden folder is treated as a class')
    assert group.items == ["'.ipynb_checkpoints'"] and 'label 0' in group.hint
    if classes is None:  # The labels of mmpretrain are wrong indeed.
        samples = CustomDataset(data_root=str(tmp_path), data_prefix='train')
        assert samples[0]['gt_label'] == 1
        assert samples.CLASSES == class_folders(leaf)


def test_hidden_folder_in_a_class(leaf, tmp_path):
    picture(tmp_path / 'train' / 'cat' / '.ipynb_checkpoints' / '1-checkpoint.jpg')
    group = only(check(leaf), 'warning', 'image in a hidden folder is also used')
    assert group.items == ["'cat/.ipynb_checkpoints/1-checkpoint.jpg'"]


def test_empty_and_lone(leaf, tmp_path):
    (tmp_path / 'train' / 'empty').mkdir()
    only(check(leaf), 'warning', "class folder has no images: 'empty'")
    picture(tmp_path / 'train' / 'empty' / 'a.webp')
    picture(tmp_path / 'train' / 'lone.jpg')
    kinds = [(g.severity, g.kind) for g in check(leaf)]
    assert kinds == [
        ('warning', "image with suffix '.webp' is ignored"),
        ('warning', 'class folder has no images'),
        ('warning', 'image is not in a class folder'),
    ]
    assert check(leaf, extensions=['.webp', '.jpg', '.png', '.jpeg'])[0].items == ["'lone.jpg'"]


def test_no_image(leaf, tmp_path):
    only(check(leaf, data_prefix='no'), 'error', 'no images in class folders')
    only(check(leaf, data_prefix='no', with_label=False), 'error', 'no images in the folder')


def test_folders_of_splits(leaf, tmp_path):
    picture(tmp_path / 'val' / 'cat' / '1.jpg')
    only(check(leaf, data_prefix=''), 'error', "['train', 'val'], which look like dataset splits")


def test_sample(leaf, tmp_path):
    truncate(picture(tmp_path / 'train' / 'cat' / '1.jpg', (80, 60)))
    only(check(leaf), 'error', "image is truncated: 'cat/1.jpg'")


# ---- lists ----


def test_list_without_problems(leaf, tmp_path):
    lines = ['cat/1.jpg 0', 'dog/1.png 1', 'dog/deep/2.JPEG 1']
    assert check(leaf, **write_list(tmp_path, *lines)) == []
    assert check(leaf, classes=['cat', 'dog'], **write_list(tmp_path, *lines)) == []
    names = [line.split()[0] for line in lines]
    assert check(leaf, with_label=False, **write_list(tmp_path, *names)) == []


@pytest.mark.parametrize(
    ('line', 'words'),
    [
        ('cat/2.jpg 0', "image does not exist: 'cat/2.jpg'"),
        ('cat/1.jpg', "line has no label: line 2: 'cat/1.jpg'"),
        ('cat/1.jpg dog', "line has no label: line 2: 'cat/1.jpg dog'"),
        ('cat/1.jpg 1.0', "line has no label: line 2: 'cat/1.jpg 1.0'"),
        ('', "line has no label: line 2: ''"),
        ('cat/1.jpg -1', "label is negative: 'cat/1.jpg' has -1"),
        ('bird/1.jpg 2', "label is out of range for 2 classes: 'bird/1.jpg' has 2"),
        ('cat/1.jpg 1', "'cat/1.jpg' has 1, but the index of its folder is 0"),
    ],
)
def test_faults_of_lists(leaf, tmp_path, line, words):
    picture(tmp_path / 'train' / 'bird' / '1.jpg')
    found = check(leaf, classes=['cat', 'dog'], **write_list(tmp_path, 'dog/1.png 1', line, ''))
    assert any(g.severity == 'error' and words in str(g) for g in found)


def test_a_list_that_cannot_be_read(leaf, tmp_path):
    found = check(leaf, ann_file='no.txt')
    assert found[0].kind == 'the file cannot be read (No such file or directory)'
    only(check(leaf, **write_list(tmp_path)), 'error', 'the file has no line')


@pytest.mark.parametrize('value', [None, 3, [], [1], {}, 'a\0', True, [None]])
def test_weird_settings_never_raise(leaf, tmp_path, value):
    for key in ('data_prefix', 'data_root', 'ann_file', 'classes', 'metainfo', 'extensions'):
        check(leaf, **{key: value})
        check(leaf, **{**write_list(tmp_path, 'cat/1.jpg 0'), key: value})
    check(leaf, split=value)
    check(leaf, metainfo=dict(classes=value))
    class_folders(dict(leaf, data_prefix=value))


def test_a_head_for_fewer_classes_than_folders(leaf):
    for count in (2, 1000):
        assert groups(check_classification, leaf, Report, 64, head=Head('model.head', count)) == []
    found = groups(check_classification, leaf, Report, 64, head=Head('model.head', 1))
    words = 'there are 2 class folders, but model.head.num_classes is 1. Set model.head.num_classes'
    only(found, 'error', words)
