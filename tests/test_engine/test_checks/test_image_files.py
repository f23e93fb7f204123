"""Image files that decode or do not, and what loading makes of them."""

import mmcv
import numpy as np
import pytest
from PIL import Image

from mmvmamba.engine.checks.image_files import (
    ImageFile,
    item_name,
    read_all,
    read_image,
    report_images,
    report_sizes,
    spread,
)
from mmvmamba.engine.checks.report import Report
from mmvmamba.engine.checks.settings import Loader

from .images import groups, only, picture, truncate

COLOR = Loader('LoadImageFromFile', 'color', 'cv2')
UNCHANGED = COLOR._replace(flag='unchanged')
OTHER = Loader('LoadOtherImage', 'color', 'cv2', is_stock=False)


def read(paths, loader=COLOR):
    folder = str(paths[0].parent)
    images = [read_image(str(path), loader) for path in paths]
    return groups(report_images, Report, folder, images, loader)


@pytest.mark.parametrize(
    ('name', 'mode'), [('a.jpg', 'RGB'), ('a.png', 'RGB'), ('b.png', 'P'), ('a.tif', 'CMYK')]
)
def test_images_without_problems(tmp_path, name, mode):
    path = picture(tmp_path / name, mode=mode)
    assert read([path]) == [] == read([path], UNCHANGED) == read([path], OTHER)
    image = read_image(str(path), COLOR)
    assert (image.width, image.height, image.bits, image.orientation) == (8, 6, 8, 1)


@pytest.mark.parametrize(
    ('content', 'problem'),
    [
        (b'', 'image is an empty file'),
        (b'GIF', 'image cannot be decoded'),
        (b'<html>', 'image cannot be decoded'),
        (b'\x89PNG\r\n\x1a\n', 'image is truncated'),
        (b'\xff\xd8', 'image is truncated'),
        (bytes(range(256)) * 20, 'image cannot be decoded'),
    ],
)
def test_other_content(tmp_path, content, problem):
    path = tmp_path / 'a.png'
    path.write_bytes(content)
    assert problem in only(read([path]), 'error', "'a.png'").kind


def test_images_of_another_loader_are_not_judged(tmp_path):
    path = tmp_path / 'a.npy'
    path.write_bytes(b'\x93NUMPY')
    only(read([path], OTHER), 'note', 'not checked because `LoadOtherImage` loads it')
    path.write_bytes(b'')
    only(read([path], OTHER), 'error', 'is an empty file')


