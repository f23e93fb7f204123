"""How a model's cost and accuracy change with the size of its images."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner

from .models import AnalysisModel, read_config

#: ImageNet's test: the short side over that of the crop.
MARGIN = 256 / 224
#: The keys of a pipeline's transforms that hold sides in pixels.
_SIDES = ('scale', 'crop_size')


def growth_exponent(pixels: Sequence[float], costs: Sequence[float]) -> float:
    """The p of the cost that grows as pixels^p, by least squares of the logarithms.

    Args:
        pixels (Sequence[float]): Pixels of each image size.
        costs (Sequence[float]): What each costs.

    Raises:
        ValueError: If there are fewer than two different sizes, or a number is not positive.
    """
    if len(set(pixels)) < 2 or len(pixels) != len(costs) or min(*pixels, *costs) <= 0:
        raise ValueError(
            'a growth exponent needs two different sizes and positive numbers, but got pixels='
            f'{list(pixels)} and costs={list(costs)}'
        )
    x, y = ([math.log(v) for v in values] for values in (pixels, costs))
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return slope / sum((a - mean_x) ** 2 for a in x)


def evaluation_loader(dataset: str, side: int, batch_size: int) -> dict[str, Any]:
    """The data loader of a test at another size, as a config.

    Args:
        dataset (str): A folder with a folder of images for each class, in the order of the
            classes, for which ImageNet's test is made: the short side 256/224 of the side, and the
            middle. Or a config of a classifier, whose test pipeline is enlarged.
        side (int): Height and width of what the model sees.
        batch_size (int): Images at a time.

    Raises:
        ValueError: If there is no such folder or config, or its pipeline names no size.
    """
    if '::' in dataset or dataset.endswith('.py'):
        loader = read_config(dataset).get('test_dataloader')
        if not loader:
            raise ValueError(f'config {dataset!r} must have a test_dataloader')
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
        raise ValueError(f'dataset {dataset!r} is no folder of classes and no config')
    # In this process: a figure needs no speed, and a worker costs memory.
    settings = dict(
        num_workers=0, persistent_workers=False, collate_fn=dict(type='default_collate')
    )
    return loader | settings | dict(batch_size=batch_size)


def resized_pipeline(pipeline: Sequence[Mapping[str, Any]], side: int) -> list[dict[str, Any]]:
    """A test pipeline whose sides have grown by as much as that of its last one to ``side``.

    Raises:
        ValueError: If no transform has one.
    """
    given = [v for step in pipeline for k, v in step.items() if k in _SIDES and v is not None]
    if not given:
        raise ValueError(f'the test pipeline must resize or crop, but has {list(pipeline)}')
    last = given[-1]
    factor = side / (min(last) if isinstance(last, Sequence) else last)

    def grow(value: Any) -> Any:
        if isinstance(value, Sequence):
            return tuple(grow(part) for part in value)
        return value if value is None else round(factor * value)

    return [{k: grow(v) if k in _SIDES else v for k, v in step.items()} for step in pipeline]


@torch.no_grad()
def top1_accuracy(model: AnalysisModel, loader: Mapping[str, Any], device: torch.device) -> float:
    """The share of a test's images whose class has the highest score, in percent.

    Args:
        model (AnalysisModel): A classifier.
        loader (Mapping): What :func:`evaluation_loader` returned.
        device (torch.device): Where the model is.

    Raises:
        ValueError: If the model gives no scores (N, classes), or the data has more classes.
    """
    correct = total = 0
    for images, labels in _batches(loader):
        scores = model(model.normalise(images.to(device)))
        if not isinstance(scores, torch.Tensor) or scores.dim() != 2:
            raise ValueError(f'{model.name} must be a classifier to have an accuracy')
        if labels.max() >= scores.shape[1]:
            raise ValueError(
                f'{model.name} knows {scores.shape[1]} classes, but the data has a label '
                f'{int(labels.max())}'
            )
        correct += int((scores.argmax(1).cpu() == labels).sum())
        total += len(labels)
    return 100 * correct / total


def _batches(loader: Mapping[str, Any]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """RGB images in 0 ... 255 and their labels."""
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        import mmpretrain.datasets  # noqa: F401  (registers them)

        built = Runner.build_dataloader(Config(dict(loader)).to_dict())
    for batch in built:
        labels = torch.cat([sample.gt_label for sample in batch['data_samples']])
        yield batch['inputs'].flip(1), labels
