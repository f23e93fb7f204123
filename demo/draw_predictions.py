"""Draw a detector's or segmentor's predictions beside the ground truth.

Each chosen image of the test data gives one picture, drawn by the visualizer of the config's own
package. A contact sheet shows all of them. Images are enlarged first, so that outlines and labels
of small images can be read.

Example:
    python demo/draw_predictions.py configs/demo/mask-rcnn_vmamba-demo_fpn_demo.py \
        work_dirs/demo/detection/train/epoch_16.pth work_dirs/demo/detection
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from mmengine.config import Config, DictAction
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, MODELS, VISUALIZERS, init_default_scope
from mmengine.runner import load_checkpoint
from mmengine.structures import BaseDataElement, PixelData
from mmengine.visualization import Visualizer

from mmvmamba.registry import register_config_packages

logger = logging.getLogger('draw_predictions')

#: Shortest side of a drawn image in pixels; smaller images are enlarged by a whole factor.
MIN_SIDE = 400
CAPTION_HEIGHT = 28
GAP = 8
COLUMNS = 2
SHEET_WIDTH = 1400


def draw_predictions(cfg: Config, args: argparse.Namespace) -> None:
    """Predict, draw and write the pictures and the contact sheet."""
    init_default_scope(cfg.default_scope)
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    # Spread evenly over the data set.
    number = min(args.num_images, len(dataset))
    inputs = [dataset[i * len(dataset) // number] for i in range(number)]
    # The visualizer has no backend: the pictures go to files.
    settings = dict(cfg.visualizer, vis_backends=None, save_dir=None, name='draw_predictions')
    visualizer = VISUALIZERS.build({'alpha': 0.6, **settings})
    visualizer.dataset_meta = dict(dataset.metainfo)
    out_dir = Path(args.out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    pictures = []
    for sample in predict(cfg, args.checkpoint, inputs):
        out_file = out_dir / f'{Path(sample.img_path).stem}.png'
        pictures.append(draw(visualizer, sample, out_file, args.score_thr))
    sheet = contact_sheet(pictures, COLUMNS, SHEET_WIDTH)
    cv2.imwrite(str(out_dir / 'contact_sheet.jpg'), sheet, [cv2.IMWRITE_JPEG_QUALITY, 88])
    logger.info('%d pictures and contact_sheet.jpg are in %s', len(pictures), out_dir)


def predict(cfg: Config, checkpoint: str, inputs: Sequence[dict]) -> list[BaseDataElement]:
    """Return the ground truth and the predictions of each input, on the CPU."""
    model = MODELS.build(cfg.model)
    load_checkpoint(model, checkpoint, map_location='cpu', strict=True, logger='silent')
    model.to('cuda' if torch.cuda.is_available() else 'cpu').eval()
    with torch.no_grad():
        return [model.test_step(pseudo_collate([data]))[0].to('cpu') for data in inputs]


def draw(
    visualizer: Visualizer, sample: BaseDataElement, out_file: Path, score_thr: float
) -> np.ndarray:
    """Draw ground truth (left) and prediction (right) of one image into a file.

    Args:
        visualizer (Visualizer): mmdet's or mmseg's visualizer.
        sample (BaseDataElement): Ground truth and prediction.
        out_file (Path): Picture to write.
        score_thr (float): Lowest score of the instances to draw.

    Returns:
        np.ndarray: The picture (H, 2 * W, 3), BGR.
    """
    image = cv2.imread(sample.img_path, cv2.IMREAD_COLOR)
    factor = max(1, -(-MIN_SIDE // min(image.shape[:2])))
    image = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
    options = {'pred_score_thr': score_thr} if 'pred_instances' in sample else {}
    visualizer.add_datasample(
        out_file.stem,
        cv2.cvtColor(image, cv2.COLOR_BGR2RGB),
        enlarge_sample(sample, factor),
        out_file=str(out_file),
        **options,
    )
    return cv2.imread(str(out_file), cv2.IMREAD_COLOR)


def enlarge_sample(sample: BaseDataElement, factor: int) -> BaseDataElement:
    """Enlarge boxes, masks and label maps of a data sample by a whole factor."""

    def enlarge(values: torch.Tensor) -> torch.Tensor:
        return values.repeat_interleave(factor, -2).repeat_interleave(factor, -1)

    sample = sample.clone()
    for name in ('gt_instances', 'pred_instances'):
        if name in sample:
            instances = sample.get(name).clone()
            instances.bboxes = instances.bboxes * factor
            masks = instances.masks
            # Ground truth is a BitmapMasks, a prediction a tensor; both are (n, H, W).
            masks = masks if isinstance(masks, torch.Tensor) else masks.to_tensor(bool, 'cpu')
            instances.masks = enlarge(masks)
            setattr(sample, name, instances)
    for name in ('gt_sem_seg', 'pred_sem_seg'):
        if name in sample:
            setattr(sample, name, PixelData(data=enlarge(sample.get(name).data)))
    return sample


def contact_sheet(pictures: Sequence[np.ndarray], columns: int, width: int) -> np.ndarray:
    """Put pictures (H, W, 3) with captions on one sheet of a width; all get the first's size."""
    cell_width = width // columns - GAP
    cell_height = round(pictures[0].shape[0] * cell_width / pictures[0].shape[1])
    middle = cell_width // 2
    cells = []
    for picture in pictures:
        cell = cv2.resize(picture, (cell_width, cell_height), interpolation=cv2.INTER_AREA)
        cell[:, middle - GAP // 4 : middle + GAP // 4] = 255
        border = (CAPTION_HEIGHT, GAP, GAP // 2, GAP // 2)
        cell = cv2.copyMakeBorder(cell, *border, cv2.BORDER_CONSTANT, value=(255, 255, 255))
        for text, x in (('ground truth', GAP), ('prediction', middle + GAP)):
            origin, font = (x, CAPTION_HEIGHT - 9), cv2.FONT_HERSHEY_SIMPLEX
            cv2.putText(cell, text, origin, font, 0.6, (0, 0, 0), 1, cv2.LINE_AA)
        cells.append(cell)
    cells += [np.full_like(cells[0], 255)] * (-len(cells) % columns)
    return np.vstack([np.hstack(cells[i : i + columns]) for i in range(0, len(cells), columns)])


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description='Draw predictions beside the ground truth.',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument('config', help='config file of a detector with masks or a segmentor')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('out_dir', help='folder for the pictures')
    parser.add_argument('--num-images', type=int, default=12, help='number of images')
    parser.add_argument('--score-thr', type=float, default=0.5, help='lowest score to draw')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, default={}, help='KEY=VALUE settings'
    )
    args = parser.parse_args(argv)
    if args.num_images < 1:
        parser.error(f'--num-images must be at least 1, but got {args.num_images}')
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    logging.basicConfig(level=logging.WARNING, format='%(message)s')
    logger.setLevel(logging.INFO)
    args = parse_args(argv)
    # mmdet's visualizer draws the colours of the instances at random.
    np.random.seed(0)
    register_config_packages()
    cfg = Config.fromfile(args.config)
    cfg.merge_from_dict(args.cfg_options)
    draw_predictions(cfg, args)


if __name__ == '__main__':
    main()
