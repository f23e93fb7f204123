"""Map the parameter names of released files to this package's and mmpretrain's."""

import re
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .tensors import shown, unusable

#: Names of January 2024 and of the authors' one-file version, and their replacements, in order.
_RENAMES = (
    (r'^patch_embed\.proj\.', 'patch_embed.0.'),
    (r'^patch_embed\.norm\.', 'patch_embed.2.'),
    (r'(\.blocks\.\d+)\.ln_1\.', r'\1.norm.'),
    (r'(\.blocks\.\d+)\.ln_2\.', r'\1.norm2.'),
    (r'(\.blocks\.\d+)\.self_attention\.', r'\1.op.'),
    (r'^norm\.', 'classifier.norm.'),
    (r'^head\.', 'classifier.head.'),
    (r'\.op\.x_proj\.weight$', '.op.x_proj_weight'),
    (r'\.op\.dt_projs\.weight$', '.op.dt_projs_weight'),
    (r'\.op\.dt_projs\.bias$', '.op.dt_projs_bias'),
)
#: The one-file version numbers the layers of patch merging; a strided convolution has no layer 2.
_MERGING_RENAMES = (
    (r'(\.downsample)\.1\.', r'\1.norm.'),
    (r'(\.downsample)\.2\.', r'\1.reduction.'),
)
_DIRECTIONS = 4
BACKBONE, CLASSIFIER = 'backbone.', 'classifier.'
CLASSIFIER_NORM, CLASSIFIER_HEAD = 'classifier.norm.', 'classifier.head.'
#: Weight of the first convolution, (d, channels, h, w).
FIRST_CONV = 'patch_embed.0.weight'
#: The linear layer of mmpretrain's classification heads.
_IMAGE_CLASSIFIER_HEAD = 'head.fc.'


