"""Counts the models of OpenMMLab's configs at a size."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import InstanceData
from torch import Tensor, nn

from .flops import MultiplyAdds, count_multiply_adds

#: The sizes (H, W) at which the paper counts.
DEFAULT_SHAPES = {'mmpretrain': (224, 224), 'mmdet': (800, 1280), 'mmseg': (512, 2048)}
#: Regions that a detector of two stages is counted with.
PROPOSALS = 1000


@dataclass
class Complexity:
    """What a model costs.

    Args:
        shape (tuple[int, int]): Height and width, as the model sees them after padding.
        flops (int): Multiply-adds, exact.
        published (int): The same as the paper counts them, see
            :attr:`mmvmamba.analysis.flops.MultiplyAdds.rounding`.
        params (int): Number of parameters.
        by_op (Counter[str]): The exact count by op.
    """

    shape: tuple[int, int]
    flops: int
    published: int
    params: int
    by_op: Counter[str]


def count_config(cfg: Config, shape: Sequence[int] | None = None) -> Complexity:
    """Counts the whole model of a config, heads included, for one image.

    The model of most configs is counted on the meta device, where nothing is computed. A cascade
    and the transformers' heads depend on values, so these run on the CPU; a cascade's count follows
    the number of regions that its untrained weights propose.

    Args:
        cfg (Config): A config of mmpretrain, mmdet or mmseg.
        shape (Sequence[int], optional): Height and width. Defaults to None, the paper's:
            224x224, 800x1280 or 512x2048.

    Raises:
        ValueError: If the shape is no pair of positive numbers, or none is given for another
            package's config.
    """
    package = cfg.get('default_scope')
    shape = _checked_shape(shape, package)
    model = build_model(cfg)
    if package == 'mmdet':
        shape = _padded(shape, cfg.model.get('data_preprocessor') or {})
    params = sum(p.numel() for p in model.parameters())
    if package == 'mmdet':
        counter = _count_detector(model, shape)
    elif hasattr(getattr(model, 'decode_head', None), 'pixel_decoder'):
        counter = count_multiply_adds(_WithSamples(model), _image(shape, 'cpu'), shape)
    else:
        counter = count_multiply_adds(model.to('meta'), _image(shape, 'meta'))
    # The figures of classifiers are exact.
    rounding = 0 if package == 'mmpretrain' else counter.rounding
    return Complexity(shape, counter.total, counter.total + rounding, params, counter.counts)


def build_model(cfg: Config) -> nn.Module:
    """Builds a config's model without weights from a file."""
    cfg = cfg.copy()
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    cfg.model = Config(dict(model=cfg.model)).model.copy()
    backbone = cfg.model.get('backbone')
    if isinstance(backbone, Mapping) and backbone.get('init_cfg'):
        cfg.model.backbone = dict(backbone, init_cfg=None)
    return revert_sync_batchnorm(MODELS.build(cfg.model)).eval()


def _checked_shape(shape: Sequence[int] | None, package: str | None) -> tuple[int, int]:
    if shape is None:
        if package not in DEFAULT_SHAPES:
            raise ValueError(
                f'shape must be given for a config whose default_scope is {package!r}; it has '
                f'defaults for {sorted(DEFAULT_SHAPES)}'
            )
        return DEFAULT_SHAPES[package]
    if len(shape) != 2 or min(shape) < 1:
        raise ValueError(f'shape must be a height and a width of at least 1, but got {shape}')
    return tuple(shape)


def _padded(shape: tuple[int, int], preprocessor: Mapping[str, Any]) -> tuple[int, int]:
    divisor = preprocessor.get('pad_size_divisor', 1)
    return tuple(math.ceil(side / divisor) * divisor for side in shape)


def _image(shape: tuple[int, int], device: str) -> Tensor:
    return torch.zeros(1, 3, *shape, device=device)


def _count_detector(model: nn.Module, shape: tuple[int, int]) -> MultiplyAdds:
    from mmdet.models import SingleStageDetector, StandardRoIHead, TwoStageDetector

    standard = type(getattr(model, 'roi_head', None)) is StandardRoIHead
    if isinstance(model, TwoStageDetector) and standard:
        return count_multiply_adds(_ShapesOfTwoStages(model).to('meta'), _image(shape, 'meta'))
    if isinstance(model, SingleStageDetector) and hasattr(model, 'bbox_head'):
        return count_multiply_adds(model.to('meta'), _image(shape, 'meta'))
    return count_multiply_adds(model, _image(shape, 'cpu'), data_samples=[_sample(shape)])


def _sample(shape: tuple[int, int]) -> Any:
    from mmdet.structures import DetDataSample

    names = ('img_shape', 'ori_shape', 'pad_shape', 'batch_input_shape')
    return DetDataSample(metainfo=dict.fromkeys(names, shape) | dict(scale_factor=(1.0, 1.0)))


class _WithSamples(nn.Module):
    """A segmentor with mmdet's Mask2Former head, which asks for the images' samples."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor, shape: tuple[int, int]) -> tuple:
        return self.model.decode_head(self.model.extract_feat(image), [_sample(shape)])


class _ShapesOfTwoStages(nn.Module):
    """A detector of two stages of which only the shapes matter.

    Which regions are proposed depends on values; how many there are at most does not.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        roi_head = model.roi_head
        for name in ('bbox_roi_extractor', 'mask_roi_extractor'):
            extractor = getattr(roi_head, name, None)
            if extractor is not None:
                setattr(roi_head, name, _ShapesOfRegions(extractor))

    def forward(self, image: Tensor) -> tuple:
        maps = self.model.extract_feat(image)
        self.model.rpn_head(maps)
        boxes = InstanceData(bboxes=image.new_zeros(PROPOSALS, 4))
        return self.model.roi_head.forward(maps, [boxes])


class _ShapesOfRegions(nn.Module):
    """Maps of regions of the shape that a RoI extractor's would have."""

    def __init__(self, extractor: nn.Module) -> None:
        super().__init__()
        self.num_inputs = extractor.num_inputs
        self.featmap_strides = extractor.featmap_strides
        self.out_channels = extractor.out_channels
        self.size = extractor.roi_layers[0].output_size

    def forward(self, maps: Sequence[Tensor], rois: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return maps[0].new_empty(len(rois), self.out_channels, *self.size)
