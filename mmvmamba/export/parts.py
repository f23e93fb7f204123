"""Parts of models that can be exported, with images as their only input.

Networks by name require only torch; configs require OpenMMLab.
"""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

from mmvmamba.nn import VMambaNet, create_model

if TYPE_CHECKING:
    from mmengine.config import Config

#: The default size (H, W) of images, by the package of the model.
SHAPES = {'mmpretrain': (224, 224), 'mmdet': (800, 1344), 'mmseg': (512, 512)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that select the exported model: config, checkpoint and ``--part``."""
    if find_spec('mmengine') is None:
        parser.add_argument('config', help='model name (config files need OpenMMLab)')
    else:
        from mmvmamba.engine import cli

        cli.add_config_arguments(parser)
    parser.add_argument('checkpoint', help='checkpoint file or URL')
    parser.add_argument(
        '--part',
        choices=('whole', 'neck', 'backbone'),
        help='part to export: whole (classifiers, segmentors), neck (backbone and neck) or '
        'backbone (default: neck for detection, otherwise whole)',
    )


class ExportedModel(nn.Module):
    """The exported part of a model, from a batch of normalized images to its outputs."""

    def __init__(self, model: nn.Module, part: str) -> None:
        super().__init__()
        self.model = model
        self.part = part

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the maps, or a tuple of the scores or logits."""
        if isinstance(self.model, VMambaNet):
            out = self.model(images)
            return out if self.part == 'backbone' else (out,)
        if self.part == 'backbone':
            return tuple(self.model.backbone(images))
        if self.part == 'neck':
            return tuple(self.model.extract_feat(images))
        out = self.model(images, mode='tensor')
        if hasattr(self.model, 'decode_head'):
            corners = self.model.align_corners
            out = F.interpolate(out, images.shape[2:], mode='bilinear', align_corners=corners)
        return (out,)


def choose_part(cfg: Config, model: nn.Module, part: str | None) -> str:
    """Return the part to export, or raise UserError if it cannot be exported."""
    from mmvmamba.engine.cli import task_of
    from mmvmamba.engine.errors import UserError

    task = task_of(cfg)
    if task not in SHAPES:
        raise UserError(f'default_scope must be one of {tuple(SHAPES)}, but got {task!r}')
    part = part or ('neck' if task == 'mmdet' else 'whole')
    if part == 'whole' and task == 'mmdet':
        raise UserError('--part whole: only the backbone and neck of a detector can be exported')
    if part == 'neck' and getattr(model, 'neck', None) is None:
        raise UserError(f'--part neck: {type(model).__name__} has no neck')
    if part == 'whole' and hasattr(getattr(model, 'decode_head', None), 'pixel_decoder'):
        name = type(model.decode_head).__name__
        raise UserError(f'--part whole: {name} needs data samples; use --part backbone')
    return part


def output_names(model: ExportedModel, images: Tensor) -> list[str]:
    """Return the names of the outputs for a batch of images, scores, logits or maps."""
    if model.part == 'whole':
        return ['logits' if hasattr(model.model, 'decode_head') else 'scores']
    return [f'map{i}' for i in range(len(model(images)))]


def load_part(cfg: Config, checkpoint: str, part: str | None) -> ExportedModel:
    """Build a config's model with the weights of a checkpoint, for its exported part.

    Args:
        cfg (Config): The config.
        checkpoint (str): A file or URL.
        part (str, optional): A value of ``--part``; None selects the default of the task.

    Raises:
        UserError: If the part cannot be exported.
    """
    from mmvmamba.analysis.model_flops import build_model
    from mmvmamba.models.loading import load_whole, read_checkpoint

    model = build_model(cfg)
    load_whole(model, read_checkpoint(checkpoint), checkpoint)
    return ExportedModel(model, choose_part(cfg, model, part)).eval()


def load_network(name: str, checkpoint: str, part: str | None) -> ExportedModel:
    """Build a network of :func:`mmvmamba.nn.create_model` with the weights of a checkpoint.

    Args:
        name (str): A name of :func:`mmvmamba.nn.list_models`.
        checkpoint (str): A file or URL.
        part (str, optional): 'whole' or None for a classifier, 'backbone' for the normalized maps
            of the four stages.

    Raises:
        ValueError: If the network or part does not exist, or the checkpoint does not match it.
    """
    if part == 'neck':
        raise ValueError(f'--part must be whole or backbone for {name}, which has no neck')
    net = create_model(name, checkpoint, features_only=part == 'backbone')
    return ExportedModel(net, part or 'whole').eval()