def convert_state_dict(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename and reshape the tensors of a released backbone or classifier.

    Every released naming scheme is handled: the prefixes ``module.`` and ``backbone.``, the names
    of January 2024, the projections and patch merging of the one-file version, and linear weights
    in the shape of 1x1 convolutions. Current names pass through. If any name begins with
    ``backbone.``, the tensors of other parts (necks and heads) are dropped.

    Args:
        state_dict (Mapping[str, Tensor]): The tensors of a file, without its top-level wrapping.

    Returns:
        dict[str, Tensor]: The tensors by the names of :class:`mmvmamba.nn.VMambaNet`.

    Raises:
        ValueError: If two names, such as ``module.a`` and ``a``, refer to the same tensor.
    """
    return rename_tensors(split_backbone(state_dict)[0])


def renamed(tensors: Mapping[str, Tensor], rename: Callable[[str], str]) -> dict[str, Tensor]:
    """Return tensors by their new names.

    Every renaming of this package goes through here, for two tensors that get one name would
    otherwise mean that the last one is loaded.

    Raises:
        ValueError: If two tensors get the same name.
    """
    result: dict[str, Tensor] = {}
    old_names: dict[str, str] = {}
    for key, value in tensors.items():
        name = rename(key)
        if name in result:
            raise ValueError(
                f"tensors '{shown(old_names[name])}' and '{shown(key)}' both map to "
                f"'{shown(name)}' of the model; remove one of them from the file"
            )
        result[name], old_names[name] = value, key
    return result


def without_module(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove the prefix ``module.`` of a distributed run."""
    return renamed(tensors, lambda key: key.removeprefix('module.'))


def split_backbone(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split off the tensors under ``backbone.`` without the prefix; if there are none, take all."""
    tensors = without_module(tensors)
    inside = {k.removeprefix(BACKBONE): v for k, v in tensors.items() if k.startswith(BACKBONE)}
    if not inside:
        return tensors, {}
    return inside, {k: v for k, v in tensors.items() if not k.startswith(BACKBONE)}


def split_state_dict(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split the tensors of any file into those of the backbone and those of necks and heads.

    Those of the backbone, and of a classifier as ``classifier.*``, get the names of
    :class:`mmvmamba.nn.VMambaNet`; the others keep theirs. A file of mmpretrain's ImageClassifier
    with a ``classifier.norm`` besides the last stage's norm is an error.
    """
    inside, others = split_backbone(tensors)
    inside = rename_tensors(inside)
    if f'{_IMAGE_CLASSIFIER_HEAD}weight' in others:
        # In mmpretrain's ImageClassifier the classifier's norm is the last stage's output norm.
        norm = f'outnorm{last_stage(inside)}.'
        for key in [key for key in others if key.startswith(_IMAGE_CLASSIFIER_HEAD)]:
            inside[key] = others.pop(key)
        inside = renamed(
            inside,
            lambda key: key.replace(norm, CLASSIFIER_NORM).replace(
                _IMAGE_CLASSIFIER_HEAD, CLASSIFIER_HEAD
            ),
        )
    return inside, others


def to_image_classifier(tensors: Mapping[str, Tensor], stage: int) -> dict[str, Tensor]:
    """Rename the tensors of a classifier for mmpretrain's ImageClassifier.

    There the classifier's norm is that of the backbone's last ``stage``, and the pooling between it
    and the linear layer is a neck. Tensors with both norms are an error: neither is preferred.
    """

    def rename(key: str) -> str:
        if key.startswith(CLASSIFIER_HEAD):
            return key.replace(CLASSIFIER_HEAD, _IMAGE_CLASSIFIER_HEAD)
        return BACKBONE + key.replace(CLASSIFIER_NORM, f'outnorm{stage}.')

    return renamed(tensors, rename)


def last_stage(tensors: Mapping[str, Tensor]) -> int:
    """Return the index of the last stage among the tensors of a backbone or classifier."""
    stages = [int(m[1]) for key in tensors if (m := re.match(r'layers\.(\d{1,9})\.', key))]
    return max(stages, default=0)


def rename_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename and reshape the tensors of a backbone or classifier that have no prefix."""
    has_merging = any(re.match(r'layers\.\d+\.downsample\.2\.weight$', key) for key in tensors)
    renames = _RENAMES + _MERGING_RENAMES if has_merging else _RENAMES

    def rename(key: str) -> str:
        for pattern, replacement in renames:
            key = re.sub(pattern, replacement, key)
        return key

    return {key: _reshape(key, value) for key, value in renamed(tensors, rename).items()}


def resize_pos_embed(pos_embed: Tensor, size: Sequence[int]) -> Tensor:
    """Resize a position embedding (1, d, h, w) bicubically to ``size`` (H, W)."""
    # Compiled, the comparison would hold for one size; the same size is interpolated exactly.
    if not torch.compiler.is_compiling() and tuple(pos_embed.shape[2:]) == tuple(size):
        return pos_embed
    return F.interpolate(pos_embed, size=tuple(size), mode='bicubic', align_corners=False)


def adapt_channels(weight: Tensor, channels: int) -> Tensor:
    """Adapt the weight (d, 3, h, w) of a first convolution to another number of image channels.

    As ``timm.models._manipulate.adapt_input_conv`` does: a single channel gets the sum over the
    channels; otherwise they are repeated in their order, and scaled by 3 / ``channels`` so that
    the responses keep their size.

    Args:
        weight (Tensor): Floating point.
        channels (int): Number of image channels of the network.

    Returns:
        Tensor: (d, channels, h, w), at least float32.
    """
    weight = weight.float() if weight.dtype.itemsize < 4 else weight
    if channels == 1:
        return weight.sum(dim=1, keepdim=True)
    repeats = -(-channels // weight.shape[1])
    return weight.repeat(1, repeats, 1, 1)[:, :channels] * (weight.shape[1] / channels)


def _reshape(key: str, value: Tensor) -> Tensor:
    if unusable(value) or not value.numel():
        return value  # the comparison with the model names it
    is_flat_weight = key.endswith(('.op.x_proj_weight', '.op.dt_projs_weight')) and value.dim() == 2
    is_flat_bias = key.endswith('.op.dt_projs_bias') and value.dim() == 1
    if (is_flat_weight or is_flat_bias) and value.shape[0] % _DIRECTIONS == 0:
        return value.reshape(_DIRECTIONS, -1, *value.shape[1:])  # (4 * n, ...) -> (4, n, ...)
    if key.endswith('.weight') and value.dim() == 4 and value.shape[2:] == (1, 1):
        return value.flatten(1)  # a 1x1 convolution; depthwise kernels are 3x3
    return value
