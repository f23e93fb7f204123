"""The visualizers of the three packages, adapted to the size and the bands of an image."""

import mmcv
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import VISUALIZERS
from mmengine.structures import InstanceData, PixelData
from mmengine.visualization import Visualizer

import mmvmamba.registry  # noqa: F401  (resolves mmvmamba.*)
from mmvmamba.engine import drawing
from mmvmamba.engine.errors import UserError
from mmvmamba.engine.visualizer import picture_of_bands, use_adaptive_visualizer

tifffile = pytest.importorskip('tifffile')
TYPE = 'mmvmamba.MultispectralVisualizer'
BASES = ['mmseg.SegLocalVisualizer', 'mmdet.DetLocalVisualizer', 'mmpretrain.UniversalVisualizer']


@pytest.fixture(autouse=True)
def reader():
    """Restore mmcv's default reader."""
    yield
    mmcv.use_backend('cv2')


def build(base, type=TYPE, **kwargs):
    pytest.importorskip(f'{base.split(".")[0]}.visualization')
    return VISUALIZERS.build(dict(type=type, base=base, **kwargs))


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
    want = drawing.enlarge_image(picture_of_bands(image, (7, 0, 3)), 24)
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
    want = drawing.enlarge_image(picture_of_bands(image, (3, 2, 1)), 24)
    np.testing.assert_array_equal(visualizer.get_image(), want)


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
    words = r'less than the number of channels \(4\), but got \[0, 1, 4\]'
    with pytest.raises(ValueError, match=words):
        picture_of_bands(image_of(channels=4), [0, 1, 4])
    visualizer = build(BASES[0], name='beyond', bands=(0, 1, 4))
    with pytest.raises(UserError, match=words):
        visualizer.add_datasample('a', image_of(channels=4), sample_of(BASES[0], None))


def test_tifffile_is_missing(monkeypatch):
    monkeypatch.setattr('mmcv.image.io.tifffile', None)
    with pytest.raises(UserError, match='tifffile. is not installed'):
        build(BASES[0], name='missing')


ADAPTIVE = 'mmvmamba.AdaptiveVisualizer'
COLORS = [[200, 30, 30], [30, 30, 200]]
META = dict(classes=('cat', 'dog'), palette=COLORS)


@pytest.mark.parametrize('masks', ['tensor', 'bitmap', 'polygon', 'none', 'only'])
def test_detections_of_a_small_image(masks, tmp_path):
    """Boxes, masks, ground truth and predictions grow with the image and share their colors."""
    visualizer = build(BASES[1], ADAPTIVE, name=f'det {masks}')
    from mmdet.structures import DetDataSample
    from mmdet.structures.bbox import HorizontalBoxes
    from mmdet.structures.mask import BitmapMasks, PolygonMasks

    visualizer.dataset_meta = META
    mask = np.zeros((1, 60, 80), bool)
    mask[:, 20:40, 10:50] = True
    box = torch.tensor([[10.0, 20, 50, 40]])
    polygon = [np.array([10, 20, 50, 20, 50, 40, 10, 40], float)]
    sample = DetDataSample()
    sample.gt_instances = InstanceData(bboxes=HorizontalBoxes(box), labels=torch.tensor([1]))
    sample.pred_instances = InstanceData(
        bboxes=torch.cat([box, box]), labels=torch.tensor([1, 0]), scores=torch.tensor([0.9, 0.1])
    )
    if masks != 'none':
        sample.gt_instances.masks = {
            'bitmap': BitmapMasks(mask.astype(np.uint8), 60, 80),
            'polygon': PolygonMasks([polygon], 60, 80),
        }.get(masks, torch.from_numpy(mask))
        sample.pred_instances.masks = torch.from_numpy(np.repeat(mask, 2, 0))
    if masks == 'only':
        sample.pred_instances.bboxes = torch.zeros(2, 4)
    before = sample.gt_instances.bboxes.tensor.clone()
    image = np.full((60, 80, 3), 90, np.uint8)
    visualizer.add_datasample('a', image, sample, out_file=str(tmp_path / 'a.png'))
    picture = mmcv.imread(str(tmp_path / 'a.png'), channel_order='rgb')
    assert picture.shape == (480, 2 * 640, 3)
    truth, prediction = picture[:, :640], picture[:, 640:]
    for half in (truth, prediction):
        assert not (half == COLORS[0]).all(-1).any()  # below the threshold
        y, x = np.nonzero((half == COLORS[1]).all(-1))
        assert abs(x.min() - 80) <= 1 and abs(x.max() - 400) <= 2
        assert 130 < y.min() < 150 and abs(y.max() - 320) <= 2  # the label is above the box
        filled = (half[200:300, 100:380] == [63, 63, 140]).all()
        assert filled == (masks != 'none')
    assert torch.equal(sample.gt_instances.bboxes.tensor, before) and image.shape == (60, 80, 3)


