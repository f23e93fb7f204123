"""Labels in label maps, as they are in the file."""

import mmseg.datasets
import numpy as np
import pytest
from mmseg.datasets.transforms import LoadAnnotations
from PIL import Image

from mmvmamba.engine.checks.classes import Head
from mmvmamba.engine.checks.label_maps import (
    labels_of,
    read_label_map,
    report_head,
    report_labels,
)
from mmvmamba.engine.checks.report import Report
from mmvmamba.engine.checks.settings import Loader

from .images import groups, label_map, only, picture, truncate

PILLOW = Loader('LoadAnnotations', 'unchanged', 'pillow')


def data_set(count=3, **settings):
    metainfo = dict(classes=[f'c{i}' for i in range(count)])
    return dict(type='mmseg.BaseSegDataset', metainfo=metainfo, **settings)


def check(leaf, *paths, is_complete=True, loader=PILLOW):
    folder = str(paths[0].parent)
    maps = [read_label_map(str(path), loader) for path in paths]
    return groups(report_labels, Report, folder, maps, labels_of(leaf), is_complete)


@pytest.mark.parametrize(
    ('leaf', 'labels'),
    [
        (data_set(3), [0, 1, 2]),
        (data_set(3), [0, 1, 2, 255]),
        (data_set(3, reduce_zero_label=True), [0, 1, 2, 3]),
        (data_set(3, reduce_zero_label=True), [1, 2, 3, 255]),
        (data_set(3, ignore_index=9), [0, 1, 2, 9, 255]),
        (data_set(1), [0, 255]),
        (dict(type='mmseg.BaseSegDataset'), [0, 40, 255]),
        (dict(type='mmseg.ADE20KDataset'), list(range(151))),
        (dict(type='mmseg.ADE20KDataset', metainfo=dict(classes=['sky', 'tree'])), [0, 3, 5, 90]),
        (data_set(3, ignore_index='x', reduce_zero_label=None), [0, 1, 2]),
    ],
)
def test_labels_without_problems(tmp_path, leaf, labels):
    path = label_map(tmp_path / 'a.png', *labels, size=(40, 30))
    assert check(leaf, path) == []


@pytest.mark.parametrize(
    'leaf',
    [
        data_set(3),
        data_set(3, reduce_zero_label=True),
        dict(type='mmseg.ADE20KDataset', metainfo=dict(classes=['sky', 'tree'])),
        dict(type='mmseg.PascalVOCDataset', metainfo=dict(classes=['dog', 'cat'])),
    ],
)
def test_final_labels_are_those_of_mmseg(tmp_path, leaf):
    path = label_map(tmp_path / 'a.png', *range(256), size=(16, 16))
    kind = mmseg.datasets.__dict__[leaf['type'].split('.')[1]]
    info = dict(
        seg_map_path=str(path),
        reduce_zero_label='ADE' in leaf['type'] or leaf.get('reduce_zero_label', False),
        label_map=kind.get_label_map(leaf['metainfo']['classes']),
        seg_fields=[],
    )
    expected = LoadAnnotations()(info)['gt_seg_map'].flatten()
    final = labels_of(leaf).final
    count = len(leaf['metainfo']['classes'])
    old = len(info['label_map'] or ()) or 256
    for label in range(256):
        if label < old or label == 255:  # mmseg keeps labels beyond those, of any class
            assert final[label] == expected[label], label
        else:
            assert final[label] >= count


@pytest.mark.parametrize(
    ('leaf', 'labels', 'words', 'hint'),
    [
        (data_set(11), [0, 40], "'a.png' has 40", 'Add the classes'),
        (data_set(3), [1, 2, 3], "'a.png' has 3", 'start at 1'),
        (data_set(3), [0, 1, 2, 3], "'a.png' has 3", 'one more label than classes'),
        (data_set(3), [0, 76, 150, 254], 'has 76, 150, 254', 'Add the classes'),
        (data_set(3, reduce_zero_label=True), [0, 1, 4], 'has 4', 'Add the classes'),
        (data_set(3, reduce_zero_label=True), [1, 254], 'has 254', 'Add the classes'),
        (data_set(3), list(range(200)), 'and 185 more', 'Add the classes'),
        (
            dict(type='mmseg.ADE20KDataset', metainfo=dict(classes=['sky', 'tree'])),
            [0, 3, 200],
            'not one of the 2 classes',
            'Add the classes',
        ),
    ],
)
def test_labels_of_no_class(tmp_path, leaf, labels, words, hint):
    path = label_map(tmp_path / 'a.png', *labels, size=(40, 30))
    group = only(check(leaf, path), 'error', words)
    assert group.kind.startswith('label is not one of the') and hint in group.hint


def test_jpeg(tmp_path):
    noise = np.random.default_rng(0).integers(0, 3, (30, 40)).astype(np.uint8) * 100
    Image.fromarray(noise).save(tmp_path / 'a.jpg')
    assert (
        'JPEG compression changes labels'
        in only(check(data_set(2), tmp_path / 'a.jpg'), 'error', '').hint
    )


@pytest.mark.parametrize(
    ('dtype', 'suffix', 'labels', 'words'),
    [
        (np.uint16, 'png', [0, 257], 'has 257, which is read as 1'),
        (np.uint16, 'tif', [0, 1, 65535], 'has 65535, which is read as 255'),
        (np.int32, 'tif', [0, 70000], 'has 70000, which is read as 112'),
        (np.int32, 'tif', [0, -2], 'has -2, which is read as 254'),
        (np.float32, 'tif', [0, 0.5], 'has 0.5'),
        (np.float32, 'tif', [0, float('nan')], 'label is not an integer'),
        (np.float32, 'tif', [0, float('inf')], 'label is not an integer'),
        (np.float32, 'tif', [0, 300], 'has 300.0, which is read as 44'),
    ],
)
def test_labels_that_8_bits_do_not_hold(tmp_path, dtype, suffix, labels, words):
    path = label_map(tmp_path / f'a.{suffix}', *labels, dtype=dtype)
    only(check(data_set(2), path), 'error', words)


