"""Check that BatchNorm gets more than one value of each channel in training."""

import contextlib
import copy
import math
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch
from mmengine.dist import get_world_size
from mmengine.model import revert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader

from mmvmamba.engine.data.sampling import is_endless
from mmvmamba.engine.errors import UserError
from mmvmamba.models import VMamba

#: The message of PyTorch.
_ONE_VALUE = 'Expected more than 1 value per channel when training'
#: The ``loss`` of models that pass each image once through neck and heads. Others, such as those
#: of self-supervised learning, may train on several views of an image.
_LOSSES = {
    'mmdet.models.detectors.single_stage.SingleStageDetector.loss',
    'mmdet.models.detectors.two_stage.TwoStageDetector.loss',
    'mmpretrain.models.classifiers.image.ImageClassifier.loss',
    'mmseg.models.segmentors.encoder_decoder.EncoderDecoder.loss',
}
_HEADS = ('decode_head', 'auxiliary_head', 'head', 'bbox_head', 'rpn_head')
_IMAGE_SIZE = (512, 512)  # of a model whose preprocessor does not say
_REMEDY = (
    'set train_dataloader.batch_size to 2 or more (and drop_last=True to skip an incomplete last '
    'batch), or use a norm_cfg without batch statistics, such as dict(type="GN", num_groups=32)'
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
            f'BatchNorm cannot normalize a single pixel of a single image: {error}; {_REMEDY}'
        ) from error


def check_batch_norm(model: nn.Module, loader: DataLoader) -> None:
    """Check that neck and heads of a VMamba model train with the smallest batch of a loader.

    In a batch of one image, pooling to a single pixel, as in UperNet and PSPNet, leaves one value
    per channel. The modules run on the meta device, which takes neither time nor random numbers.
    Models with a ``loss`` of their own are left to PyTorch.

    Raises:
        UserError: If PyTorch refuses such a batch.
    """
    batch = _batch_of_one(loader)
    backbone = getattr(model, 'backbone', None)
    if not batch or getattr(type(backbone), 'forward', None) is not VMamba.forward:
        return
    loss = getattr(model, 'loss', None)
    if f'{getattr(loss, "__module__", "")}.{getattr(loss, "__qualname__", "")}' not in _LOSSES:
        return
    neck = getattr(model, 'neck', None)
    heads = list(_heads(model))
    if not any(_has_batch_norm(module) for module in (neck, *(head for _, head in heads))):
        return
    size = getattr(getattr(model, 'data_preprocessor', None), 'size', None) or _IMAGE_SIZE
    maps: Any = tuple(
        torch.zeros(1, backbone.settings.dims[i], *(math.ceil(side / (4 << i)) for side in size))
        for i in backbone.out_indices
    )
    if neck is not None:
        maps = _output('neck', neck, maps, batch)
    for name, head in heads:
        if maps is not None and _has_batch_norm(head):
            _output(name, head, maps, batch)


def _heads(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name in _HEADS:
        head = getattr(model, name, None)
        for module in head if isinstance(head, nn.ModuleList) else [head]:
            if isinstance(module, nn.Module):
                yield name, module


def _has_batch_norm(module: nn.Module | None) -> bool:
    return module is not None and any(isinstance(m, _BatchNorm) for m in module.modules())


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
    return f'the last of the {count} images forms its own batch' if count % size == 1 else ''


def _output(name: str, module: nn.Module, maps: Any, batch: str) -> Any:
    """Return the output of a copy of a module in training, or None if it cannot be tried."""
    last = ['']
    try:
        module = _copy_without_hooks(module).to('meta').train()
        if get_world_size() == 1:
            module = revert_sync_batchnorm(module)  # which would refuse the device
        for path, layer in module.named_modules():
            if isinstance(layer, nn.SyncBatchNorm):
                return None  # it counts the values of all processes
            if isinstance(layer, _BatchNorm):
                layer.register_forward_pre_hook(lambda *_, path=path: last.__setitem__(0, path))
        with torch.no_grad():
            return module(_to_meta(maps))
    except Exception as error:  # a module may raise anything for inputs of another kind
        if _ONE_VALUE not in str(error):
            return None
        raise UserError(
            f'model.{name}.{last[0]} is a BatchNorm over a 1 x 1 map and needs at least two images '
            f'per batch, but {batch}; {_REMEDY}'
        ) from error


def _copy_without_hooks(module: nn.Module) -> nn.Module:
    """Copy a module without its forward hooks, nor what these refer to."""
    memo: dict[int, Any] = {}
    for layer in module.modules():
        for hooks in (layer._forward_hooks, layer._forward_pre_hooks):
            memo[id(hooks)] = OrderedDict()
    return copy.deepcopy(module, memo)


def _to_meta(maps: Any) -> Any:
    return tuple(m.to('meta') for m in maps) if not isinstance(maps, Tensor) else maps.to('meta')
