"""The resolved configs against the recipes of the paper, and one step of each."""

from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import InstanceData, PixelData

import mmvmamba.registry  # noqa: F401  (resolves mmseg:: and mmvmamba::)
from mmvmamba.models import VMamba

CONFIGS = Path(__file__).parents[2] / 'configs'
WEIGHTS = 'https://github.com/MzeroMiko/VMamba/releases/download/%23v2cls/'
# Name in the file name: arch, weight file, drop path, widths.
BACKBONES = {
    't': ('tiny', 'vssm1_tiny_0230s_ckpt_epoch_264.pth', 0.2, [96, 192, 384, 768]),
    't-s2l5': ('tiny_s2l5', 'vssm_tiny_0230_ckpt_epoch_262.pth', 0.2, [96, 192, 384, 768]),
    's': ('small', 'vssm_small_0229_ckpt_epoch_222.pth', 0.3, [96, 192, 384, 768]),
    'b': ('base', 'vssm_base_0229_ckpt_epoch_237.pth', 0.6, [128, 256, 512, 1024]),
}
MASK_RCNN = [
    *((name, '1x') for name in BACKBONES),
    ('t', 'ms-crop-3x'),
    ('t-s2l5', 'ms-crop-3x'),
    ('s', 'ms-crop-3x'),
]
UPERNET = [*((name, 512) for name in BACKBONES), ('s', 640)]


RECIPES = sorted(
    path
    for path in CONFIGS.glob('*/*.py')
    if path.parent.name not in ('_base_', 'demo', 'fsdp', 'rotated')
)


def mask_rcnn(name, schedule):
    return Config.fromfile(CONFIGS / f'mask_rcnn/mask-rcnn_vmamba-{name}_fpn_{schedule}_coco.py')


def upernet(name, crop):
    file = f'upernet/vmamba-{name}_upernet_8xb2-160k_ade20k-{crop}x{crop}.py'
    return Config.fromfile(CONFIGS / file)


def without(cfg, *keys):
    """Return a config as plain containers, without MMEngine's marks."""
    if isinstance(cfg, dict):
        return {k: without(v, *keys) for k, v in cfg.items() if k not in ('_scope_', *keys)}
    if isinstance(cfg, list | tuple):
        return [without(value, *keys) for value in cfg]
    return cfg


def transform(pipeline, name):
    return next(t for t in pipeline if t['type'] == name)


def assert_backbone(cfg, name):
    arch, file, drop_path, _ = BACKBONES[name]
    assert without(cfg.model.backbone) == dict(
        type='mmvmamba.VMamba',
        arch=arch,
        out_indices=[0, 1, 2, 3],
        drop_path_rate=drop_path,
        init_cfg=dict(type='Pretrained', checkpoint=WEIGHTS + file),
    )


def assert_optimizer(wrapper, lr, weight_decay):
    """AdamW in single precision, without clipping; the norms are not decayed."""
    wrapper = without(wrapper)
    assert wrapper['type'] == 'OptimWrapper'
    assert not wrapper.get('clip_grad')
    assert wrapper['optimizer'] == dict(
        type='AdamW', lr=lr, betas=[0.9, 0.999], weight_decay=weight_decay
    )
    keys = wrapper['paramwise_cfg']['custom_keys']
    assert keys.pop('norm') == dict(decay_mult=0.0)
    # Swin's own keys, which no parameter of VMamba contains.
    assert set(keys) == {'absolute_pos_embed', 'relative_position_bias_table'}


def test_every_config_is_tested():
    names = [f'mask-rcnn_vmamba-{n}_fpn_{s}_coco' for n, s in MASK_RCNN]
    names += [f'vmamba-{n}_upernet_8xb2-160k_ade20k-{c}x{c}' for n, c in UPERNET]
    found = [p.stem for f in ('mask_rcnn', 'upernet') for p in (CONFIGS / f).glob('*.py')]
    assert sorted(names) == sorted(found)


@pytest.mark.parametrize(('name', 'schedule'), MASK_RCNN)
def test_mask_rcnn_recipe(name, schedule):
    cfg = mask_rcnn(name, schedule)
    epochs, milestones = (12, [8, 11]) if schedule == '1x' else (36, [27, 33])
    assert_backbone(cfg, name)
    assert cfg.model.type == 'MaskRCNN'
    assert cfg.model.neck.in_channels == BACKBONES[name][3]
    assert_optimizer(cfg.optim_wrapper, 1e-4, 0.05)
    assert cfg.train_cfg.type == 'EpochBasedTrainLoop'
    assert cfg.train_cfg.max_epochs == epochs
    warmup, steps = without(cfg.param_scheduler)
    assert warmup == dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=1000)
    assert steps == dict(
        type='MultiStepLR', begin=0, end=epochs, by_epoch=True, milestones=milestones, gamma=0.1
    )
    assert cfg.train_dataloader.batch_size == 2
    assert cfg.auto_scale_lr == dict(enable=False, base_batch_size=16)
    assert tuple(transform(cfg.test_dataloader.dataset.pipeline, 'Resize').scale) == (1333, 800)
    assert 'custom_hooks' not in cfg  # no EMA
    assert cfg.default_scope == 'mmdet'