def test_label_maps_of_a_small_image(tmp_path):
    visualizer = build(BASES[0], ADAPTIVE, name='seg')
    from mmseg.structures import SegDataSample

    visualizer.dataset_meta = META
    labels = torch.full((1, 60, 80), 255)
    labels[:, :, :40] = 0
    sample = SegDataSample(gt_sem_seg=PixelData(data=labels), pred_sem_seg=PixelData(data=labels))
    sample.seg_logits = PixelData(data=torch.zeros(2, 60, 80))
    image = np.full((60, 80, 3), 90, np.uint8)
    visualizer.add_datasample('a', image, sample, out_file=str(tmp_path / 'a.png'))
    picture = mmcv.imread(str(tmp_path / 'a.png'), channel_order='rgb')
    assert picture.shape == (480, 2 * 640, 3)
    np.testing.assert_array_equal(picture[:, :640], picture[:, 640:])
    assert (picture[:, 330:640] == 90).all() and (picture[:, :310] == COLORS[0]).all(-1).any()


def test_classes_are_above_the_image(tmp_path):
    visualizer = build(BASES[2], ADAPTIVE, name='cls')
    from mmpretrain.structures import DataSample

    sample = DataSample().set_gt_label(0).set_pred_label(1).set_pred_score(torch.tensor([0.2, 0.8]))
    image = np.full((64, 64, 3), 90, np.uint8)
    for options, lines in ((dict(), 2), (dict(draw_gt=False), 1)):
        file = str(tmp_path / f'{lines}.png')
        visualizer.visualize_cls(image, sample, classes=('cat', 'dog'), out_file=file, **options)
        picture = mmcv.imread(file)
        assert picture.shape[1] == 512 and (picture[-510:] == 90).all()
        assert 20 * lines < picture.shape[0] - 512 < 40 * lines


def test_classes_without_scores(tmp_path):
    visualizer = build(BASES[2], ADAPTIVE, name='cls without scores')
    from mmpretrain.structures import DataSample

    sample = DataSample().set_pred_label(1)
    file = str(tmp_path / 'a.png')
    visualizer.visualize_cls(np.full((64, 64, 3), 90, np.uint8), sample, out_file=file)
    assert mmcv.imread(file).shape[0] > 512


def test_classified_images_are_read_again(tmp_path):
    """mmpretrain's hook passes the network's input, not the image."""
    visualizer = build(BASES[2], ADAPTIVE, name='cls file')
    path = str(tmp_path / 'a.png')
    mmcv.imwrite(np.full((480, 480, 3), (0, 0, 255), np.uint8), path)  # red
    blue = np.full((224, 224, 3), (0, 0, 255), np.uint8)
    visualizer.visualize_cls(blue, sample_of(BASES[2], path), out_file=path)
    assert (mmcv.imread(path, channel_order='rgb') == (255, 0, 0)).all()


def test_font_size():
    for size in (14, 40):
        visualizer = build(BASES[1], ADAPTIVE, name=f'font {size}', font_size=size)
        sample = sample_of(BASES[1], None)
        sample.pred_instances = InstanceData(
            bboxes=torch.tensor([[100.0, 200, 200, 300]]),
            labels=torch.tensor([0]),
            scores=torch.tensor([0.9]),
        )
        visualizer.dataset_meta = META
        visualizer.add_datasample('a', np.full((480, 480, 3), 90, np.uint8), sample, draw_gt=False)
        y, _ = np.nonzero((visualizer.get_image() == COLORS[0]).all(-1))
        assert size < 200 - y.min() < 1.6 * size


@pytest.mark.parametrize(
    ('type', 'base'),
    [
        ('DetLocalVisualizer', 'mmdet.DetLocalVisualizer'),
        ('mmseg.SegLocalVisualizer', 'mmseg.SegLocalVisualizer'),
        (TYPE, None),
        (None, None),
    ],
)
def test_stock_visualizers_are_replaced(type, base):
    cfg = Config(dict(visualizer=dict(type=type, name='v')) if type else dict())
    before = cfg.to_dict()
    use_adaptive_visualizer(cfg)
    want = dict(visualizer=dict(type=ADAPTIVE, name='v', base=base)) if base else before
    assert cfg.to_dict() == want
