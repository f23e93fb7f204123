"""Mask R-CNN with VMamba-T compared with Swin-T: mmdet's stock configs, random weights.

Inference is ``model.predict`` with its post-processing on one image; a training step is the loss
of an image with eight objects and its backward, without an optimizer. The classifier of both is
biased to one class, so that random weights find objects and the mask head has work to do.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import common
import numpy as np
import torch
from common import logger
from torch import nn

from mmvmamba.analysis import measure
from mmvmamba.analysis.measure import MIB, Call, Row

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = {
    'vmamba-t': str(ROOT / 'configs/mask_rcnn/mask-rcnn_vmamba-t_fpn_1x_coco.py'),
    'swin-t': 'mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py',
}
OBJECTS = 8
COLUMNS = dict(
    model='model',
    size='size',
    batch='batch',
    mode='mode',
    median_ms='ms',
    spread='spread',
    rounds='rounds',
    extra_mib='extra MiB',
    peak_mib='peak MiB',
    ratio='time / base',
)


def build_detector(config: str, device: torch.device) -> nn.Module:
    """A detector of a config, with random weights."""
    from mmdet.registry import MODELS
    from mmengine.config import Config
    from mmengine.hub import get_config
    from mmengine.logging import MMLogger
    from mmengine.registry import init_default_scope

    # MMEngine would name the initialization of each parameter.
    MMLogger.get_current_instance().setLevel('WARNING')
    init_default_scope('mmdet')
    cfg = get_config(config) if '::' in config else Config.fromfile(config)
    cfg.model.backbone.init_cfg = None
    model = MODELS.build(cfg.model)
    model.init_weights()
    with torch.no_grad():
        model.roi_head.bbox_head.fc_cls.bias[0] = 10
    return model.to(device)


def build_batch(
    size: tuple[int, int], batch: int, device: torch.device
) -> tuple[torch.Tensor, list]:
    """Random images padded to multiples of 32 and data samples with random objects."""
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    height, width = size
    padded = tuple(math.ceil(side / 32) * 32 for side in size)
    random = np.random.default_rng(0)
    samples = []
    for _ in range(batch):
        corners = random.uniform(0, 0.5, (OBJECTS, 2)) * (width, height)
        sides = random.uniform(0.1, 0.5, (OBJECTS, 2)) * (width, height)
        boxes = np.concatenate([corners, corners + sides], axis=1).astype(np.float32)
        masks = np.zeros((OBJECTS, *padded), dtype=np.uint8)
        for mask, (left, top, right, bottom) in zip(masks, boxes.astype(int), strict=True):
            mask[top:bottom, left:right] = 1
        sample = DetDataSample(
            metainfo=dict(
                img_shape=size,
                ori_shape=size,
                pad_shape=padded,
                batch_input_shape=padded,
                scale_factor=(1.0, 1.0),
            )
        )
        sample.gt_instances = InstanceData(
            bboxes=torch.from_numpy(boxes),
            labels=torch.from_numpy(random.integers(0, 80, OBJECTS)),
            masks=BitmapMasks(masks, *padded),
        )
        samples.append(sample.to(device))
    return torch.randn(batch, 3, *padded, device=device), samples


def make_call(model: nn.Module, images: torch.Tensor, samples: list, mode: str) -> Call:
    """One inference or training step as a function without arguments."""

    def infer():
        with torch.no_grad():
            return model.predict(images, samples)

    def train_step():
        losses = model.loss(images, samples)
        loss, _ = model.parse_losses(losses)
        loss.backward()
        for parameter in model.parameters():
            parameter.grad = None

    model.train(mode == 'train')
    return train_step if mode == 'train' else infer


def compare(
    args: argparse.Namespace, device: torch.device, models: dict[str, nn.Module], mode: str
) -> list[Row]:
    """Time the detectors in turn."""
    images, samples = build_batch(args.size, args.batch_size, device)
    where = dict(size=measure.size_text(*args.size), batch=args.batch_size, mode=mode)
    logger.info(', '.join(f'{key} {value}' for key, value in where.items()))
    calls = {name: make_call(model, images, samples, mode) for name, model in models.items()}
    times = measure.interleave(calls, device, args.seconds, args.min_rounds)
    rows = []
    for name, samples_of_time in times.items():
        row = dict(model=name, **where, **measure.summarize(samples_of_time))
        if not args.no_memory:
            extra = measure.extra_memory(calls[name], device)
            row['extra_mib'] = round(extra / MIB, 1)
            row['peak_mib'] = round((extra + measure.model_bytes(models[name])) / MIB, 1)
        rows.append(row)
    common.add_ratios(rows, 'model', 'swin-t')
    return rows


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; ``--quick`` sets the options that were not given."""
    parser = common.base_parser(__doc__.split('\n\n')[0], seconds=60)
    add = parser.add_argument
    add('--models', nargs='+', choices=CONFIGS, default=list(CONFIGS))
    add(
        '--size',
        type=measure.parse_size,
        help='image size (default: 800x1333, with --quick 320x512)',
    )
    add('--batch-size', type=int, default=1)
    add('--modes', nargs='+', choices=('inference', 'train'), default=['inference', 'train'])
    add('--no-memory', action='store_true', help='do not measure memory, which saves one run each')
    args = parser.parse_args(argv)
    if args.size is None:
        args.size = (320, 512) if args.quick else (800, 1333)
    if args.quick:
        args.seconds, args.min_rounds = min(args.seconds, 10), min(args.min_rounds, 3)
    return args


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Run the benchmark and return its rows."""
    args = parse_args(argv)
    device = common.set_up(args)
    try:
        models = {name: build_detector(CONFIGS[name], device) for name in args.models}
    except ImportError as error:
        raise SystemExit(f'detector.py needs mmdet: {error}') from None
    rows = []
    for mode in args.modes:
        part = compare(args, device, models, mode)
        common.write_table(part, COLUMNS)
        rows += part
    common.finish(args, 'detector', device, rows, ['base of the ratios: swin-t'])
    return rows


if __name__ == '__main__':
    sys.exit(not main())
