"""Settings of datasets, completed by their classes."""

import pytest
from mmengine.config import ConfigDict

from mmvmamba.engine.checks.settings import (
    class_names,
    data_folder,
    image_loader,
    is_remote,
    join_root,
    label_map_loader,
    setting,
)

from . import images  # noqa: F401

ADE = dict(type='mmseg.ADE20KDataset')
CITY = dict(type='mmseg.CityscapesDataset')
BASE = dict(type='mmseg.BaseSegDataset')
WEIRD = [None, 3, 'a', [], [1], {}, {'a': 1}, True]


@pytest.mark.parametrize(
    ('leaf', 'name', 'expected'),
    [
        (ADE, 'img_suffix', '.jpg'),
        (ADE, 'reduce_zero_label', True),
        (BASE, 'reduce_zero_label', False),
        (CITY, 'img_suffix', '_leftImg8bit.png'),
        (CITY, 'ignore_index', 255),
        (dict(ADE, reduce_zero_label=False), 'reduce_zero_label', False),
        (ADE, 'nothing', None),
        (dict(type='mmdet.CocoDataset'), 'seg_map_suffix', '.png'),
        (dict(type='mmpretrain.ImageNet'), 'with_label', True),
        (dict(type='Unknown'), 'ann_file', None),
        (dict(type=None), 'ann_file', None),
    ],
)
def test_setting(leaf, name, expected):
    assert setting(ConfigDict(leaf), name) == expected


@pytest.mark.parametrize(
    ('settings', 'expected'),
    [
        (dict(data_root='r', data_prefix=dict(img_path='a')), 'r/a'),
        (dict(data_root='r'), 'r/'),
        (dict(data_root='r', data_prefix='a'), 'r/a'),
        (dict(data_root='r', data_prefix=dict(img_path='/a')), '/a'),
        (dict(data_prefix=dict(img_path='a')), 'a'),
        (dict(data_prefix=dict(img='a')), None),
        *((dict(data_prefix=dict(img_path=value)), None) for value in WEIRD if value != 'a'),
        *((dict(data_prefix=value), None) for value in WEIRD if value != 'a'),
    ],
)
def test_data_folder(settings, expected):
    assert data_folder(dict(BASE, **settings), 'img_path') == expected


def test_join_root(monkeypatch):
    monkeypatch.setenv('HOME', '/home/x')
    assert join_root(dict(data_root='~/r'), 'a') == '/home/x/r/a'
    assert join_root(dict(data_root=3), 'a') == 'a'
    assert join_root({}, 3) is None


def test_class_names(tmp_path):
    path = tmp_path / 'names.txt'
    path.write_text('cat\ndog\n')
    for classes in (['cat', 'dog'], ('cat', 'dog'), str(path)):
        assert class_names(dict(BASE, metainfo=dict(classes=classes))) == ['cat', 'dog']
        assert class_names(dict(BASE, classes=classes)) == ['cat', 'dog']
    assert class_names(BASE) is None and len(class_names(ADE)) == 150
    for value in WEIRD:
        class_names(dict(BASE, metainfo=value, classes=value))
        class_names(dict(BASE, metainfo=dict(classes=value)))
    assert class_names(dict(BASE, classes=str(tmp_path))) is None


@pytest.mark.parametrize(
    ('settings', 'expected'),
    [
        (dict(), False),
        (dict(backend_args=None), False),
        (dict(backend_args=dict(backend='local')), False),
        (dict(pipeline=[dict(type='LoadImageFromFile', backend_args=None)]), False),
        (dict(backend_args=dict(backend='petrel')), True),
        (dict(pipeline=[dict(type='L', file_client_args=dict(backend='lmdb'))]), True),
        (dict(data_root='s3://bucket'), True),
        (dict(data_prefix='s3://bucket'), True),
        (dict(data_prefix=dict(img='https://x.org/a')), True),
        *((dict(data_root=value, pipeline=value, backend_args=value), False) for value in WEIRD),
    ],
)
def test_is_remote(settings, expected):
    assert is_remote(dict(BASE, **settings)) == expected


def test_loaders():
    load = image_loader(dict(pipeline=[dict(type='mmdet.LoadImageFromFile')]))
    assert load == image_loader({}) == ('LoadImageFromFile', 'color', 'cv2', True, None)
    assert load.rotates
    step = dict(type='LoadImageFromFile', color_type='unchanged', imdecode_backend='tifffile')
    load = image_loader(dict(pipeline=[dict(type='Other'), step]))
    assert load[1:] == ('unchanged', 'tifffile', True, None) and not load.rotates
    assert not image_loader(dict(pipeline=[dict(type='LoadBiomedicalImageFromFile')])).is_stock
    assert label_map_loader({}) == ('LoadAnnotations', 'unchanged', 'pillow', True, None)
    other = label_map_loader(dict(pipeline=[dict(type='LoadBiomedicalAnnotation')]))
    assert other.name == 'LoadBiomedicalAnnotation' and not other.is_stock
    for value in WEIRD:
        image_loader(dict(pipeline=value))
        image_loader(dict(pipeline=[dict(type=value, color_type=value)]))


@pytest.mark.parametrize(
    ('steps', 'channels'),
    [
        (['LoadImageFromFile', 'mmseg.LoadAnnotations', 'Resize', 'mmseg.PackSegInputs'], 12),
        (['LoadImageFromFile', 'mmvmamba.CheckSample'], 12),
        (['LoadImageFromFile', 'RandomGrayscale'], None),
        (['LoadImageFromFile', 'SelectBands'], None),
        ([dict(type='LoadImageFromFile'), dict(type='RandomApply', transforms=[])], None),
    ],
)
def test_channels_of_loaded_images(steps, channels):
    """They are unknown behind a transform that may change them."""
    steps = [step if isinstance(step, dict) else dict(type=step) for step in steps]
    assert image_loader(dict(pipeline=steps), 12).channels == channels
    assert image_loader(dict(pipeline=steps)).channels is None
