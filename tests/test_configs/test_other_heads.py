"""One training step and one prediction of each config with another head."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, PARAM_SCHEDULERS, init_default_scope
from mmengine.structures import InstanceData, PixelData

import mmvmamba.registry  # noqa: F401  (resolves mmseg:: and mmvmamba::)
from mmvmamba.models import VMamba

from .test_recipes import without

CONFIGS = Path(__file__).parents[2] / 'configs'
COCO = {
    'cascade_rcnn/cascade-mask-rcnn_vmamba-t_fpn_1x_coco.py': {
        'train_cfg.rpn_proposal.nms_pre': 100,
        'train_cfg.rpn_proposal.max_per_img': 50,
        'test_cfg.rpn.nms_pre': 100,
        'test_cfg.rpn.max_per_img': 20,
        'test_cfg.rcnn.score_thr': 0.0,
        'test_cfg.rcnn.max_per_img': 5,
    },
    'retinanet/retinanet_vmamba-t_fpn_1x_coco.py': {
        'bbox_head.stacked_convs': 1,
        'test_cfg.score_thr': 0.0,
        'test_cfg.max_per_img': 5,
    },
    'dino/dino-4scale_vmamba-t_8xb2-12e_coco.py': {
        'num_queries': 20,
        'encoder.num_layers': 1,
        'decoder.num_layers': 2,
        'dn_cfg.group_cfg.num_dn_queries': 4,
        'test_cfg.max_per_img': 5,
    },
    'mask2former/mask2former_vmamba-t_8xb2-lsj-50e_coco.py': {
        'panoptic_head.num_queries': 10,
        'panoptic_head.pixel_decoder.encoder.num_layers': 1,
        'panoptic_head.transformer_decoder.num_layers': 3,
        'train_cfg.num_points': 64,
        'test_cfg.max_per_image': 5,
    },
}
ADE20K = {
    'mask2former/mask2former_vmamba-t_8xb2-160k_ade20k-512x512.py': {
        'decode_head.num_queries': 10,
        'decode_head.pixel_decoder.encoder.num_layers': 1,
        'decode_head.transformer_decoder.num_layers': 3,
        'decode_head.train_cfg.num_points': 64,
    },
    'segformer/segformer_vmamba-t_8xb2-160k_ade20k-512x512.py': {},
}
SIZE = 64


def build(name, options):
    """The config's model with one block a stage, and smaller where ``options`` say so."""
    cfg = Config.fromfile(CONFIGS / name)
    init_default_scope(cfg.default_scope)
    assert cfg.model.backbone.init_cfg.checkpoint.endswith('vssm1_tiny_0230s_ckpt_epoch_264.pth')
    cfg.merge_from_dict({f'model.{key}': value for key, value in options.items()})
    cfg.model.backbone.update(init_cfg=None, depths=(1, 1, 1, 1))
    # The augmentations of whole batches are for large images; the runner has no SyncBN on a CPU.
    if cfg.default_scope == 'mmdet':
        cfg.model.data_preprocessor.batch_augments = None
    else:
        cfg.model.data_preprocessor.size = (SIZE, SIZE)
    if 'norm_cfg' in cfg.model.get('decode_head', {}):
        cfg.model.decode_head.norm_cfg.type = 'BN'
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    assert type(model.backbone) is VMamba
    return cfg, model


def step(cfg, model, data):
    """Every parameter gets a gradient, as a distributed run needs it."""
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    assert wrapper.optimizer.__class__.__name__ == 'AdamW'
    before = model.backbone.patch_embed[0].weight.detach().clone()
    model.train()
    losses = model._run_forward(model.data_preprocessor(data, True), mode='loss')
    loss, _ = model.parse_losses(losses)
    assert torch.isfinite(loss)
    loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    wrapper.step()
    assert not torch.equal(before, model.backbone.patch_embed[0].weight)


