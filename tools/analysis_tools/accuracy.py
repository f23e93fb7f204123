"""Shared by the tools in this folder: the accuracy of a classifier at any image size."""

from collections.abc import Iterator

import torch
from analysis_model import AnalysisModel
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from torch import Tensor

from mmvmamba.engine.errors import UserError

#: Short side over crop in the test on ImageNet.
MARGIN = 256 / 224


@torch.no_grad()
def top1_accuracy(
    model: AnalysisModel, folder: str, side: int, batch_size: int, device: torch.device
) -> float:
    """Return the top-1 accuracy of a model on square images, in percent.

    As in the usual test on ImageNet, the short side is resized to 256/224 of ``side`` and its
    center is cropped. The folder has a folder of images for each class, in the order of the
    classes.
    """
    correct = total = 0
    for images, labels in _batches(folder, side, batch_size):
        scores = model(model.normalize(images.to(device)))
        if not isinstance(scores, Tensor) or scores.dim() != 2:
            raise UserError(f'{model.name} must be a classifier to measure its accuracy')
        if labels.max() >= scores.shape[1]:
            raise UserError(
                f'{model.name} has {scores.shape[1]} classes, but the data has a label '
                f'{int(labels.max())}'
            )
        correct += int((scores.argmax(1).cpu() == labels).sum())
        total += len(labels)
    return 100 * correct / total


def _batches(folder: str, side: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield RGB images in 0 ... 255 and their labels."""
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='ResizeEdge', scale=round(MARGIN * side), interpolation='bicubic'),
        dict(type='CenterCrop', crop_size=side),
        dict(type='PackInputs'),
    ]
    loader = dict(
        dataset=dict(type='CustomDataset', data_root=folder, pipeline=pipeline),
        sampler=dict(type='DefaultSampler', shuffle=False),
        collate_fn=dict(type='default_collate'),
        batch_size=batch_size,
    )
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        import mmpretrain.datasets  # noqa: F401  (registers them)

        batches = Runner.build_dataloader(loader)
    for batch in batches:
        labels = torch.cat([sample.gt_label for sample in batch['data_samples']])
        yield batch['inputs'].flip(1), labels
