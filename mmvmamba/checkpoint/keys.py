"""Map the parameter names of released files to this package's and mmpretrain's."""

import re
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

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
#: The linear layer of mmpretrain's classification heads.
_IMAGE_CLASSIFIER_HEAD = 'head.fc.'


def convert_state_dict(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename and reshape the tensors of a released backbone or classifier.

    Every released naming scheme is handled: the prefixes ``module.`` and ``backbone.``, the names
    of January 2024, the projections and patch merging of the one-file version, and linear weights
    in the shape of 1x1 convolutions. Current names pass through. If any name begins with
    ``backbone.``, the tensors of other parts (necks and heads) are left out.

    Args:
        state_dict (Mapping[str, Tensor]): The tensors of a file, without its top-level wrapping.

    Returns:
        dict[str, Tensor]: The tensors by the names of :class:`mmvmamba.nn.VMambaNet`.
    """
    return rename_tensors(split_backbone(state_dict)[0])


def split_backbone(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split off the tensors under ``backbone.`` without the prefix; if there are none, take all."""
    tensors = {key.removeprefix('module.'): value for key, value in tensors.items()}
    inside = {k.removeprefix(BACKBONE): v for k, v in tensors.items() if k.startswith(BACKBONE)}
    if not inside:
        return tensors, {}
    return inside, {k: v for k, v in tensors.items() if not k.startswith(BACKBONE)}


def split_state_dict(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split the tensors of any file into those of the backbone and those of necks and heads.

    Those of the backbone, and of a classifier as ``classifier.*``, get the names of
    :class:`mmvmamba.nn.VMambaNet`; the others keep theirs.
    """
    inside, others = split_backbone(tensors)
    inside = rename_tensors(inside)
    if f'{_IMAGE_CLASSIFIER_HEAD}weight' in others:
        # In mmpretrain's ImageClassifier the classifier's norm is the last stage's output norm.
        norm = f'outnorm{last_stage(inside)}.'
        inside = {key.replace(norm, CLASSIFIER_NORM): value for key, value in inside.items()}
        for key in [key for key in others if key.startswith(_IMAGE_CLASSIFIER_HEAD)]:
            inside[key.replace(_IMAGE_CLASSIFIER_HEAD, CLASSIFIER_HEAD)] = others.pop(key)
    return inside, others


def to_image_classifier(tensors: Mapping[str, Tensor], stage: int) -> dict[str, Tensor]:
    """Rename the tensors of a classifier for mmpretrain's ImageClassifier.

    There the classifier's norm is that of the backbone's last ``stage``, and the pooling between it
    and the linear layer is a neck.
    """
    result = {}
    for key, value in tensors.items():
        if key.startswith(CLASSIFIER_HEAD):
            key = key.replace(CLASSIFIER_HEAD, _IMAGE_CLASSIFIER_HEAD)
        else:
            key = BACKBONE + key.replace(CLASSIFIER_NORM, f'outnorm{stage}.')
        result[key] = value
    return result


def last_stage(tensors: Mapping[str, Tensor]) -> int:
    """Return the index of the last stage among the tensors of a backbone or classifier."""
    stages = [int(m[1]) for key in tensors if (m := re.match(r'layers\.(\d+)\.', key))]
    return max(stages, default=0)


def rename_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename and reshape the tensors of a backbone or classifier that have no prefix."""
    has_merging = any(re.match(r'layers\.\d+\.downsample\.2\.weight$', key) for key in tensors)
    renames = _RENAMES + _MERGING_RENAMES if has_merging else _RENAMES
    result = {}
    for key, value in tensors.items():
        for pattern, replacement in renames:
            key = re.sub(pattern, replacement, key)
        result[key] = _reshape(key, value)
    return result


def resize_pos_embed(pos_embed: Tensor, size: Sequence[int]) -> Tensor:
    """Resize a position embedding (1, d, h, w) bicubically to ``size`` (H, W)."""
    # Compiled, the comparison would hold for one size; the same size is interpolated exactly.
    if not torch.compiler.is_compiling() and tuple(pos_embed.shape[2:]) == tuple(size):
        return pos_embed
    return F.interpolate(pos_embed, size=tuple(size), mode='bicubic', align_corners=False)


def _reshape(key: str, value: Tensor) -> Tensor:
    is_flat_weight = key.endswith(('.op.x_proj_weight', '.op.dt_projs_weight')) and value.dim() == 2
    is_flat_bias = key.endswith('.op.dt_projs_bias') and value.dim() == 1
    if is_flat_weight or is_flat_bias:
        return value.reshape(_DIRECTIONS, -1, *value.shape[1:])  # (4 * n, ...) -> (4, n, ...)
    if key.endswith('.weight') and value.dim() == 4 and value.shape[2:] == (1, 1):
        return value.flatten(1)  # a 1x1 convolution; depthwise kernels are 3x3
    return value
