"""Options of tools/test.py."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import init_default_scope
from PIL import Image

import mmvmamba.registry  # noqa: F401  (resolves mmseg:: and mmvmamba::)
from mmvmamba.engine.errors import UserError

TOOL = runpy.run_path(str(Path(__file__).parents[2] / 'tools' / 'test.py'))
draw_predictions, save_predictions, use_tta = (
    TOOL[name] for name in ('draw_predictions', 'save_predictions', 'use_tta')
)
BOXES = "_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'"


def test_an_image_and_its_mirror_image_are_predicted(tmp_path):
    pytest.importorskip('mmdet.datasets')
    cfg = Config.fromstring(BOXES, '.py')
    init_default_scope(cfg.default_scope)
    use_tta(cfg)
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / '0.png')
    batch = Compose(cfg.test_dataloader.dataset.pipeline)(
        dict(img_path=str(tmp_path / '0.png'), img_id=0)
    )
    assert len(batch['inputs']) == 2
    assert torch.equal(batch['inputs'][0].flip(-1), batch['inputs'][1])
    assert not torch.equal(*batch['inputs'])
    assert sorted(sample.flip for sample in batch['data_samples']) == [False, True]


@pytest.mark.parametrize(
    ('scope', 'switch'), [('mmdet', 'draw'), ('mmseg', 'draw'), ('mmpretrain', 'enable')]
)
def test_drawing_takes_its_options(scope, switch, tmp_path):
    hook = dict(type='VisualizationHook', interval=50)
    cfg = Config(
        dict(
            default_scope=scope,
            model=dict(),
            visualizer=dict(),
            default_hooks=dict(visualization=hook),
        )
    )
    draw_predictions(cfg, True, str(tmp_path), 0.5)
    hook = cfg.default_hooks.visualization
    assert (hook.show, hook.wait_time, hook.interval, hook[switch]) == (True, 0.5, 1, True)


def test_drawing_needs_a_hook():
    with pytest.raises(UserError, match=r'--show-dir need default_hooks\.visualization'):
        draw_predictions(Config(dict(model=dict())), True, None, 2.0)


def tta(scope, *metrics, model=None, **settings):
    loader = dict(dataset=dict(pipeline=[dict(type='LoadImageFromFile'), dict(type='Pack')]))
    cfg = Config(
        dict(
            default_scope=scope,
            model=model or dict(type='A'),
            test_dataloader=loader,
            test_evaluator=list(metrics),
            **settings,
        )
    )
    use_tta(cfg)
    return cfg


@pytest.mark.parametrize(
    'metric',
    [
        dict(type='CocoMetric', metric='segm'),
        dict(type='mmdet.CocoMetric', metric=['bbox', 'segm']),
    ],
)
def test_masks_of_a_metric_are_not_merged(metric):
    with pytest.raises(UserError, match='--tta merges boxes only'):
        tta('mmdet', dict(type='CocoMetric', metric='bbox'), metric)


def test_boxes_are_merged():
    model = dict(type='A', roi_head=dict(mask_head=None, bbox_head=dict(type='B')))
    metrics = dict(type='CocoMetric', metric='bbox'), dict(type='DumpDetResults')
    cfg = tta('mmdet', *metrics, model=model)
    assert (cfg.model.type, cfg.model.module.type) == ('DetTTAModel', 'A')
    assert cfg.test_dataloader.dataset.pipeline[-1].type == 'TestTimeAug'


def test_a_config_defines_its_own_augmentation():
    pipeline = [dict(type='Own')]
    cfg = tta('mmseg', tta_model=dict(type='B'), tta_pipeline=pipeline)
    assert (cfg.model.type, cfg.model.module.type) == ('B', 'A')
    assert cfg.test_dataloader.dataset.pipeline == pipeline
    with pytest.raises(UserError, match='--tta needs tta_pipeline in the config'):
        tta('mmseg', tta_model=dict(type='B'))


@pytest.mark.parametrize(
    ('scope', 'kind'),
    [
        ('mmdet', 'mmdet.DumpDetResults'),
        ('mmseg', 'mmengine.DumpResults'),
        ('mmpretrain', 'mmengine.DumpResults'),
    ],
)
def test_predictions_in_a_pickle(scope, kind):
    cfg = Config(dict(default_scope=scope, test_evaluator=dict(type='A')))
    save_predictions(cfg, 'out.pkl')
    assert cfg.test_evaluator == [dict(type='A'), dict(type=kind, out_file_path='out.pkl')]


def test_predictions_in_a_folder():
    cfg = Config(dict(default_scope='mmseg', test_evaluator=dict(type='A')))
    save_predictions(cfg, 'maps')
    assert cfg.test_evaluator == dict(type='A', output_dir='maps', keep_results=True)
    with pytest.raises(UserError, match="--out must end with one of .*, but got 'maps'"):
        save_predictions(Config(dict(default_scope='mmdet', test_evaluator=dict())), 'maps')


def test_augmented_images_are_normalized_as_the_model_says():
    """MMEngine hands the preprocessor beside the model, if there is one, to the wrapped model."""
    pipelines = dict(tta_model=dict(type='B'), tta_pipeline=[dict(type='Own')])
    for own in (dict(mean=[0.5] * 12), None):
        model = dict(type='A', data_preprocessor=own) if own else dict(type='A')
        cfg = tta('mmseg', model=model, data_preprocessor=dict(mean=[1.0] * 3), **pipelines)
        assert cfg.data_preprocessor == (own or dict(mean=[1.0] * 3))
