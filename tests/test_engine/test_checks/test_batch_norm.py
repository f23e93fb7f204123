"""BatchNorm and batches of one image, compared with what a training step of PyTorch does."""

import importlib

import mmpretrain.models  # noqa: F401
import mmseg.models  # noqa: F401
import pytest
import torch
import torch.distributed as dist
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.registry import MODELS, DefaultScope
from torch import nn
from torch.utils.data import DataLoader

from mmvmamba.engine.checks import batch_norm
from mmvmamba.engine.checks.batch_norm import check_batch_norm, named_batch_norm
from mmvmamba.engine.errors import UserError

BATCH_NORM = dict(type='SyncBN')
GROUP_NORM = dict(type='GN', num_groups=2)
BACKBONE = dict(type='mmvmamba.VMamba', arch=dict(dims=(4, 8, 8, 8), depths=(1, 1, 1, 1)))


def segmentor(pool_scales=(1, 2), norm=BATCH_NORM, size=(64, 64)):
    common = dict(num_classes=2, norm_cfg=norm, channels=8)
    return dict(
        type='mmseg.EncoderDecoder',
        data_preprocessor=dict(type='SegDataPreProcessor', size=size, mean=[0], std=[1]),
        backbone=BACKBONE,
        decode_head=dict(
            type='UPerHead',
            in_channels=[4, 8, 8, 8],
            in_index=[0, 1, 2, 3],
            pool_scales=pool_scales,
            **common,
        ),
        auxiliary_head=[dict(type='FCNHead', in_channels=8, in_index=2, **common)],
    )


def classifier(norm):
    head = dict(type='StackedLinearClsHead', num_classes=2, in_channels=8, mid_channels=[8])
    return dict(
        type='mmpretrain.ImageClassifier',
        backbone=dict(BACKBONE, out_indices=(3,)),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(head, norm_cfg=norm),
    )


def build(cfg):
    with DefaultScope.overwrite_default_scope(cfg['type'].split('.')[0]):
        return MODELS.build(cfg)


def loader(images=4, batch_size=1, endless=False, **settings):
    kind = InfiniteSampler if endless else DefaultSampler
    images = list(range(images))
    return DataLoader(images, batch_size, sampler=kind(images), **settings)


def heads_train_on_one_image(model, size):
    """Return True if a step of PyTorch's runs through the heads, as mmseg calls them."""
    channels, sides = (4, 8, 8, 8), [[side >> i + 2 for side in size] for i in range(4)]
    maps = [torch.zeros(1, c, *side) for c, side in zip(channels, sides, strict=True)]
    try:
        for head in (model.decode_head, *model.auxiliary_head):
            head.train()(maps)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize('size', [(64, 64), (32, 64), (32, 32)], ids=str)
@pytest.mark.parametrize('norm', [BATCH_NORM, GROUP_NORM], ids=['bn', 'gn'])
@pytest.mark.parametrize('pool_scales', [(1, 2), (2, 3)], ids=str)
def test_segmentors_as_they_train(pool_scales, norm, size):
    model = build(segmentor(pool_scales, norm, size))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = torch.get_rng_state()
    try:
        check_batch_norm(model, loader())
        found = True
    except UserError:
        found = False
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert found == heads_train_on_one_image(model, size)


def test_the_layer_the_batch_and_the_remedy_are_named():
    words = r'^model\.decode_head\.psp_modules\.0\.1\.bn is a BatchNorm over a 1 x 1 map and .*'
    words += r'but train_dataloader\.batch_size is 1; set train_dataloader\.batch_size to 2 or more'
    with pytest.raises(UserError, match=words):
        check_batch_norm(build(segmentor()), loader())


@pytest.mark.parametrize(
    ('settings', 'is_wrong'),
    [
        (dict(images=5, batch_size=2), True),
        (dict(images=5, batch_size=2, drop_last=True), False),
        (dict(images=5, batch_size=2, endless=True), False),
        (dict(images=5, batch_size=1, endless=True), True),
        (dict(images=6, batch_size=2), False),
    ],
)
def test_the_last_batch_of_an_epoch(settings, is_wrong):
    model = build(segmentor())
    if not is_wrong:
        return check_batch_norm(model, loader(**settings))
    words = (
        'the last of the 5 images forms its own batch' if settings['batch_size'] > 1 else ' is 1;'
    )
    with pytest.raises(UserError, match=words):
        check_batch_norm(model, loader(**settings))


def test_heads_of_classifiers():
    check_batch_norm(build(classifier(dict(type='LN'))), loader())
    with pytest.raises(UserError, match=r'^model\.head\.layers\.0\.norm is a BatchNorm'):
        check_batch_norm(build(classifier(dict(type='BN1d'))), loader())


@pytest.fixture
def group_of_one():
    dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_a_single_process_of_a_group(group_of_one):
    model = build(segmentor())
    with pytest.raises(UserError, match=' is a BatchNorm over a 1 x 1 map'):
        check_batch_norm(model, loader())
    assert any(isinstance(module, nn.SyncBatchNorm) for module in model.modules())


class Recorder:
    """An owner of hooks that cannot be copied."""

    def __init__(self):
        self.calls = []

    def __deepcopy__(self, memo):
        raise AssertionError('copied')

    def hook(self, *_):
        self.calls.append(1)


def test_hooks_of_the_user_do_not_run():
    model, recorder = build(segmentor()), Recorder()
    for module in model.modules():
        module.register_forward_hook(recorder.hook)
        module.register_forward_pre_hook(recorder.hook)
    with pytest.raises(UserError, match=r'^model\.decode_head\.psp_modules\.0\.1\.bn is'):
        check_batch_norm(model, loader())
    assert not recorder.calls


def test_models_without_batch_norm_are_not_copied(monkeypatch):
    model = build(segmentor(norm=GROUP_NORM))
    monkeypatch.setattr(batch_norm, '_output', None)
    check_batch_norm(model, loader())


def test_training_on_several_views():
    """SimCLR normalizes two views of each image."""
    neck = dict(type='NonLinearNeck', in_channels=8, hid_channels=8, out_channels=4)
    head = dict(type='ContrastiveHead', loss=dict(type='CrossEntropyLoss'))
    backbone = dict(BACKBONE, out_indices=(3,))
    model = build(dict(type='mmpretrain.SimCLR', backbone=backbone, neck=neck, head=head))
    check_batch_norm(model, loader())
    losses = model.loss([torch.zeros(1, 3, 64, 64)] * 2, [])
    assert losses['loss'].isfinite()


@pytest.mark.parametrize('name', sorted(batch_norm._LOSSES))
def test_the_names_of_the_losses(name):
    path, kind, loss = name.rsplit('.', 2)
    found = getattr(getattr(importlib.import_module(path), kind), loss)
    assert f'{found.__module__}.{found.__qualname__}' == name


def test_values_of_several_processes_count(monkeypatch):
    model = build(segmentor())
    monkeypatch.setattr(batch_norm, 'get_world_size', lambda: 2)
    check_batch_norm(model, loader())


@pytest.mark.parametrize('model', [nn.Linear(2, 2), nn.Sequential(nn.BatchNorm1d(2))])
def test_other_models_are_left_to_pytorch(model):
    check_batch_norm(model, loader())


def test_the_error_of_pytorch():
    with pytest.raises(UserError, match=r'single image: .*\[1, 2, 1, 1\]\); set train_dataloader'):
        with named_batch_norm():
            nn.BatchNorm2d(2)(torch.zeros(1, 2, 1, 1))
    with pytest.raises(ValueError, match='another'), named_batch_norm():
        raise ValueError('another')
