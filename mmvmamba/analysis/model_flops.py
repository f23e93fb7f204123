"""Parameters and multiply-adds of the models of OpenMMLab's configs."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import InstanceData
from torch import Tensor, nn

from .flops import MultiplyAdds

#: The sizes (H, W) at which the paper counts.
DEFAULT_SHAPES = {'mmpretrain': (224, 224), 'mmdet': (800, 1280), 'mmseg': (512, 2048)}
#: Number of regions in the count of a two-stage detector.
PROPOSALS = 1000


@dataclass
class Complexity:
    """Size and cost of a model.

    Args:
        shape (tuple[int, int]): Height and width of the padded image.
        flops (int): Multiply-adds, exact.
        published (int): Multiply-adds as the paper counts them, see
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
    """Count the whole model of a config, heads included, for one image.

    Most models are counted on the meta device, where nothing is computed. Cascades and the heads of
    transformers depend on values, so these run on the CPU. The count of a cascade follows the
    number of regions that its untrained weights propose.

    Args:
        cfg (Config): A config of mmpretrain, mmdet or mmseg.
        shape (Sequence[int], optional): Height and width. Defaults to None, the paper's 224x224,
            800x1280 or 512x2048.

    Raises:
        ValueError: If ``shape`` is not a pair of positive numbers, or is not given for a config of
            another package.
    """
    package = cfg.get('default_scope')
    shape = DEFAULT_SHAPES.get(package) if shape is None else shape
    if shape is None:
        raise ValueError(f'shape must be given for a config whose default_scope is {package!r}')
    if len(shape) != 2 or min(shape) < 1:
        raise ValueError(f'shape must be a height and a width of at least 1, but got {shape}')
    model = build_model(cfg)
    if package == 'mmdet':
        divisor = (cfg.model.get('data_preprocessor') or {}).get('pad_size_divisor', 1)
        shape = [math.ceil(side / divisor) * divisor for side in shape]
    with torch.no_grad(), MultiplyAdds() as counter:
        _run(model, tuple(shape), package)
    # The paper's numbers of classifiers are exact.
    rounding = 0 if package == 'mmpretrain' else counter.rounding
    params = sum(p.numel() for p in model.parameters())
    return Complexity(tuple(shape), counter.total, counter.total + rounding, params, counter.counts)


def build_model(cfg: Config) -> nn.Module:
    """Build the model of a config in eval mode, with the weights of its constructor."""
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    return revert_sync_batchnorm(MODELS.build(cfg.model)).eval()


def _run(model: nn.Module, shape: tuple[int, int], package: str | None) -> None:
    """Run a model on a blank image, on the meta device if its heads allow it."""
    image = torch.zeros(1, 3, *shape)
    if hasattr(getattr(model, 'decode_head', None), 'pixel_decoder'):
        # mmdet's Mask2Former head asks for the samples.
        model.decode_head(model.extract_feat(image), [_sample(shape)])
    elif package != 'mmdet':
        model.to('meta')(image.to('meta'))
    else:
        _run_detector(model, image)


def _run_detector(model: nn.Module, image: Tensor) -> None:
    from mmdet.models import SingleStageDetector, StandardRoIHead, TwoStageDetector

    is_standard = type(getattr(model, 'roi_head', None)) is StandardRoIHead
    if isinstance(model, TwoStageDetector) and is_standard:
        _run_two_stages(model.to('meta'), image.to('meta'))
    elif isinstance(model, SingleStageDetector) and hasattr(model, 'bbox_head'):
        model.to('meta')(image.to('meta'))
    else:
        model(image, data_samples=[_sample(tuple(image.shape[2:]))])


def _run_two_stages(model: nn.Module, image: Tensor) -> None:
    """Run a detector on shapes alone; which regions are proposed depends on values."""
    for name in ('bbox_roi_extractor', 'mask_roi_extractor'):
        if extractor := getattr(model.roi_head, name, None):
            extractor.forward = partial(_empty_regions, extractor)
    maps = model.extract_feat(image)
    model.rpn_head(maps)
    boxes = InstanceData(bboxes=image.new_zeros(PROPOSALS, 4))
    model.roi_head.forward(maps, [boxes])


def _empty_regions(
    extractor: nn.Module, maps: Sequence[Tensor], rois: Tensor, *args: Any, **kwargs: Any
) -> Tensor:
    """Return an empty tensor of the shape of a RoI extractor's output."""
    size = extractor.roi_layers[0].output_size
    return maps[0].new_empty(len(rois), extractor.out_channels, *size)


def _sample(shape: tuple[int, int]) -> Any:
    from mmdet.structures import DetDataSample

    names = ('img_shape', 'ori_shape', 'pad_shape', 'batch_input_shape')
    return DetDataSample(metainfo=dict.fromkeys(names, shape) | dict(scale_factor=(1.0, 1.0)))
