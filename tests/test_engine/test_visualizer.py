"""Pictures of three bands, by the stock visualizers of the three packages."""

import mmcv
import numpy as np
import pytest
import torch
from mmengine.registry import VISUALIZERS
from mmengine.structures import InstanceData, PixelData
from mmengine.visualization import Visualizer

import mmvmamba.registry  # noqa: F401  (resolves mmvmamba.*)
from mmvmamba.engine.errors import UserError
from mmvmamba.engine.visualizer import picture_of_bands

tifffile = pytest.importorskip('tifffile')
TYPE = 'mmvmamba.MultispectralVisualizer'
BASES = ['mmseg.SegLocalVisualizer', 'mmdet.DetLocalVisualizer', 'mmpretrain.UniversalVisualizer']


@pytest.fixture(autouse=True)
def reader():
    """Restore mmcv's default reader."""
    yield
    mmcv.use_backend('cv2')


def build(base, **kwargs):
    pytest.importorskip(f'{base.split(".")[0]}.visualization')
    return VISUALIZERS.build(dict(type=TYPE, base=base, **kwargs))


def image_of(dtype=np.uint16, channels=12, size=(20, 30)):
    """Each band is a ramp over the columns, with an offset and a slope of its own."""
    ramp = np.broadcast_to(np.arange(size[1])[None, :, None], (*size, channels))
    return (ramp * (1 + np.arange(channels)) + 10 * np.arange(channels)).astype(dtype)


@pytest.mark.parametrize('dtype', [np.uint16, np.int16, np.float32, np.float64])
def test_bands_are_stretched(dtype):
    image = image_of(dtype)
    got = picture_of_bands(image, (7, 0, 3))
    for i, band in enumerate((7, 0, 3)):
        values = image[..., band].astype(np.float64)
        low, high = np.quantile(values, 0.02), np.quantile(values, 0.98)
        want = np.interp(values, (low, high), (0, 255))
        np.testing.assert_allclose(got[..., i], want, atol=0.51)
    assert got.dtype == np.uint8 and (got.min(), got.max()) == (0, 255)


def test_bytes_stay_as_they_are():
    image = image_of(np.uint8, 4)
    np.testing.assert_array_equal(picture_of_bands(image, (2, 1, 0)), image[..., [2, 1, 0]])


@pytest.mark.parametrize(
    ('shape', 'want'), [((4, 5), (0, 0, 0)), ((4, 5, 2), (0, 1, 1)), ((4, 5, 12), (0, 1, 2))]
)
def test_default_bands(shape, want):
    image = np.random.default_rng(0).integers(0, 255, shape, np.uint8)
    bands = image.reshape(4, 5, -1)
    np.testing.assert_array_equal(picture_of_bands(image), bands[..., list(want)])


def test_missing_values_and_constant_bands_are_black():
    image = image_of(np.float32, 4)
    image[:3, :, 0], image[..., 1], image[..., 2] = np.nan, 7, np.inf
    picture = picture_of_bands(image)
    assert not picture[:3, :, 0].any() and not picture[..., 1:].any()
    np.testing.assert_array_equal(picture[3:, :, 0], picture_of_bands(image[3:])[..., 0])


def sample_of(base, path):
    """A sample with a prediction and its path."""
    package = base.split('.')[0]
    if package == 'mmseg':
        from mmseg.structures import SegDataSample

        labels = torch.zeros(1, 20, 30, dtype=torch.long)
        return SegDataSample(pred_sem_seg=PixelData(data=labels), metainfo=dict(img_path=path))
    if package == 'mmdet':
        from mmdet.structures import DetDataSample

        boxes = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0).long())
        boxes.scores = torch.zeros(0)
        return DetDataSample(pred_instances=boxes, metainfo=dict(img_path=path))
    from mmpretrain.structures import DataSample

    return DataSample(metainfo=dict(img_path=path))


@pytest.mark.parametrize('base', BASES)
def test_pictures_of_a_file(base, tmp_path):
    """Read the file again: inferencers pass an image with reversed channels."""
    image = image_of()
    path = str(tmp_path / 'a.tif')
    tifffile.imwrite(path, image, planarconfig='contig')
    options = dict(alpha=0.0) if 'Seg' in base else {}
    visualizer = build(base, name=f'file of {base}', bands=(7, 0, 3), **options)
    visualizer.dataset_meta = dict(classes=('a',), palette=[[0, 0, 0]])
    sample = sample_of(base, path)
    if 'Universal' in base:
        visualizer.visualize_cls(image[..., ::-1], sample, out_file=str(tmp_path / 'out.png'))
    else:
        options = dict(with_labels=False) if 'Seg' in base else dict(draw_gt=False)
        out_file = str(tmp_path / 'out.tif')
        visualizer.add_datasample('a', image[..., ::-1], sample, out_file=out_file, **options)
    got = mmcv.imread(str(tmp_path / 'out.png'), channel_order='rgb', backend='cv2')
    want = picture_of_bands(image, (7, 0, 3))
    difference = np.abs(got[5:].astype(int) - want[5:])
    # mmpretrain draws with matplotlib.
    assert difference.max() <= (2 if 'Universal' in base else 0)


@pytest.mark.parametrize('base', BASES)
def test_stock_code_finds_it(base):
    visualizer = build(base, name=f'found {base}')
    assert isinstance(visualizer, VISUALIZERS.get(base))
    assert Visualizer.get_current_instance() is visualizer


def test_an_image_without_a_path_is_drawn_itself():
    visualizer = build(BASES[0], name='array', bands=(3, 2, 1), alpha=0.0)
    image, sample = image_of(), sample_of(BASES[0], None)
    visualizer.dataset_meta = dict(classes=('a',), palette=[[0, 0, 0]])
    visualizer.add_datasample('a', image, sample, with_labels=False)
    np.testing.assert_array_equal(visualizer.get_image(), picture_of_bands(image, (3, 2, 1)))


@pytest.mark.parametrize(
    ('kwargs', 'words'),
    [
        (dict(bands=(0, 1)), r'bands must be three non-negative channel indices, but got \(0, 1\)'),
        (dict(bands=(0, 1, -1)), r'bands must be three non-negative channel indices'),
        (dict(base='NoVisualizer'), "base must be a registered visualizer, but got 'NoVisualizer'"),
    ],
)
def test_bad_arguments(kwargs, words):
    with pytest.raises(ValueError, match=words):
        VISUALIZERS.build({'type': TYPE, 'base': 'Visualizer', 'name': 'bad', **kwargs})


def test_bands_beyond_the_image():
    words = r'below the number of channels, 4, but got \[0, 1, 4\]'
    with pytest.raises(ValueError, match=words):
        picture_of_bands(image_of(channels=4), [0, 1, 4])
    visualizer = build(BASES[0], name='beyond', bands=(0, 1, 4))
    with pytest.raises(UserError, match=words):
        visualizer.add_datasample('a', image_of(channels=4), sample_of(BASES[0], None))


def test_tifffile_is_missing(monkeypatch):
    monkeypatch.setattr('mmcv.image.io.tifffile', None)
    with pytest.raises(UserError, match='tifffile. is not installed'):
        build(BASES[0], name='missing')