def test_mask_rcnn_pipelines():
    one = mask_rcnn('t', '1x').train_dataloader.dataset.pipeline
    assert tuple(transform(one, 'Resize').scale) == (1333, 800)
    three = mask_rcnn('s', 'ms-crop-3x').train_dataloader.dataset.pipeline
    plain, cropped = without(transform(three, 'RandomChoice')['transforms'])
    assert plain == [cropped[2]]
    assert cropped[0]['scales'] == [[400, 1333], [500, 1333], [600, 1333]]
    assert cropped[1]['crop_size'] == [384, 600]
    assert cropped[2]['scales'] == [[side, 1333] for side in range(480, 801, 32)]


@pytest.mark.parametrize(('name', 'crop'), UPERNET)
def test_upernet_recipe(name, crop):
    cfg = upernet(name, crop)
    widths = BACKBONES[name][3]
    assert_backbone(cfg, name)
    assert cfg.model.type == 'EncoderDecoder'
    assert cfg.model.decode_head.type == 'UPerHead'
    assert cfg.model.decode_head.channels == 512
    assert cfg.model.decode_head.in_channels == widths
    assert cfg.model.auxiliary_head.type == 'FCNHead'
    assert cfg.model.auxiliary_head.channels == 256
    assert cfg.model.auxiliary_head.in_index == 2
    assert cfg.model.auxiliary_head.in_channels == widths[2]
    assert {cfg.model.decode_head.num_classes, cfg.model.auxiliary_head.num_classes} == {150}
    assert tuple(cfg.model.data_preprocessor['size']) == (crop, crop)
    assert_optimizer(cfg.optim_wrapper, 6e-5, 0.01)
    assert (cfg.train_cfg.type, cfg.train_cfg.max_iters) == ('IterBasedTrainLoop', 160_000)
    warmup, poly = without(cfg.param_scheduler)
    assert warmup == dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500)
    assert poly == dict(
        type='PolyLR', eta_min=0.0, power=1.0, begin=1500, end=160_000, by_epoch=False
    )
    assert cfg.train_dataloader.batch_size == 2
    assert cfg.val_dataloader.batch_size == cfg.test_dataloader.batch_size == 1
    assert cfg.auto_scale_lr == dict(enable=False, base_batch_size=16)
    assert cfg.default_scope == 'mmseg'


@pytest.mark.parametrize(('name', 'crop'), UPERNET)
def test_upernet_pipelines_are_the_stock_ones(tmp_path, name, crop):
    stock_name = 'ade20k' if crop == 512 else 'ade20k_640x640'
    (tmp_path / 'stock.py').write_text(f"_base_ = 'mmseg::_base_/datasets/{stock_name}.py'\n")
    stock = Config.fromfile(tmp_path / 'stock.py')
    cfg = upernet(name, crop)
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        assert without(cfg[loader].dataset) == without(stock[loader].dataset)
    ratios = without(cfg.tta_pipeline)[1]['transforms'][0]
    assert [r['scale_factor'] for r in ratios] == [0.5, 0.75, 1.0, 1.25, 1.5, 1.75]


@pytest.mark.parametrize('path', RECIPES, ids=lambda path: path.stem)
def test_every_recipe_scales_its_rate_and_is_safe(path):
    cfg = Config.fromfile(path)
    assert cfg.auto_scale_lr.base_batch_size > 0
    assert not cfg.auto_scale_lr.get('enable', False)
    hooks = cfg.default_hooks
    assert hooks.checkpoint.type == 'mmvmamba.AtomicCheckpointHook'
    assert hooks.checkpoint.interval >= 1
    names = dict(
        resume='Resume',
        preemption='Preemption',
        validation='RepeatValidation',
        bad_data='BadData',
        non_finite='NonFiniteLoss',
    )
    assert {k: hooks[k].type for k in names} == {
        k: f'mmvmamba.{name}Hook' for k, name in names.items()
    }


# ---- one training step and one prediction ----


def small_model(cfg, name, thin):
    """The model with its real heads and nothing to download; a thin one has one block a stage."""
    init_default_scope(cfg.default_scope)
    cfg.model.backbone.init_cfg = None
    if thin:
        cfg.model.backbone.depths = (1, 1, 1, 1)
    norms = [cfg.model.get(head, {}).get('norm_cfg') for head in ('decode_head', 'auxiliary_head')]
    for norm in filter(None, norms):
        norm.type = 'BN'  # as the runner does outside a distributed run
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    assert isinstance(model.backbone, VMamba)
    return model


def step(model, cfg, data):
    """One step with the config's optimizer; returns the losses."""
    from mmengine.optim import build_optim_wrapper

    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    before = model.backbone.patch_embed[0].weight.detach().clone()
    losses = model.train().train_step(data, wrapper)
    assert all(torch.isfinite(loss).all() for loss in losses.values())
    assert not torch.equal(before, model.backbone.patch_embed[0].weight)
    return losses


