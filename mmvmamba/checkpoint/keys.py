"""From the spellings of released files to this package's parameter names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

#: Old spellings (January 2024, and the authors' one-file version) and today's, in order.
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
_DIRECTIONS = 4
_BACKBONE = 'backbone.'


def resize_pos_embed(pos_embed: Tensor, size: Sequence[int]) -> Tensor:
    """Resizes a position embedding (1, d, h, w) bicubically to ``size`` (H, W)."""
    # Compiled, the comparison would hold for one size; the same size is interpolated exactly.
    if not torch.compiler.is_compiling() and tuple(pos_embed.shape[2:]) == tuple(size):
        return pos_embed
    return F.interpolate(pos_embed, size=tuple(size), mode='bicubic', align_corners=False)


def convert_state_dict(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames and reshapes the tensors of a released backbone or classifier.

    Handles every spelling that was released: prefixes ``module.`` and ``backbone.``, the names of
    January 2024, the one-file version's projections and patch merging, and linear weights given as
    1x1 convolutions. Names that are already right pass through.

    Args:
        state_dict (Mapping[str, Tensor]): What the file holds, without its top-level wrapping.

    Returns:
        dict[str, Tensor]: Tensors by the names of :class:`mmvmamba.nn.VMambaNet`.
    """
    keys = [key.removeprefix('module.') for key in state_dict]
    tensors = dict(zip(keys, state_dict.values(), strict=True))
    if any(key.startswith('backbone.') for key in keys):
        # A detector or segmentor: the heads are not ours.
        tensors = {
            key.removeprefix('backbone.'): value
            for key, value in tensors.items()
            if key.startswith('backbone.')
        }
    return rename_tensors(tensors)


def rename_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames and reshapes the tensors of a backbone or classifier that have no prefix."""
    # The one-file version numbers patch merging's layers, which would read as a convolution's.
    merging = {
        match[1]
        for key, value in tensors.items()
        if (match := re.match(r'(layers\.\d+\.downsample)\.2\.weight$', key))
    }
    return dict(_convert_tensor(key, value, merging) for key, value in tensors.items())


def to_image_classifier(tensors: Mapping[str, Tensor], last_stage: int = 3) -> dict[str, Tensor]:
    """Names a classifier's tensors as mmpretrain's ImageClassifier does.

    There the classifier's norm is that of the backbone's last stage, and the pooling between it
    and the linear layer is a neck.

    Args:
        tensors (Mapping[str, Tensor]): Tensors by the names of :class:`mmvmamba.nn.VMambaNet`.
        last_stage (int): The backbone's last stage. Defaults to 3.

    Returns:
        dict[str, Tensor]: The same tensors, of which all but the head's begin with 'backbone.'.
    """
    norm, head = 'classifier.norm.', 'classifier.head.'
    result = {}
    for key, value in tensors.items():
        if key.startswith(head):
            key = 'head.fc.' + key.removeprefix(head)
        elif key.startswith(norm):
            key = f'backbone.outnorm{last_stage}.' + key.removeprefix(norm)
        else:
            key = f'backbone.{key}'
        result[key] = value
    return result


def split_state_dict(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Splits any file's tensors into those of the backbone and those of heads and necks.

    Args:
        tensors (Mapping[str, Tensor]): In any released spelling, with or without ``backbone.``.

    Returns:
        tuple: The backbone's by today's names, without the prefix, those of a classifier as
        ``classifier.*`` among them; and all others as they are.
    """
    tensors = {key.removeprefix('module.'): value for key, value in tensors.items()}
    others = {key: value for key, value in tensors.items() if not key.startswith(_BACKBONE)}
    if len(others) == len(tensors):
        return rename_tensors(tensors), {}
    inside = {k.removeprefix(_BACKBONE): v for k, v in tensors.items() if k not in others}
    inside = rename_tensors(inside)
    if 'head.fc.weight' in others:
        # mmpretrain's names; the norm before the average is the last stage's output norm.
        inside |= {
            key.replace('head.fc.', 'classifier.head.'): value
            for key, value in others.items()
            if key.startswith('head.fc.')
        }
        last = f'outnorm{last_stage(inside)}.'
        inside = {key.replace(last, 'classifier.norm.'): value for key, value in inside.items()}
        others = {key: value for key, value in others.items() if not key.startswith('head.fc.')}
    return inside, others


def last_stage(tensors: Mapping[str, Tensor]) -> int:
    """The last stage that the tensors of a backbone or classifier are of."""
    stages = [int(m[1]) for key in tensors if (m := re.match(r'layers\.(\d+)\.', key))]
    return max(stages, default=0)


def _convert_tensor(key: str, value: Tensor, merging: set[str]) -> tuple[str, Tensor]:
    for pattern, replacement in _RENAMES:
        key = re.sub(pattern, replacement, key)
    stage = re.match(r'(layers\.\d+\.downsample)\.([12])\.', key)
    if stage and stage[1] in merging:
        name = {'1': 'norm', '2': 'reduction'}[stage[2]]
        key = key.replace(f'{stage[1]}.{stage[2]}.', f'{stage[1]}.{name}.')
    if key.endswith(('.op.x_proj_weight', '.op.dt_projs_weight')) and value.dim() == 2:
        value = value.unflatten(0, (_DIRECTIONS, -1))  # (4 * n, m) -> (4, n, m)
    elif key.endswith('.op.dt_projs_bias') and value.dim() == 1:
        value = value.unflatten(0, (_DIRECTIONS, -1))
    elif key.endswith('.weight') and value.dim() == 4 and value.shape[2:] == (1, 1):
        # Depthwise kernels are 3x3 and never meet this.
        value = value.flatten(1)
    return key, value