def detection_data(with_masks):
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks

    names = ('img_shape', 'ori_shape', 'pad_shape', 'batch_input_shape')
    sample = DetDataSample(
        metainfo=dict.fromkeys(names, (SIZE, SIZE)) | dict(scale_factor=(1.0, 1.0), img_id=0)
    )
    sample.gt_instances = InstanceData(
        bboxes=torch.tensor([[8.0, 8.0, 48.0, 48.0]]), labels=torch.tensor([3])
    )
    sample.ignored_instances = InstanceData(
        bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long)
    )
    if with_masks:
        mask = np.zeros((1, SIZE, SIZE), dtype=np.uint8)
        mask[:, 8:48, 8:48] = 1
        sample.gt_instances.masks = BitmapMasks(mask, SIZE, SIZE)
    image = torch.randint(0, 256, (3, SIZE, SIZE), dtype=torch.uint8)
    return dict(inputs=[image], data_samples=[sample])


def segmentation_data():
    from mmseg.structures import SegDataSample

    samples = []
    for _ in range(2):
        shapes = dict.fromkeys(('img_shape', 'ori_shape', 'pad_shape'), (SIZE, SIZE))
        sample = SegDataSample(metainfo=shapes)
        sample.gt_sem_seg = PixelData(data=torch.randint(0, 150, (1, SIZE, SIZE)))
        samples.append(sample)
    inputs = [torch.randint(0, 256, (3, SIZE, SIZE), dtype=torch.uint8) for _ in samples]
    return dict(inputs=inputs, data_samples=samples)


@pytest.mark.parametrize('name', COCO)
def test_detectors_step(name):
    pytest.importorskip('mmdet')
    cfg, model = build(name, COCO[name])
    with_masks = 'mask' in name
    step(cfg, model, detection_data(with_masks))
    with torch.no_grad():
        (result,) = model.eval().test_step(detection_data(with_masks))
    found = result.pred_instances
    assert 0 < len(found) <= 5
    assert (found.labels < 80).all()
    assert not with_masks or found.masks.shape[1:] == (SIZE, SIZE)


def test_the_example_of_the_readme(tmp_path, monkeypatch):
    pytest.importorskip('mmdet')
    text = (CONFIGS.parent / 'README.md').read_text().split('## Use it in your own config')[1]
    (tmp_path / 'own.py').write_text(text.split('```python\n')[1].split('```')[0])
    name = 'retinanet/retinanet_vmamba-t_fpn_1x_coco.py'
    cfg, model = build(tmp_path / 'own.py', COCO[name])
    step(cfg, model, detection_data(False))
    ours = Config.fromfile(CONFIGS / name)
    for key in ('optim_wrapper', 'param_scheduler'):
        assert without(cfg[key]) == without(ours[key])
    levels = []
    logger = MMLogger.get_current_instance()
    monkeypatch.setattr(logger, 'log', lambda level, *args: levels.append(level))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for schedule in cfg.param_scheduler:
        PARAM_SCHEDULERS.build(schedule, default_args=dict(optimizer=optimizer))
    assert max(levels) < logging.WARNING  # of a scope that MMEngine does not find


@pytest.mark.parametrize('name', ADE20K)
def test_segmentors_step(name):
    pytest.importorskip('mmseg')
    pytest.importorskip('mmdet')
    cfg, model = build(name, ADE20K[name])
    step(cfg, model, segmentation_data())
    model.data_preprocessor.test_cfg = dict(size=(SIZE, SIZE))
    with torch.no_grad():
        results = model.eval().test_step(segmentation_data())
    assert [r.pred_sem_seg.data.shape for r in results] == [(1, SIZE, SIZE)] * 2


def test_every_config_is_tested():
    folders = {name.split('/')[0] for name in COCO | ADE20K}
    found = {f'{f}/{path.name}' for f in folders for path in (CONFIGS / f).glob('*.py')}
    assert found == set(COCO | ADE20K)