@pytest.mark.parametrize('suffix', ['jpg', 'png', 'bmp', 'tif', 'webp', 'gif', 'ppm'])
def test_damaged_files_never_raise(tmp_path, suffix):
    content = picture(tmp_path / f'a.{suffix}', (40, 30)).read_bytes()
    rng = np.random.default_rng(0)
    path = tmp_path / f'b.{suffix}'
    for length in range(0, len(content), max(1, len(content) // 30)):
        damaged = bytearray(content)
        damaged[rng.integers(len(content))] ^= 255
        for data in (content[:length], bytes(damaged)):
            path.write_bytes(data)
            read([path])
            read([path], UNCHANGED)


def test_exceptions_of_readers(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise RecursionError('deep')

    path = picture(tmp_path / 'a.png')
    path.write_bytes(path.read_bytes()[:40])
    monkeypatch.setattr(Image, 'open', fail)
    assert only(read([path]), 'error', 'cannot be decoded').items == ["'a.png' (deep)"]


@pytest.mark.parametrize('suffix', ['jpg', 'png'])
def test_truncated(tmp_path, suffix):
    path = picture(tmp_path / f'a.{suffix}', (40, 30))
    truncate(path)
    group = only(read([path]), 'error', 'is truncated')
    assert group.items == [f"'a.{suffix}'"] and 'Copy the file' in group.hint


def test_formats_that_only_pillow_reads(tmp_path):
    picture(tmp_path / 'a.ico', (32, 32)).rename(tmp_path / 'a.png')
    found = read([tmp_path / 'a.png'])
    assert only(found, 'error', 'decoded').items == ["'a.png' (cv2 does not read ICO files)"]
    assert read([tmp_path / 'a.png'], OTHER) == []


def test_permission(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, 'Permission denied')

    path = picture(tmp_path / 'a.png')
    monkeypatch.setattr('builtins.open', refuse)
    found = read([path])
    monkeypatch.undo()
    assert only(found, 'error', 'cannot be read').items == ["'a.png' (Permission denied)"]


@pytest.mark.parametrize('name', ['no.png', 'a\0.png', '', '\ud800.png'])
def test_missing_files(tmp_path, name):
    assert read_image(str(tmp_path / name), COLOR).problem == 'cannot be read'


@pytest.mark.parametrize(
    ('mode', 'severity', 'words'),
    [
        ('L', 'note', 'gray'),
        ('1', 'note', 'gray'),
        ('RGBA', 'note', 'alpha channel'),
        ('LA', 'note', 'alpha channel'),
        ('I;16', 'warning', '16 bits per channel'),
    ],
)
def test_formats(tmp_path, mode, severity, words):
    path = picture(tmp_path / 'a.png', mode=mode)
    assert words in read([path])[0].kind and read([path])[0].severity == severity
    assert read([path], UNCHANGED) == [] == read([path], OTHER)
    gray = COLOR._replace(flag='grayscale')
    assert not any(g.severity == 'note' for g in read([path], gray))


def test_16_bit_colors(tmp_path):
    import cv2

    path = tmp_path / 'a.png'
    cv2.imwrite(str(path), np.zeros((6, 8, 3), np.uint16))
    only(read([path]), 'warning', 'image has 16 bits per channel, but only 8 are loaded')


def test_different_channels_in_a_batch(tmp_path):
    paths = [picture(tmp_path / f'{mode}.png', mode=mode) for mode in ('RGB', 'RGBA', 'L')]
    group = only(read(paths, UNCHANGED), 'error', 'images have [1, 3, 4] channels')
    assert "`color_type='color'`" in group.hint


def test_many_bands(tmp_path):
    tifffile = pytest.importorskip('tifffile')
    path = tmp_path / 'a.tif'
    tifffile.imwrite(path, np.zeros((6, 8, 12), np.uint16), planarconfig='contig')
    image = read_image(str(path), Loader('LoadImageFromFile', 'unchanged', 'tifffile'))
    assert (image.width, image.height, image.channels, image.bits) == (8, 6, 12, 16)


BANDS = Loader('LoadImageFromFile', 'color', 'tifffile', channels=12)


def tiff(path, shape=(6, 8, 12), dtype=np.uint16, **options):
    tifffile = pytest.importorskip('tifffile')
    values = np.random.default_rng(0).integers(0, 250, shape).astype(dtype)
    tifffile.imwrite(path, values, **{'planarconfig': 'contig', **options})
    return path


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16, np.int16, np.float32])
@pytest.mark.parametrize(
    'options', [dict(), dict(compression='zlib'), dict(tile=(16, 16)), dict(planarconfig=None)]
)
def test_bands_without_problems(tmp_path, dtype, options):
    assert read([tiff(tmp_path / 'a.tif', dtype=dtype, **options)], BANDS) == []


@pytest.mark.parametrize('options', [dict(), dict(compression='zlib'), dict(tile=(16, 16))])
def test_half_a_file_of_bands(tmp_path, options):
    path = tiff(tmp_path / 'a.tif', (40, 40, 12), **options)
    truncate(path)
    only(read([path], BANDS), 'error', 'image cannot be decoded')


def test_bands_that_another_reader_does_not_know(tmp_path):
    path = tiff(tmp_path / 'a.tif')
    for backend in ('cv2', 'pillow'):
        found = read([path], COLOR._replace(backend=backend))
        group = only(found, 'error', "image can only be decoded by tifffile: 'a.tif'")
        assert "Set `imdecode_backend='tifffile'`" in group.hint and not group.single
    only(read([path], OTHER), 'note', 'image is not checked')


@pytest.mark.parametrize(
    ('shape', 'loader', 'channels', 'hint'),
    [
        ((6, 8, 4), BANDS, 4, 'Set `in_channels` of the backbone'),
        ((12, 6, 8), BANDS, 8, 'stores channels first. Store them last'),
        ((6, 8), BANDS, 1, 'Set `in_channels`'),
        ((6, 8, 3), COLOR._replace(channels=12), 3, "Set `imdecode_backend='tifffile'`"),
        ((6, 8, 3), UNCHANGED._replace(channels=12), 3, 'Set `in_channels`'),
        ((6, 8, 3), COLOR._replace(channels=1), 3, "`color_type='color'` changes the channels"),
    ],
)
def test_channels_that_the_model_does_not_take(tmp_path, shape, loader, channels, hint):
    options = dict(planarconfig='separate') if shape[0] == 12 else {}
    options |= dict(planarconfig=None) if len(shape) == 2 else {}
    path = tiff(tmp_path / 'a.tif', shape, np.uint8, photometric=None, **options)
    words = f'image is loaded with {channels} channels, but the model takes {loader.channels}: '
    assert hint in only(read([path], loader), 'error', f"{words}'a.tif'").hint


def test_channels_that_the_model_takes(tmp_path):
    path = tiff(tmp_path / 'a.tif', (6, 8, 3), np.uint8)
    assert read([path], COLOR._replace(channels=3)) == []
    assert read([path], BANDS._replace(channels=3)) == []
    path = tiff(tmp_path / 'b.tif', (6, 8), np.uint8, planarconfig=None)
    # A stock data preprocessor broadcasts a single channel.
    assert read([path], UNCHANGED._replace(channels=3)) == []


def test_bands_of_different_numbers(tmp_path):
    paths = [tiff(tmp_path / f'{n}.tif', (6, 8, n)) for n in (4, 12)]
    kinds = [group.kind for group in read(paths, BANDS)]
    assert kinds[0] == "images have [4, 12] channels, and `imdecode_backend='tifffile'` keeps them"
    assert kinds[1:] == ['image is loaded with 4 channels, but the model takes 12']


def test_bands_without_tifffile(tmp_path, monkeypatch):
    path = tiff(tmp_path / 'a.tif')
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    group = only(read([path], BANDS), 'error', 'because tifffile is not installed')
    assert 'pip install tifffile' in group.hint and not group.single
    only(read([path], COLOR), 'error', 'and tifffile is not installed')


@pytest.mark.parametrize(
    ('mode', 'name', 'backend'),
    [
        ('CMYK', 'a.jpg', 'cv2'),
        ('CMYK', 'a.jpg', 'pillow'),
        ('LA', 'a.png', 'cv2'),
        ('LA', 'a.png', 'pillow'),
        ('P', 'a.png', 'cv2'),
        ('P', 'a.png', 'pillow'),
    ],
)
def test_channels_are_those_that_the_reader_returns(mode, name, backend, tmp_path):
    """OpenCV and Pillow differ in CMYK, gray with alpha, and palettes."""
    Image.new(mode, (8, 6)).save(tmp_path / name)
    loader = Loader('LoadImageFromFile', 'unchanged', backend)
    array = mmcv.imread(str(tmp_path / name), flag='unchanged', backend=backend)
    expected = 1 if array.ndim == 2 else array.shape[2]
    assert read_image(str(tmp_path / name), loader).channels == expected


# ---- sizes ----


def compare(path, size, loader=COLOR):
    image = read_image(str(path), loader)
    folder = str(path.parent)
    return groups(report_sizes, Report, folder, 'annotation', [(image, size)], loader)


def test_size(tmp_path):
    path = picture(tmp_path / 'a.jpg')
    assert compare(path, (8, 6)) == []
    group = only(compare(path, (6, 8)), 'error', 'image and annotation differ in size')
    assert group.items == ["'a.jpg' (8 x 6 and 6 x 8)"]


@pytest.mark.parametrize('orientation', range(2, 9))
@pytest.mark.parametrize('flag', ['color', 'color_ignore_orientation', 'unchanged'])
def test_orientation(tmp_path, orientation, flag):
    import mmcv

    loader = COLOR._replace(flag=flag)
    path = picture(tmp_path / 'a.jpg', orientation=orientation)
    height, width = mmcv.imread(str(path), flag=flag, backend='cv2').shape[:2]
    loaded = (width, height)
    found = compare(path, loaded, loader)
    if orientation < 5 and flag == 'color':
        group = only(found, 'warning', 'may not be')
        assert 'color_ignore_orientation' in group.hint
    else:
        assert found == []
    if orientation >= 5:
        group = only(
            compare(path, loaded[::-1], loader), 'error', 'EXIF orientation of the image does'
        )
        assert group.items == [f"'a.jpg' (EXIF orientation {orientation})"]
        expected = 'color_ignore_orientation' if flag == 'color' else 'ignores the tag'
        assert expected in group.hint


def test_another_loader_may_turn_or_not(tmp_path):
    path = picture(tmp_path / 'a.jpg', orientation=6)
    assert compare(path, (8, 6), OTHER) == [] == compare(path, (6, 8), OTHER)


@pytest.mark.parametrize('value', [0, 9, 77, 65535])
def test_an_orientation_that_exif_does_not_have(tmp_path, value):
    path = tmp_path / 'a.jpg'
    image = Image.new('RGB', (8, 6))
    exif = image.getexif()
    exif[274] = value
    image.save(path, exif=exif)
    assert compare(path, (8, 6)) == []


# ---- sample ----


def test_spread():
    assert spread(range(10), 3) == [0, 3, 6]
    assert spread(range(3), 10) == spread(range(3), None) == [0, 1, 2]
    assert spread(range(3), 0) == spread([], 3) == []


def test_read_all_keeps_the_order():
    assert list(read_all(lambda x: -x, range(50))) == [-x for x in range(50)]


def test_item_name():
    assert item_name('/a/b/c.png', '/a') == "'b/c.png'"
    assert item_name('/x/c.png', '/a') == "'/x/c.png'"
    assert ImageFile('a', 8, 6, orientation=6).size(COLOR) == (6, 8)
