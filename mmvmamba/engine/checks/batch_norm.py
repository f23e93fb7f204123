"""Check that BatchNorm gets more than one value of each channel in training."""

import contextlib
import copy
import math
from collections.abc import Iterator
from typing import Any

import torch
from mmengine.dist import get_world_size
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader

from mmvmamba.engine.data.sampling import is_endless
from mmvmamba.engine.errors import UserError
from mmvmamba.models import VMamba

#: The message of PyTorch.
_ONE_VALUE = 'Expected more than 1 value per channel when training'
_HEADS = ('decode_head', 'auxiliary_head', 'head', 'bbox_head', 'rpn_head')
_IMAGE_SIZE = (512, 512)  # of a model whose preprocessor does not say
_REMEDY = (
    'set train_dataloader.batch_size to 2 or more (and drop_last=True, so that the last batch of '
    'an epoch is complete), or a norm_cfg without batches, such as dict(type="GN", num_groups=32)'
)


@contextlib.contextmanager
def named_batch_norm() -> Iterator[None]:
    """Turn PyTorch's error of a BatchNorm with one value per channel into a UserError.

    It is raised by models and batches that :func:`check_batch_norm` does not know.
    """
    try:
        yield
    except ValueError as error:
        if _ONE_VALUE not in str(error):
            raise
        raise UserError(
            f'BatchNorm cannot normalize one pixel of a batch of one image: {error}; {_REMEDY}'
        ) from error


def check_batch_norm(model: nn.Module, loader: DataLoader) -> None:
    """Check that neck and heads of a VMamba model train with the smallest batch of a loader.

    In a batch of one image, pooling to a single pixel, as in UperNet and PSPNet, leaves one value
    per channel. The modules run on the meta device, which takes neither time nor random numbers.

    Raises:
        UserError: If PyTorch refuses such a batch.
    """
    batch = _batch_of_one(loader)
    backbone = getattr(model, 'backbone', None)
    if not batch or getattr(type(backbone), 'forward', None) is not VMamba.forward:
        return
    size = getattr(getattr(model, 'data_preprocessor', None), 'size', None) or _IMAGE_SIZE
    maps: Any = tuple(
        torch.zeros(1, backbone.settings.dims[i], *(math.ceil(side / (4 << i)) for side in size))
        for i in backbone.out_indices
    )
    neck = getattr(model, 'neck', None)
    if neck is not None:
        maps = _output('neck', neck, maps, batch)
    for name in _HEADS:
        head = getattr(model, name, None)
        for module in head if isinstance(head, nn.ModuleList) else [head]:
            if isinstance(module, nn.Module) and maps is not None:
                _output(name, module, maps, batch)


def _batch_of_one(loader: DataLoader) -> str:
    """Describe a batch of a single image that a loader yields, if there is one."""
    batches = getattr(loader, 'batch_sampler', None)
    size = getattr(batches, 'batch_size', None)
    if size == 1:
        return 'train_dataloader.batch_size is 1'
    sampler = getattr(batches, 'sampler', None)
    if not size or getattr(batches, 'drop_last', False) or is_endless(sampler):
        return ''
    count = len(sampler) if hasattr(sampler, '__len__') else 0
    return f'the last of {count} images is a batch by itself' if count % size == 1 else ''


def _output(name: str, module: nn.Module, maps: Any, batch: str) -> Any:
    """Return the output of a copy of a module in training, or None if it cannot be tried."""
    last = ['']
    try:
        module = copy.deepcopy(module).to('meta').train()
        for path, layer in module.named_modules():
            if isinstance(layer, nn.SyncBatchNorm) and get_world_size() > 1:
                return None  # it counts the values of all processes
            if isinstance(layer, _BatchNorm):
                layer.register_forward_pre_hook(lambda *_, path=path: last.__setitem__(0, path))
        with torch.no_grad():
            return module(_to_meta(maps))
    except Exception as error:  # a module may raise anything for inputs of another kind
        if _ONE_VALUE not in str(error):
            return None
        raise UserError(
            f'model.{name}.{last[0]} is a BatchNorm of a map of one pixel, which needs batches of '
            f'two or more images, but {batch}; {_REMEDY}'
        ) from error


def _to_meta(maps: Any) -> Any:
    return tuple(m.to('meta') for m in maps) if not isinstance(maps, Tensor) else maps.to('meta')
