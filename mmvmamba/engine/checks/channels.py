"""Checks that data preprocessor, neck and heads match the channels of the backbone."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmvmamba.engine.errors import UserError
from mmvmamba.models import VMamba
from mmvmamba.nn import VMambaNet

from .configs import named_settings, type_name
from .report import Report

_HEADS_WITHOUT_NECK = ('decode_head', 'auxiliary_head', 'panoptic_head')
_BACKBONES = ('VMamba', 'MM_VSSM', 'Vim', 'S4NDConvNeXt')
#: Data preprocessors that keep the number of channels; '' is the default of mmpretrain.
_PREPROCESSORS = (
    '',
    'ClsDataPreprocessor',
    'DetDataPreprocessor',
    'ImgDataPreprocessor',
    'MultispectralPreprocessor',
    'SegDataPreProcessor',
)
#: Transforms of hue, saturation and the like, which take three channels.
_COLOR_TRANSFORMS = (
    'AutoAugment',
    'ColorJitter',
    'PhotoMetricDistortion',
    'RandAugment',
    'RandomGrayscale',
    'YOLOXHSVRandomAug',
)
_MAP_SIZE = 32  # of the first stage


def model_channels(cfg: Mapping[str, Any]) -> int | None:
    """Return the image channels that a model takes by its config, or None if unknown.

    They are known for the backbones of this package behind a stock data preprocessor.
    """
    model = cfg.get('model') or {}
    backbone = model.get('backbone')
    preprocessor = model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    if type_name(backbone) not in _BACKBONES or type_name(preprocessor) not in _PREPROCESSORS:
        return None
    channels = backbone.get('in_channels', backbone.get('in_chans', 3))
    return channels if isinstance(channels, int) else None


def check_color_transforms(leaf: Mapping[str, Any], report: Report, channels: int | None) -> None:
    """Report transforms of colors in the pipeline of a dataset for other than three channels."""
    if channels in (None, 3):
        return
    for step in leaf.get('pipeline') or ():
        name = type_name(step)
        if name in _COLOR_TRANSFORMS:
            kind = f'`{name}` needs three channels, but the model takes {channels}'
            hint = 'Remove it from the pipeline (see docs/multispectral.md)'
            report.add('error', f'{leaf.get("type")}.pipeline', kind, hint=hint)


def check_image_channels(model: nn.Module, bands: Any = None) -> None:
    """Check that a VMamba backbone takes the channels that are normalized and drawn.

    Args:
        model (nn.Module): The whole model.
        bands (Any): ``visualizer.bands`` of the config. Defaults to None.

    Raises:
        UserError: If it does not.
    """
    mean = getattr(getattr(model, 'data_preprocessor', None), 'mean', None)
    backbone = getattr(model, 'backbone', None)
    if not isinstance(mean, Tensor) or not isinstance(backbone, VMambaNet):
        return
    if len(mean) not in (1, backbone.in_channels):
        raise UserError(
            f'model.backbone.in_channels is {backbone.in_channels}, but the mean of the data '
            f'preprocessor has {len(mean)} values (see docs/multispectral.md)'
        )
    if isinstance(bands, list | tuple) and bands and max(bands) >= backbone.in_channels:
        raise UserError(
            f'visualizer.bands must be less than model.backbone.in_channels '
            f'({backbone.in_channels}), but got {bands}'
        )


def check_feature_maps(cfg: Mapping[str, Any], model: nn.Module) -> None:
    """Check the channels of the neck or heads in the config of a model with a VMamba backbone.

    Without this check, a neck that expects another number of maps fails in an assertion without a
    message, and one with other channels in a convolution far from the wrong setting.

    Raises:
        UserError: If channels or indices do not match those of the backbone.
    """
    backbone = getattr(model, 'backbone', None)
    if getattr(type(backbone), 'forward', None) is not VMamba.forward:
        return
    channels = [backbone.settings.dims[i] for i in backbone.out_indices]
    given = (
        f'model.backbone returns {len(channels)} map(s) with {channels} channels '
        f'(out_indices {backbone.out_indices})'
    )
    neck = getattr(model, 'neck', None)
    if neck is None:
        for key in _HEADS_WITHOUT_NECK:
            for name, head in named_settings(f'model.{key}', cfg.get(key)):
                _check_settings(head, name, channels, given)
        return
    maps = [
        torch.zeros(1, c, _MAP_SIZE >> i, _MAP_SIZE >> i)
        for i, c in zip(backbone.out_indices, channels, strict=True)
    ]
    name, settings, module = 'model.neck', cfg.get('neck'), neck
    if isinstance(settings, list | tuple) and settings:  # a sequence of necks
        name, settings, module = 'model.neck[0]', settings[0], neck[0]
    if isinstance(settings, Mapping):
        _check_module(module, settings, name, maps, given)
    if isinstance(cfg.get('head'), Mapping):
        features = _output(neck, maps)
        if isinstance(features, tuple) and {type(x) for x in features} == {Tensor}:
            _check_module(model.head, cfg['head'], 'model.head', features, given)


def _check_settings(head: Mapping[str, Any], name: str, channels: list[int], given: str) -> None:
    """Check ``in_index`` and ``in_channels`` of a head on the maps of the backbone."""
    index = head.get('in_index')
    if index is not None:
        indices = index if isinstance(index, list | tuple) else [index]
        if any(not -len(channels) <= i < len(channels) for i in indices):
            raise UserError(f'{given}, but {name}.in_index is {index}')
        channels = [channels[i] for i in indices]
    if not _matches(head.get('in_channels'), channels):
        raise UserError(f'{given}, but {name}.in_channels is {head["in_channels"]}')


def _check_module(
    module: nn.Module, cfg: Mapping[str, Any], name: str, maps: Sequence[Tensor], given: str
) -> None:
    """Check that a module runs on maps if it runs on maps of the channels in its settings.

    Some modules skip maps, reverse them or concatenate them, so the settings alone do not tell.
    """
    expected = cfg.get('in_channels')
    own = expected if isinstance(expected, list | tuple) else [expected]
    if _matches(expected, [m.shape[1] for m in maps]) or not all(isinstance(c, int) for c in own):
        return
    sizes = [[max(side >> i, 1) for side in maps[0].shape[2:]] for i in range(len(own))]
    own_maps = [torch.zeros(1, c, *size) for c, size in zip(own, sizes, strict=True)]
    if _output(module, maps) is None and _output(module, own_maps) is not None:
        raise UserError(f'{given}, but {name}.in_channels is {expected}')


def _matches(expected: Any, channels: list[int]) -> bool:
    """Compare ``in_channels`` with maps; a single number belongs to the last one."""
    if isinstance(expected, list | tuple):
        return list(expected) == channels
    return expected in (None, *channels[-1:])


def _output(module: nn.Module, inputs: Sequence[Tensor]) -> Any:
    """Return the output of a copy of a module in eval mode, or None if it fails."""
    try:
        with torch.no_grad():
            return copy.deepcopy(module).eval()(tuple(inputs))
    except Exception:  # a module may raise anything for maps of other channels
        return None