@pytest.mark.parametrize('dtype', [np.uint16, np.int32, np.float32])
def test_wide_types_with_small_labels(tmp_path, dtype):
    path = label_map(tmp_path / 'a.tif', 0, 1, 255, dtype=dtype)
    assert check(data_set(2), path) == []


def test_minus_one_is_ignored(tmp_path):
    assert check(data_set(2), label_map(tmp_path / 'a.tif', 0, 1, -1, dtype=np.int32)) == []


def test_palettes_and_bits(tmp_path):
    image = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8), mode='P')
    image.putpalette([0, 0, 0, 200, 100, 50])
    image.save(tmp_path / 'a.png')
    Image.fromarray(np.array([[False, True]])).save(tmp_path / 'b.png')
    assert check(data_set(2), tmp_path / 'a.png', tmp_path / 'b.png') == []
    cv2 = PILLOW._replace(backend='cv2')
    only(check(data_set(2), tmp_path / 'a.png', loader=cv2), 'error', 'has several channels')


@pytest.mark.parametrize('mode', ['RGB', 'RGBA', 'LA'])
def test_several_channels(tmp_path, mode):
    path = picture(tmp_path / 'a.png', mode=mode)
    group = only(check(data_set(), path), 'error', "label map has several channels: 'a.png'")
    assert 'Save one of them' in group.hint
    if mode != 'LA':
        Image.new(mode, (8, 6), (1, 2, 3)).save(path)
        assert 'Replace each color' in only(check(data_set(), path), 'error', '').hint


# ---- classes ----


def test_foreground_255(tmp_path):
    paths = [label_map(tmp_path / '0.png', 0), label_map(tmp_path / '1.png', 0, 255)]
    group = only(check(data_set(2), *paths, is_complete=False), 'error', "'c1' never occurs")
    assert group.hint == '255 means ignore. Label foreground pixels with 1'


@pytest.mark.parametrize(
    ('leaf', 'labels', 'hint'),
    [
        (data_set(3), [255], 'with their class index'),
        (data_set(2, reduce_zero_label=True), [0, 255], 'subtracts 1'),
        (data_set(2, ignore_index=0), [0], 'with their class index'),
    ],
)
def test_every_pixel_is_ignored(tmp_path, leaf, labels, hint):
    path = label_map(tmp_path / 'a.png', *labels)
    assert hint in only(check(leaf, path), 'error', 'every pixel is ignored: the labels are').hint


def test_one_class(tmp_path):
    path = label_map(tmp_path / 'a.png', 1)
    only(check(data_set(3), path), 'warning', "all pixels belong to class 'c1'")
    only(check(data_set(3), path, is_complete=False), 'warning', 'all pixels in the sample belong')


def test_absent_classes(tmp_path):
    path = label_map(tmp_path / 'a.png', 0, 2)
    group = only(check(data_set(4), path), 'warning', '2 of 4 classes never occur')
    assert group.hint == 'Missing classes: c1, c3. Labels: 0, 2'
    only(check(data_set(4), path, is_complete=False), 'note', 'never occur in the sample')


# ---- files ----


def test_unusable_files(tmp_path):
    truncated = picture(tmp_path / 'a.png', (40, 30))
    truncate(truncated)
    (tmp_path / 'b.png').write_bytes(b'hello')
    paths = [truncated, tmp_path / 'b.png', tmp_path / 'no.png']
    kinds = {(g.severity, g.kind) for g in check(data_set(), *paths)}
    problems = ('is truncated', 'cannot be decoded', 'cannot be read')
    assert kinds == {('error', f'label map {problem}') for problem in problems}


@pytest.mark.parametrize('backend', ['pillow', 'cv2', 'tifffile', 'nonsense'])
def test_damaged_files_never_raise(tmp_path, backend):
    loader = PILLOW._replace(backend=backend)
    for suffix in ('png', 'tif', 'bmp', 'gif'):
        content = label_map(tmp_path / f'a.{suffix}', 0, 1, size=(30, 20)).read_bytes()
        for length in range(0, len(content), max(1, len(content) // 20)):
            (tmp_path / 'b.png').write_bytes(content[:length])
            check(data_set(), tmp_path / 'b.png', loader=loader)


@pytest.mark.parametrize(
    ('leaf', 'count', 'wrong'),
    [
        (data_set(3), 3, ''),
        (data_set(3), 2, '2'),
        (data_set(3), 1, '1, 2'),
        (data_set(3, reduce_zero_label=True), 2, ''),
        (data_set(2), 2, ''),  # report_labels reports the other labels
        (dict(type='mmseg.BaseSegDataset'), 2, '2, 40'),
    ],
)
def test_labels_beyond_a_head(tmp_path, leaf, count, wrong):
    path = label_map(tmp_path / 'a.png', 0, 1, 2, 40, 255)
    maps = [read_label_map(str(path), PILLOW)]
    head = Head('model.decode_head', count)
    found = groups(report_head, Report, str(tmp_path), maps, labels_of(leaf), head)
    assert [group.items for group in found] == ([[f"'a.png' has class {wrong}"]] if wrong else [])
    ignoring = head._replace(ignore_index=int((wrong or '0').split(',')[-1]))
    remaining = groups(report_head, Report, str(tmp_path), maps, labels_of(leaf), ignoring)
    assert bool(remaining) is (',' in wrong)
    for group in found:
        assert group.severity == 'error'
        assert group.kind.endswith(f'but model.decode_head.num_classes is {count}')
