"""Draws a detector's or segmentor's predictions beside the ground truth.

One picture for each chosen image of the test data, drawn by the visualizer of the config's own
package, and all of them on one contact sheet. Images are enlarged first, so that outlines and
labels of small images can be read.

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


def build_dataset(cfg: Config) -> torch.utils.data.Dataset:
    """Builds the test data of a config and sets its package's default scope."""
    init_default_scope(cfg.default_scope)
    return DATASETS.build(cfg.test_dataloader.dataset)


def choose_images(dataset: torch.utils.data.Dataset, number: int) -> list[int]:
    """Indices of images spread evenly over a data set."""
    number = min(number, len(dataset))
    return [i * len(dataset) // number for i in range(number)]


def predict(
    cfg: Config, checkpoint: str, dataset: torch.utils.data.Dataset, indices: Sequence[int]
) -> list[BaseDataElement]:
    """Predicts images of a data set.

    Args:
        cfg (Config): The whole config.
        checkpoint (str): Checkpoint file.
        dataset (Dataset): The data.
        indices (Sequence[int]): Which images.

    Returns:
        list[BaseDataElement]: For each image its ground truth and predictions, on the CPU.
    """
    model = MODELS.build(cfg.model)
    load_checkpoint(model, checkpoint, map_location='cpu', strict=True, logger='silent')
    model.to('cuda' if torch.cuda.is_available() else 'cpu').eval()
    with torch.no_grad():
        samples = [model.test_step(pseudo_collate([dataset[i]]))[0] for i in indices]
    return [sample.to('cpu') for sample in samples]


def enlarge_sample(sample: BaseDataElement, factor: int) -> BaseDataElement:
    """Enlarges boxes, masks and label maps of a data sample by a whole factor."""
    sample = sample.clone()
    for name in ('gt_instances', 'pred_instances'):
        if name in sample:
            instances = sample.get(name).clone()
            instances.bboxes = instances.bboxes * factor
            masks = instances.masks
            # Ground truth is a BitmapMasks, a prediction a tensor; both are (n, H, W).
            masks = masks if isinstance(masks, torch.Tensor) else masks.to_tensor(bool, 'cpu')
            instances.masks = enlarge_map(masks, factor)
            setattr(sample, name, instances)
    for name in ('gt_sem_seg', 'pred_sem_seg'):
        if name in sample:
            setattr(sample, name, PixelData(data=enlarge_map(sample.get(name).data, factor)))
    return sample


def enlarge_map(values: torch.Tensor, factor: int) -> torch.Tensor:
    """Repeats each pixel of a (..., H, W) map ``factor`` times in both directions."""
    return values.repeat_interleave(factor, -2).repeat_interleave(factor, -1)


def draw(
    visualizer: Visualizer, sample: BaseDataElement, out_file: Path, score_thr: float
) -> np.ndarray:
    """Draws ground truth (left) and prediction (right) of one image into a file.

    Args:
        visualizer (Visualizer): mmdet's or mmseg's visualizer.
        sample (BaseDataElement): Ground truth and prediction.
        out_file (Path): Picture to write.
        score_thr (float): Instances with a lower score are left out.

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


def add_captions(picture: np.ndarray) -> np.ndarray:
    """Puts 'ground truth' and 'prediction' above the halves of a picture."""
    strip = np.full((CAPTION_HEIGHT, picture.shape[1], 3), 255, np.uint8)
    for text, x in (('ground truth', 4), ('prediction', picture.shape[1] // 2 + 4)):
        origin = (x, CAPTION_HEIGHT - 9)
        cv2.putText(strip, text, origin, cv2.FONT_HERSHEY_SIMPLEX, 0.6, (0, 0, 0), 1, cv2.LINE_AA)
    return np.concatenate([strip, picture])


def contact_sheet(pictures: Sequence[np.ndarray], columns: int, width: int) -> np.ndarray:
    """Puts captioned pictures on one sheet.

    Args:
        pictures (Sequence[np.ndarray]): Pictures (H, W, 3); all get the first one's size.
        columns (int): Pictures in a row.
        width (int): Width of the sheet in pixels.

    Returns:
        np.ndarray: The sheet (H, width, 3).
    """
    cell_width = (width - (columns + 1) * GAP) // columns
    cell_height = round(pictures[0].shape[0] * cell_width / pictures[0].shape[1])
    rows = -(-len(pictures) // columns)
    row_height = cell_height + CAPTION_HEIGHT + GAP
    sheet = np.full((rows * row_height + GAP, width, 3), 255, np.uint8)
    for i, picture in enumerate(pictures):
        cell = cv2.resize(picture, (cell_width, cell_height), interpolation=cv2.INTER_AREA)
        middle = cell_width // 2
        cell[:, middle - GAP // 4 : middle + GAP // 4] = 255
        cell = add_captions(cell)
        y, x = GAP + i // columns * row_height, GAP + i % columns * (cell_width + GAP)
        sheet[y : y + cell.shape[0], x : x + cell_width] = cell
    return sheet


def build_visualizer(cfg: Config, dataset: torch.utils.data.Dataset) -> Visualizer:
    """Builds the config's visualizer, without a backend: pictures go to files."""
    settings = dict(cfg.visualizer, vis_backends=None, save_dir=None, name='draw_predictions')
    settings.setdefault('alpha', 0.6)
    visualizer = VISUALIZERS.build(settings)
    visualizer.dataset_meta = dict(dataset.metainfo)
    return visualizer


def draw_predictions(cfg: Config, args: argparse.Namespace) -> None:
    """Predicts, draws and writes the pictures and the contact sheet."""
    dataset = build_dataset(cfg)
    indices = choose_images(dataset, args.num_images)
    visualizer = build_visualizer(cfg, dataset)
    out_dir = Path(args.out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    pictures = []
    for sample in predict(cfg, args.checkpoint, dataset, indices):
        out_file = out_dir / f'{Path(sample.img_path).stem}.png'
        pictures.append(draw(visualizer, sample, out_file, args.score_thr))
    sheet = contact_sheet(pictures, args.columns, args.sheet_width)
    cv2.imwrite(str(out_dir / 'contact_sheet.jpg'), sheet, [cv2.IMWRITE_JPEG_QUALITY, 88])
    logger.info('%d pictures and contact_sheet.jpg are in %s', len(pictures), out_dir)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description='Draw predictions beside the ground truth.',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument('config', help='config file of a detector with masks or a segmentor')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('out_dir', help='folder for the pictures')
    parser.add_argument('--num-images', type=int, default=12, help='number of images')
    parser.add_argument('--score-thr', type=float, default=0.5, help='lowest score drawn')
    parser.add_argument('--columns', type=int, default=2, help='pictures in a row of the sheet')
    parser.add_argument('--sheet-width', type=int, default=1400, help='width of the sheet')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, default={}, help='KEY=VALUE settings'
    )
    args = parser.parse_args(argv)
    for name in ('num_images', 'columns', 'sheet_width'):
        if getattr(args, name) < 1:
            parser.error(f'--{name.replace("_", "-")} must be at least 1')
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    logging.basicConfig(level=logging.WARNING, format='%(message)s')
    logger.setLevel(logging.INFO)
    args = parse_args(argv)
    # The visualizer of mmdet varies the colours of the instances at random.
    np.random.seed(0)
    register_config_packages()
    cfg = Config.fromfile(args.config)
    cfg.merge_from_dict(args.cfg_options)
    draw_predictions(cfg, args)


if __name__ == '__main__':
    main()
