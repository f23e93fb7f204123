"""Networks by timm's names and arguments."""

import logging
import os
from collections.abc import Sequence
from typing import Any

from mmvmamba.checkpoint.matching import load_tensors
from mmvmamba.checkpoint.reader import read_local_checkpoint, state_dict_of

from .arch import ARCHS, resolve_arch
from .network import VMambaNet

_logger = logging.getLogger(__name__)
#: Architectures by model name.
MODEL_NAMES = {f'vmamba_{arch}': arch for arch in ARCHS}


def all_stages(arch: str, dims: Any = None, depths: Any = None, **_: Any) -> tuple[int, ...]:
    """Return the indices of all stages of an architecture, perhaps with other ``dims``."""
    return tuple(range(len(resolve_arch(arch, dims=dims, depths=depths).dims)))


def create_model(
    model_name: str,
    pretrained: str | os.PathLike[str] | bool = False,
    num_classes: int = 1000,
    features_only: bool = False,
    out_indices: Sequence[int] | None = None,
    in_chans: int = 3,
    **kwargs: Any,
) -> VMambaNet:
    """Create a classifier, or with ``features_only`` a backbone, by timm's names.

    Args:
        model_name (str): ``'vmamba_'`` and a key of :data:`mmvmamba.nn.ARCHS`: 'vmamba_tiny',
            'vmamba_small', 'vmamba_base', 'vmamba_vanilla_tiny', ...
        pretrained (str | PathLike | bool): A released file or a checkpoint of a training. Its last
            layer is left out if its number of classes differs, and the first convolution of a file
            for 3 channels is adapted to ``in_chans``. Defaults to False, random weights.
        num_classes (int): Classes; 0 for the pooled map (N, C). Defaults to 1000.
        features_only (bool): Whether to return the normalized maps (N, C, H, W) of the stages, as
            detectors and segmentors take them, instead of scores. Defaults to False.
        out_indices (Sequence[int], optional): The stages whose maps are returned, in this order;
            a negative one counts from the last. Defaults to None, all.
        in_chans (int): Channels of the images. Defaults to 3.
        **kwargs: Other arguments of :class:`mmvmamba.nn.VMambaNet`, e.g. ``drop_path_rate``.

    Returns:
        VMambaNet: The network in training mode.

    Raises:
        FileNotFoundError: If the file does not exist.
        TypeError: If an argument has a wrong type.
        ValueError: If a name or a number is not allowed, the file cannot be read or does not match.
    """
    if not isinstance(model_name, str):
        raise TypeError(f'model_name must be a str, but got {model_name!r}')
    if model_name not in MODEL_NAMES:
        raise ValueError(f'model_name must be one of {sorted(MODEL_NAMES)}, but got {model_name!r}')
    if not isinstance(pretrained, str | os.PathLike) and pretrained is not False:
        raise TypeError(
            'pretrained must be the path of a file or False (configs/vmamba/README.md has links to '
            f'the released files; nothing is downloaded), but got {pretrained!r}'
        )
    if out_indices is not None and not features_only:
        raise ValueError(f'out_indices needs features_only=True, but got {out_indices!r}')
    arch = MODEL_NAMES[model_name]
    if features_only and out_indices is None:
        out_indices = all_stages(arch, **kwargs)
    net = VMambaNet(arch, in_chans, num_classes, out_indices, **kwargs)
    if pretrained is not False:
        filename = os.fspath(pretrained)
        tensors = state_dict_of(read_local_checkpoint(filename), filename)
        _logger.info('%s: %s', filename, load_tensors(net, tensors, filename, new_head=True))
    return net
