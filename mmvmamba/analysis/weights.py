"""Loading of a checkpoint into any model to analyse, at the size that it was built for."""

from __future__ import annotations

import math

import torch.nn.functional as F
from mmengine.logging import MMLogger
from torch import Tensor, nn

from mmvmamba.checkpoint.keys import convert_state_dict
from mmvmamba.checkpoint.matching import NEVER_REQUIRED, Matching
from mmvmamba.checkpoint.reader import state_dict_of
from mmvmamba.models.loading import adapt_state_dict, read_checkpoint
from mmvmamba.nn import VMambaNet


def load_weights(net: nn.Module, name: str, checkpoint: str, whole: bool) -> None:
    """Load a checkpoint into a network.

    Position embeddings and tables of relative positions of another size are resized bicubically.

    Args:
        net (nn.Module): The network.
        name (str): The network in messages.
        checkpoint (str): A file or a URL.
        whole (bool): Whether the layers behind the last map are required too, e.g. the head of a
            classifier. Otherwise they are left as they are.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file is not a checkpoint, or a tensor is missing or has another shape.
    """
    tensors = state_dict_of(read_checkpoint(checkpoint), checkpoint)
    if isinstance(net, VMambaNet):
        tensors = convert_state_dict(tensors)
    else:
        tensors = resize_positions(adapt_state_dict(net, tensors), net)
    head = () if whole else _head_prefixes(net)
    tensors = {key: value for key, value in tensors.items() if not key.startswith(head)}
    try:
        # The tensors can be compared after the network's own load hooks have renamed and resized.
        result = net.load_state_dict(tensors, strict=False)
    except RuntimeError as error:  # another shape
        raise ValueError(f'checkpoint {checkpoint!r} does not match {name}: {error}') from error
    own = net.state_dict().keys()
    missing = [key for key in result.missing_keys if not key.endswith(NEVER_REQUIRED)]
    found = [key for key in own if key not in result.missing_keys]
    matching = Matching(len(own), found, missing, unexpected=result.unexpected_keys)
    matching.check(f'checkpoint {checkpoint!r}', name, allow_missing=head)
    MMLogger.get_current_instance().info(f'{name}, {checkpoint}: {matching}')


def _head_prefixes(net: nn.Module) -> tuple[str, ...]:
    """Return the prefixes of the parameters behind the last map."""
    if isinstance(net, VMambaNet):
        return ('classifier.head.',)
    if not hasattr(net, 'backbone'):
        return ()
    return tuple(f'{name}.' for name, _ in net.named_children() if name != 'backbone')


def resize_positions(tensors: dict[str, Tensor], net: nn.Module) -> dict[str, Tensor]:
    """Resize position embeddings and tables of square grids to the size of a network's."""
    own, result = net.state_dict(), {}
    extra = getattr(getattr(net, 'backbone', net), 'num_extra_tokens', 0)
    for key, value in tensors.items():
        target = own.get(key)
        if target is None or target.shape == value.shape:
            result[key] = value
        elif key.endswith('pos_embed') and value.dim() == 3:
            result[key] = _resize_embedding(value, target, extra)
        elif key.endswith('relative_position_bias_table'):
            result[key] = _resize_table(value, target)
        elif not key.endswith('relative_position_index'):  # follows from the size
            result[key] = value
    return result


def _resize_embedding(value: Tensor, target: Tensor, extra: int) -> Tensor:
    """Resize an embedding (1, extra + L, d) with the extra tokens first."""
    from mmpretrain.models.utils import resize_pos_embed

    sides = [math.isqrt(v.shape[1] - extra) for v in (value, target)]
    if any(n * n != v.shape[1] - extra for n, v in zip(sides, (value, target), strict=True)):
        return value  # not a square grid; the model's own load hook may resize it
    return resize_pos_embed(value, *((n, n) for n in sides), 'bicubic', extra)


def _resize_table(value: Tensor, target: Tensor) -> Tensor:
    """Resize a table ((2 n - 1)^2, heads); mmpretrain's needs a function that SciPy removed."""
    source, side = (math.isqrt(v.shape[0]) for v in (value, target))
    grid = value.T.reshape(1, -1, source, source)
    return F.interpolate(grid, (side, side), mode='bicubic').flatten(2).squeeze(0).T
