"""Options of tools/test.py: pictures, saved predictions, test-time augmentation."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from typing import Any

from mmengine.config import Config, ConfigDict

from mmvmamba.engine.checks.configs import leaf_datasets
from mmvmamba.engine.cli import task_of
from mmvmamba.engine.errors import UserError

_PICKLE = ('.pkl', '.pickle')
_FLIP = [dict(type='RandomFlip', prob=1.0), dict(type='RandomFlip', prob=0.0)]
_DETECTION_META = (
    'img_id',
    'img_path',
    'ori_shape',
    'img_shape',
    'scale_factor',
    'flip',
    'flip_direction',
)


def draw_predictions(
    cfg: Config, show: bool, folder: str | None, wait_time: float, interval: int = 1
) -> None:
    """Draw every n-th prediction beside the ground truth, in a window or to a folder."""
    if interval < 1:
        raise UserError(f'--interval must be at least 1, but got {interval}')
    hook = cfg.get('default_hooks', {}).get('visualization')
    if hook is None:
        raise UserError('--show and --show-dir need default_hooks.visualization in the config')
    hook.update(interval=interval, show=show, wait_time=wait_time)
    hook['enable' if task_of(cfg) == 'mmpretrain' else 'draw'] = True
    if interval > 1 and hook.type == 'DetVisualizationHook':
        # mmdet is installed; importing the module registers the hook.
        from mmvmamba.engine.hooks import interval_visualization_hook  # noqa: F401

        hook.type = 'mmvmamba.IntervalDetVisualizationHook'
    if folder is None:
        return
    if task_of(cfg) == 'mmdet':
        # mmdet would join a relative path to its folder of results.
        hook.test_out_dir = os.path.abspath(folder)
    elif task_of(cfg) == 'mmpretrain':
        hook.out_dir = folder
    else:
        cfg.visualizer.save_dir = folder


def keep_predictions(cfg: Config, out: str) -> None:
    """Save the predictions to a pickle file or, for segmentation, a folder of label maps."""
    if not out.endswith(_PICKLE):
        if task_of(cfg) != 'mmseg':
            raise UserError(f'--out must end with one of {_PICKLE}, but got {out!r}')
        for metric in _metrics(cfg):
            metric.update(output_dir=out, keep_results=True)
        return
    kind = 'mmdet.DumpDetResults' if task_of(cfg) == 'mmdet' else 'mmengine.DumpResults'
    cfg.test_evaluator = [*_metrics(cfg), ConfigDict(type=kind, out_file_path=out)]


def use_tta(cfg: Config) -> None:
    """Turn on test-time augmentation as the config defines it, or by flipping for boxes."""
    if task_of(cfg) == 'mmdet':
        if _predicts_masks(cfg.model) or _evaluates_masks(cfg):
            raise UserError(
                '--tta merges boxes only: mmdet has no test-time augmentation for instance masks, '
                f'and {cfg.model.type} predicts them'
            )
        _default_detection_tta(cfg)
    missing = [name for name in ('tta_model', 'tta_pipeline') if name not in cfg]
    if missing:
        raise UserError(f'--tta needs {" and ".join(missing)} in the config')
    for leaf in leaf_datasets(cfg.test_dataloader.dataset):
        leaf['pipeline'] = cfg.tta_pipeline
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)


def _default_detection_tta(cfg: Config) -> None:
    """Merge the boxes of the image and its mirror image by NMS unless the config has its own."""
    if 'tta_model' not in cfg:
        nms = dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100)
        cfg.tta_model = dict(type='DetTTAModel', tta_cfg=nms)  # mmdet registers it without a scope
    if 'tta_pipeline' not in cfg:
        pipeline = copy.deepcopy(next(leaf_datasets(cfg.test_dataloader.dataset))['pipeline'])
        pack = dict(type='PackDetInputs', meta_keys=_DETECTION_META)
        # The last step packs. The metric has its own ground truth.
        steps = [t for t in pipeline[:-1] if t['type'] != 'LoadAnnotations']
        cfg.tta_pipeline = [*steps, dict(type='TestTimeAug', transforms=[_FLIP, [pack]])]


def _predicts_masks(model: Any) -> bool:
    """Return True if a model has a mask head, or a name of mmdet's models for masks."""
    if isinstance(model, list | tuple):
        return any(_predicts_masks(part) for part in model)
    if not isinstance(model, Mapping):
        return False
    named = str(model.get('type')).startswith(('Mask', 'SOLO', 'YOLACT', 'CondInst', 'BoxInst'))
    has_head = any(model.get(key) for key in ('mask_head', 'panoptic_head', 'mask_roi_extractor'))
    return named or has_head or any(_predicts_masks(part) for part in model.values())


def _evaluates_masks(cfg: Config) -> bool:
    """Return True if a metric needs masks; it would only fail after the inference."""
    wanted = [metric.get('metric') for metric in _metrics(cfg) if metric]
    return any('segm' in ([m] if isinstance(m, str) else m or ()) for m in wanted)


def _metrics(cfg: Config) -> list[dict]:
    evaluator = cfg.test_evaluator
    return list(evaluator) if isinstance(evaluator, list | tuple) else [evaluator]
