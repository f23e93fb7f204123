"""Shared by the tools in this folder: the accuracy of a classifier at any image size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from analysis_model import AnalysisModel, read_config
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner

from mmvmamba.engine.errors import UserError

#: Short side over crop in the test on ImageNet.
MARGIN = 256 / 224
#: The keys of a pipeline's transforms that hold sides in pixels.
SIDES = ('scale', 'crop_size')


def evaluation_loader(dataset: str, side: int, batch_size: int) -> dict[str, Any]:
    """Return the config of the data loader of a test at an image size.

    Args:
        dataset (str): A folder with a folder of images for each class, in the order of the
            classes, which is tested as ImageNet is: the short side resized to 256/224 of
            ``side``, then the middle. Or the config of a classifier, whose test pipeline is scaled.
        side (int): Height and width of the model's input.
        batch_size (int): Images at a time.
    """
    if '::' in dataset or dataset.endswith('.py'):
        loader = read_config(dataset).get('test_dataloader')
        if not loader:
            raise UserError(f'config {dataset!r} must have a test_dataloader')
        loader = loader.to_dict()
        loader['dataset']['pipeline'] = resized_pipeline(loader['dataset']['pipeline'], side)
    elif Path(dataset).is_dir():
        pipeline = [
            dict(type='LoadImageFromFile'),
            dict(type='ResizeEdge', scale=round(MARGIN * side), interpolation='bicubic'),
            dict(type='CenterCrop', crop_size=side),
            dict(type='PackInputs'),
        ]
        loader = dict(dataset=dict(type='CustomDataset', data_root=dataset, pipeline=pipeline))
        loader['sampler'] = dict(type='DefaultSampler', shuffle=False)
    else:
        raise UserError(f'dataset must be a folder of classes or a config, but got {dataset!r}')
    # Workers would cost memory, and speed does not matter here.
    settings = dict(num_workers=0, persistent_workers=False, batch_size=batch_size)
    return loader | settings | dict(collate_fn=dict(type='default_collate'))


def resized_pipeline(pipeline: Sequence[Mapping[str, Any]], side: int) -> list[dict[str, Any]]:
    """Scale the sides in a test pipeline so that the last of them becomes ``side``."""
    given = [v for step in pipeline for k, v in step.items() if k in SIDES and v is not None]
    if not given:
        raise UserError(f'the test pipeline must resize or crop, but has {list(pipeline)}')
    last = given[-1]
    factor = side / (min(last) if isinstance(last, Sequence) else last)

    def scale(value: Any) -> Any:
        if isinstance(value, Sequence):
            return tuple(map(scale, value))
        return value if value is None else round(factor * value)

    return [{k: scale(v) if k in SIDES else v for k, v in step.items()} for step in pipeline]


@torch.no_grad()
def top1_accuracy(model: AnalysisModel, loader: Mapping[str, Any], device: torch.device) -> float:
    """Return the top-1 accuracy of a model, in percent, on what :func:`evaluation_loader` names."""
    correct = total = 0
    for images, labels in _batches(loader):
        scores = model(model.normalise(images.to(device)))
        if not isinstance(scores, torch.Tensor) or scores.dim() != 2:
            raise UserError(f'{model.name} must be a classifier to have an accuracy')
        if labels.max() >= scores.shape[1]:
            raise UserError(
                f'{model.name} has {scores.shape[1]} classes, but the data has a label '
                f'{int(labels.max())}'
            )
        correct += int((scores.argmax(1).cpu() == labels).sum())
        total += len(labels)
    return 100 * correct / total


def _batches(loader: Mapping[str, Any]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield RGB images in 0 ... 255 and their labels."""
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        import mmpretrain.datasets  # noqa: F401  (registers them)

        built = Runner.build_dataloader(Config(dict(loader)).to_dict())
    for batch in built:
        labels = torch.cat([sample.gt_label for sample in batch['data_samples']])
        yield batch['inputs'].flip(1), labels
