"""Images of any number of channels, compared with the stock classes and with NumPy."""

import copy

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.registry import MODELS

import mmvmamba.models  # noqa: F401  (registers the preprocessor)

TYPE = 'mmvmamba.MultispectralPreprocessor'
RNG = np.random.default_rng(0)
BASES = ['ImgDataPreprocessor', 'mmseg.SegDataPreProcessor', 'mmdet.DetDataPreprocessor']
ALL_BASES = pytest.mark.parametrize('base', [*BASES, 'mmpretrain.ClsDataPreprocessor'])


def preprocessor(base, channels=12, **kwargs):
    if package := base.rpartition('.')[0]:
        pytest.importorskip(f'{package}.models')
    values = np.random.default_rng(channels).uniform(100, 9000, (2, channels))
    mean, std = values.tolist()
    return MODELS.build(dict(dict(type=TYPE, base=base, mean=mean, std=std), **kwargs))


def images(channels, dtype, sizes=((6, 8), (6, 8))):
    arrays = [RNG.uniform(0, 200, (channels, *size)).astype(dtype) for size in sizes]
    return [torch.from_numpy(array) for array in arrays]


@ALL_BASES
@pytest.mark.parametrize('dtype', [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize('channels', [1, 4, 12])
def test_normalization(base, dtype, channels):
    net, inputs = preprocessor(base, channels), images(channels, dtype)
    out = net(dict(inputs=list(inputs)))['inputs']
    mean, std = (np.asarray(v, np.float64) for v in (net.mean, net.std))
    want = np.stack([(image.numpy().astype(np.float64) - mean) / std for image in inputs])
    assert out.dtype == torch.float32
    np.testing.assert_allclose(out.numpy(), want, rtol=1e-5, atol=1e-5)


@ALL_BASES
@pytest.mark.parametrize('collated', [False, True])
def test_three_channels_are_those_of_the_stock_class(base, collated):
    reversal = 'to_rgb' if 'Cls' in base else 'bgr_to_rgb'
    settings = {'mean': [123.675, 116.28, 103.53], 'std': [58.395, 57.12, 57.375], reversal: True}
    ours = preprocessor(base, **settings)
    stock = MODELS.build(dict(type=base, **settings))
    assert type(ours) is type(stock) and ours.state_dict().keys() == stock.state_dict().keys()
    assert {'mean', 'std'} == dict(ours.named_buffers()).keys()  # which move to the device
    inputs = images(3, np.uint8)
    # mmseg takes lists alone.
    inputs = torch.stack(inputs) if collated and 'Seg' not in base else inputs
    got, want = (net(dict(inputs=copy.copy(inputs)))['inputs'] for net in (ours, stock))
    assert torch.equal(got, want)


def test_padding_of_training_images():
    pytest.importorskip('mmseg.models')
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    net = preprocessor('mmseg.SegDataPreProcessor', size=(8, 10), pad_val=0, seg_pad_val=255)
    inputs = images(12, np.uint16, ((6, 8), (8, 5)))
    labels = [PixelData(data=torch.zeros(1, *image.shape[1:])) for image in inputs]
    samples = [SegDataSample(gt_sem_seg=label) for label in labels]
    batch = net(dict(inputs=inputs, data_samples=samples), training=True)
    assert batch['inputs'].shape == (2, 12, 8, 10)
    assert not batch['inputs'][0, :, 6:].any() and not batch['inputs'][1, :, :, 5:].any()
    assert (batch['data_samples'][0].gt_sem_seg.data[:, 6:] == 255).all()


def test_a_model_of_mmseg_owns_it():
    pytest.importorskip('mmseg.models')
    cfg = dict(type=TYPE, base='mmseg.SegDataPreProcessor', mean=[0.5] * 4, std=[2.0] * 4)
    backbone = dict(
        type='mmvmamba.VMamba', dims=(8, 8), depths=(1, 1), in_channels=4, out_indices=(0, 1)
    )
    head = dict(type='mmseg.FCNHead', in_channels=8, channels=8, num_classes=2, num_convs=1)
    head.update(norm_cfg=dict(type='BN'), in_index=1, loss_decode=dict(type='CrossEntropyLoss'))
    head['loss_decode']['type'] = 'mmseg.CrossEntropyLoss'
    model = dict(type='mmseg.EncoderDecoder', data_preprocessor=cfg, backbone=backbone)
    model = MODELS.build(dict(model, decode_head=head, test_cfg=ConfigDict(mode='whole')))
    model = copy.deepcopy(model.eval())
    (sample,) = model.test_step(dict(inputs=images(4, np.uint16, [(32, 32)])))
    assert sample.pred_sem_seg.data.shape == (1, 32, 32)
    with pytest.raises(ValueError, match='images must have 4 channels, .* but got 1 '):
        model.test_step(dict(inputs=images(1, np.uint16, [(32, 32)])))


@pytest.mark.parametrize(
    ('kwargs', 'error', 'words'),
    [
        (dict(mean=[1.0] * 4), ValueError, 'a value for each channel, but mean has 4 and std 12'),
        (dict(mean=[], std=[]), ValueError, 'a value for each channel, but mean has 0 and std 0'),
        (dict(std=[0.0] * 12), ValueError, 'std must be positive'),
        (dict(bgr_to_rgb=True), ValueError, 'bgr_to_rgb must be False for images with 12 channels'),
        (dict(rgb_to_bgr=True), ValueError, 'rgb_to_bgr must be False for images with 12'),
    ],
)
def test_bad_arguments(kwargs, error, words):
    with pytest.raises(error, match=words):
        preprocessor('ImgDataPreprocessor', **kwargs)


def test_the_base_must_be_a_preprocessor():
    backbone = dict(type=TYPE, base='Conv2d', mean=[1.0], std=[1.0], in_channels=1)
    with pytest.raises(TypeError, match='mean'):
        MODELS.build(backbone)
