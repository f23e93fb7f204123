"""Loads a checkpoint into any model that is analysed, at the size that it was built for."""

from __future__ import annotations

import math

import torch.nn.functional as F
from mmengine.logging import MMLogger
from torch import Tensor, nn

from mmvmamba.checkpoint.reader import state_dict_of
from mmvmamba.models.loading import adapt_state_dict, read_checkpoint
from mmvmamba.nn import VMambaNet, convert_state_dict

#: Buffers that follow from a model's arguments or are not used, which older files may lack.
_NOT_NEEDED = ('relative_position_index', 'num_batches_tracked')


def load_weights(net: nn.Module, name: str, checkpoint: str, whole: bool) -> None:
    """Loads all that is needed of a checkpoint.

    Position embeddings and tables of relative positions of another size are resized bicubically.

    Args:
        net (nn.Module): The network.
        name (str): What it is called in messages.
        checkpoint (str): A file or a URL.
        whole (bool): Whether the layers behind the last map are needed too, a classifier's head.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no checkpoint, lacks tensors or has another shape.
    """
    tensors = state_dict_of(read_checkpoint(checkpoint), checkpoint)
    if isinstance(net, VMambaNet):
        tensors = convert_state_dict(tensors)
    else:
        tensors = _resized(adapt_state_dict(net, tensors), net)
    own = {key for key in net.state_dict() if not key.endswith(_NOT_NEEDED)}
    if not whole:  # a file for other classes has the same backbone
        own = {key for key in own if not key.startswith(_head_of(net))}
        tensors = {k: v for k, v in tensors.items() if not k.startswith(_head_of(net))}
    try:
        result = net.load_state_dict(tensors, strict=False)
    except RuntimeError as error:  # another shape
        raise ValueError(f'checkpoint {checkpoint!r} does not fit {name}: {error}') from error
    missing = [key for key in result.missing_keys if key in own]
    if missing:
        raise ValueError(
            f'checkpoint {checkpoint!r} does not fit {name}: {len(missing)} of {len(own)} '
            f'tensors are missing in it: {", ".join(missing[:8])}'
        )
    MMLogger.get_current_instance().info(
        f'{name}: {checkpoint}, {len(result.unexpected_keys)} tensors of it not needed'
    )


def _head_of(net: nn.Module) -> tuple[str, ...]:
    """What the names of the parameters behind the last map begin with."""
    if isinstance(net, VMambaNet):
        return ('classifier.head.',)
    if not hasattr(net, 'backbone'):
        return ()
    return tuple(f'{name}.' for name, _ in net.named_children() if name != 'backbone')


def _resized(tensors: dict[str, Tensor], net: nn.Module) -> dict[str, Tensor]:
    """Square grids of positions at the size of the network's."""
    own, result = net.state_dict(), {}
    extra = getattr(getattr(net, 'backbone', net), 'num_extra_tokens', 0)
    for key, value in tensors.items():
        target = own.get(key)
        if target is None or target.shape == value.shape:
            result[key] = value
        elif key.endswith('pos_embed') and value.dim() == 3:
            result[key] = _resized_embedding(value, target, extra)
        elif key.endswith('relative_position_bias_table'):
            result[key] = _resized_table(value, target)
        elif not key.endswith('relative_position_index'):  # follows from the size
            result[key] = value
    return result


def _resized_embedding(value: Tensor, target: Tensor, extra: int) -> Tensor:
    """(1, extra + L, d), the extra tokens first."""
    from mmpretrain.models.utils import resize_pos_embed

    sides = [math.isqrt(v.shape[1] - extra) for v in (value, target)]
    if any(n * n != v.shape[1] - extra for n, v in zip(sides, (value, target), strict=True)):
        return value  # an oblong grid, which the model's own hook may know
    return resize_pos_embed(value, *((n, n) for n in sides), 'bicubic', extra)


def _resized_table(value: Tensor, target: Tensor) -> Tensor:
    """((2 n - 1)^2, heads); mmpretrain's own needs a function that SciPy no longer has."""
    source, side = (math.isqrt(v.shape[0]) for v in (value, target))
    grid = value.T.reshape(1, -1, source, source)
    return F.interpolate(grid, (side, side), mode='bicubic').flatten(2).squeeze(0).T
