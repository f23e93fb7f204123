"""Data preprocessor for images of any number of channels."""

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.model import BaseDataPreprocessor
from mmengine.registry import MODELS as ROOT_MODELS
from torch import nn

from mmvmamba.registry import MODELS

#: Arguments of the stock preprocessors that reverse the order of three channels.
_REVERSALS = ('bgr_to_rgb', 'rgb_to_bgr', 'to_rgb')


@MODELS.register_module(name='MultispectralPreprocessor')
def multispectral_preprocessor(
    base: str, mean: Sequence[float], std: Sequence[float], **kwargs: Any
) -> BaseDataPreprocessor:
    """Build a stock data preprocessor for images with any number of channels.

    The preprocessors of MMEngine, mmseg and mmdet accept only a ``mean`` of one or three values.
    The result is an instance of the stock class, whose arithmetic does not depend on the number of
    channels.

    Args:
        base (str): The stock class: 'mmseg.SegDataPreProcessor', 'mmdet.DetDataPreprocessor', ...
        mean (Sequence[float]): Mean of each channel, in the order of the file.
        std (Sequence[float]): Standard deviation of each channel.
        **kwargs: Other arguments of the stock class. ``bgr_to_rgb`` and ``rgb_to_bgr`` must be
            False unless there are three channels.

    Returns:
        BaseDataPreprocessor: The preprocessor. It raises a ValueError for an image with another
        number of channels.

    Raises:
        TypeError: If ``base`` does not take ``mean`` and ``std``, or one of the other arguments.
        ValueError: If ``mean`` and ``std`` do not match, or an option would reverse the channel
            order.
    """
    if not len(mean) == len(std) > 0:
        raise ValueError(
            f'mean and std must have a value for each channel, but mean has {len(mean)} and std '
            f'{len(std)}'
        )
    if min(std) <= 0:
        raise ValueError(f'std must be positive, but got {list(std)}')
    for name in _REVERSALS:
        if kwargs.get(name) and len(mean) != 3:
            raise ValueError(
                f'{name} must be False for images with {len(mean)} channels: only images with '
                'three channels have a color order'
            )
    built = ROOT_MODELS.build(dict(kwargs, type=base, mean=[0.0], std=[1.0]))
    for name, values in (('mean', mean), ('std', std)):
        setattr(built, name, torch.tensor(values, dtype=torch.float32).view(-1, 1, 1))
    built.register_forward_pre_hook(_check_channels, with_kwargs=True)
    return built


def _check_channels(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse images of another number of channels; one channel would be broadcast to all."""
    data = args[0] if args else kwargs['data']
    for image in data['inputs']:  # (C, H, W)
        if image.shape[0] != len(module.mean):
            raise ValueError(
                f'images must have {len(module.mean)} channels, one for each value of mean, but '
                f'got {image.shape[0]} (shape {tuple(image.shape)})'
            )