def detection_data(size=96):
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks

    mask = np.zeros((1, size, size), dtype=np.uint8)
    mask[:, 16:64, 16:64] = 1
    sample = DetDataSample(
        metainfo=dict(
            img_shape=(size, size),
            ori_shape=(size, size),
            scale_factor=(1.0, 1.0),
            pad_shape=(size, size),
            batch_input_shape=(size, size),
            img_id=0,
        )
    )
    sample.gt_instances = InstanceData(
        bboxes=torch.tensor([[16.0, 16.0, 64.0, 64.0]]),
        labels=torch.tensor([3]),
        masks=BitmapMasks(mask, size, size),
    )
    sample.ignored_instances = InstanceData(
        bboxes=torch.zeros(0, 4),
        labels=torch.zeros(0, dtype=torch.long),
        masks=BitmapMasks(np.zeros((0, size, size), dtype=np.uint8), size, size),
    )
    image = torch.randint(0, 256, (3, size, size), dtype=torch.uint8)
    return dict(inputs=[image], data_samples=[sample])


def segmentation_data(size=64, images=2):
    from mmseg.structures import SegDataSample

    samples = []
    for _ in range(images):
        sample = SegDataSample(
            metainfo=dict(img_shape=(size, size), ori_shape=(size, size), pad_shape=(size, size))
        )
        sample.gt_sem_seg = PixelData(data=torch.randint(0, 150, (1, size, size)))
        samples.append(sample)
    inputs = [torch.randint(0, 256, (3, size, size), dtype=torch.uint8) for _ in range(images)]
    return dict(inputs=inputs, data_samples=samples)


def detect(name, schedule, thin):
    cfg = mask_rcnn(name, schedule)
    cfg.model.train_cfg.rpn_proposal.update(nms_pre=100, max_per_img=50)
    cfg.model.train_cfg.rcnn.sampler.num = 32
    cfg.model.test_cfg.rpn.update(nms_pre=100, max_per_img=20)
    # An untrained head is sure of nothing.
    cfg.model.test_cfg.rcnn.update(score_thr=0.0, max_per_img=5)
    model = small_model(cfg, name, thin)
    losses = step(model, cfg, detection_data())
    assert {'loss_rpn_cls', 'loss_rpn_bbox', 'loss_cls', 'loss_bbox', 'loss_mask'} <= set(losses)
    with torch.no_grad():
        (result,) = model.eval().test_step(detection_data())
    found = result.pred_instances
    assert len(found) == 5
    assert found.masks.shape == (5, 96, 96)
    assert (found.labels < 80).all()


def segment(name, crop, thin):
    cfg = upernet(name, crop)
    cfg.model.data_preprocessor['size'] = (64, 64)
    model = small_model(cfg, name, thin)
    losses = step(model, cfg, segmentation_data())
    assert {'decode.loss_ce', 'aux.loss_ce'} <= set(losses)
    model.data_preprocessor.test_cfg = dict(size=(64, 64))
    with torch.no_grad():
        (result,) = model.eval().test_step(segmentation_data(images=1))
    assert result.pred_sem_seg.data.shape == (1, 64, 64)
    assert result.seg_logits.data.shape == (150, 64, 64)


@pytest.mark.parametrize('name', BACKBONES)
def test_mask_rcnn_steps(name):
    detect(name, '1x', thin=True)


@pytest.mark.parametrize('name', BACKBONES)
def test_upernet_steps(name):
    segment(name, 512, thin=True)


@pytest.mark.parametrize('name', ['t', 't-s2l5', 's'])
def test_the_models_of_1x_and_3x_are_the_same(name):
    assert without(mask_rcnn(name, '1x').model) == without(mask_rcnn(name, 'ms-crop-3x').model)


def test_the_models_of_crop_512_and_640_are_the_same():
    small, large = (without(upernet('s', c).model, 'data_preprocessor') for c in (512, 640))
    assert small == large


@pytest.mark.slow
@pytest.mark.parametrize(('name', 'schedule'), MASK_RCNN)
def test_whole_mask_rcnn_steps(name, schedule):
    detect(name, schedule, thin=False)


@pytest.mark.slow
@pytest.mark.parametrize(('name', 'crop'), UPERNET)
def test_whole_upernet_steps(name, crop):
    segment(name, crop, thin=False)


def test_only_the_norms_are_not_decayed():
    """The key `norm` misses the LayerNorms of the stem and between the stages, as it always did."""
    from mmengine.optim import build_optim_wrapper

    cfg = mask_rcnn('t', '1x')
    model = small_model(cfg, 't', thin=True)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    decay = {id(p): g['weight_decay'] for g in wrapper.param_groups for p in g['params']}
    for name, parameter in model.backbone.named_parameters():
        assert decay[id(parameter)] == (0.0 if 'norm' in name else 0.05), name
