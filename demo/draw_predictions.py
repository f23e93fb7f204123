"""Draw the ground truth and the predictions of the demo's detector and segmentor.

`demo/run_demo.py` draws a contact sheet for each model. After a run, this script draws both models
on the same images and saves the result as WORK_DIR/hero.jpg. The choice of images does not depend
on the predictions: the script takes the validation images that show the most classes, among those
whose bounding boxes do not overlap.

Example:
    python demo/draw_predictions.py work_dirs/demo
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, MODELS, VISUALIZERS, DefaultScope
from mmengine.runner import load_checkpoint
from mmengine.structures import BaseDataElement
from mmengine.visualization import Visualizer
from PIL import Image, ImageDraw

from mmvmamba.engine import drawing, errors
from mmvmamba.engine.visualizer import enlarge_sample, use_adaptive_visualizer
from mmvmamba.engine.work_dir import last_checkpoint
from mmvmamba.registry import register_config_packages

REPO = Path(__file__).resolve().parent.parent
DETECTOR = 'configs/demo/mask-rcnn_vmamba-demo_fpn_demo.py'
SEGMENTOR = 'configs/demo/vmamba-demo_upernet_demo-160x160.py'
#: Minimum score of the detections to draw.
SCORE = 0.5
#: Sizes on a sheet, in pixels.
CELL, GAP, FONT = 390, 8, 22
#: Font size on the enlarged images, which are resized to CELL.
LABEL_FONT = 27


def draw_predictions(
    cfg: Config, checkpoint: str, out_dir: Path, device: str = 'cpu', num_images: int = 8
) -> None:
    """Draw predictions on evenly spaced test images, and a contact sheet of them."""
    dataset, model, visualizer = build(cfg, checkpoint, device)
    out_dir.mkdir(parents=True, exist_ok=True)
    cells = []
    for i in range(num_images):
        image, sample = predict(dataset, model, i * len(dataset) // num_images)
        pair = [draw(visualizer, image, sample, truth) for truth in (True, False)]
        save(np.hstack(pair), out_dir / f'{Path(sample.img_path).stem}.png')
        cells += pair
    captions = ['ground truth', 'prediction'] * 2
    save(sheet(cells, captions, dataset.metainfo), out_dir / 'contact_sheet.jpg')


def draw_hero(
    detector: Sequence[Any], segmentor: Sequence[Any], out_file: Path, num_images: int = 3
) -> None:
    """Draw the predictions of two models on one sheet.

    Args:
        detector (Sequence): Config, checkpoint and device.
        segmentor (Sequence): Config, checkpoint and device.
        out_file (Path): Image file to write.
        num_images (int): Number of rows. Defaults to 3.
    """
    det_data, det_model, det_visualizer = build(*detector)
    seg_data, seg_model, seg_visualizer = build(*segmentor)
    cells = []
    for i in clear_images(det_data, seg_data, num_images):
        image, det = predict(det_data, det_model, i)
        _, seg = predict(seg_data, seg_model, i)
        truth = draw(seg_visualizer, image, seg, truth=True, with_labels=False)
        det_visualizer.alpha = 0  # the label map is already drawn
        truth = draw(det_visualizer, truth, det, truth=True)
        det_visualizer.alpha = seg_visualizer.alpha
        cells += [image, truth, draw(det_visualizer, image, det)]
        cells.append(draw(seg_visualizer, image, seg, with_labels=False))
    captions = ['input', 'ground truth', 'Mask R-CNN', 'UperNet']
    save(sheet(cells, captions, seg_data.metainfo), out_file)


def build(cfg: Config, checkpoint: str, device: str) -> tuple[Any, torch.nn.Module, Visualizer]:
    """Build the test data, the model with its weights and the visualizer of a config."""
    cfg = cfg.copy()
    use_adaptive_visualizer(cfg)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        dataset = DATASETS.build(cfg.test_dataloader.dataset)
        model = MODELS.build(cfg.model)
        options = dict(vis_backends=None, name=cfg.default_scope, font_size=LABEL_FONT, alpha=0.55)
        visualizer = VISUALIZERS.build(dict(cfg.visualizer, **options))
    visualizer.dataset_meta = dataset.metainfo
    load_checkpoint(model, checkpoint, map_location='cpu', strict=True, logger='silent')
    return dataset, model.to(device).eval(), visualizer


def clear_images(det_data: Any, seg_data: Any, num_images: int) -> list[int]:
    """Return the indices of the images with the most classes whose boxes do not overlap."""
    numbers = {}
    for i, (det, seg) in enumerate(zip(det_data, seg_data, strict=True)):
        boxes = det['data_samples'].gt_instances.bboxes
        if not boxes.overlaps(boxes, boxes).triu(1).any():
            numbers[i] = len(seg['data_samples'].gt_sem_seg.data.unique())
    return sorted(numbers, key=lambda i: -numbers[i])[:num_images]


def predict(dataset: Any, model: torch.nn.Module, index: int) -> tuple[np.ndarray, BaseDataElement]:
    """Return an image (RGB) with its ground truth and predictions, all of them enlarged."""
    data = dataset[index]
    image, data['data_samples'] = enlarge(data['data_samples'])
    with torch.no_grad():
        (sample,) = model.test_step(pseudo_collate([data]))
    return image, sample.to('cpu')


def enlarge(sample: BaseDataElement) -> tuple[np.ndarray, BaseDataElement]:
    """Return the image (RGB) of a sample and the sample, for predictions at the larger size."""
    image = cv2.cvtColor(cv2.imread(sample.img_path), cv2.COLOR_BGR2RGB)
    factor = drawing.enlargement(image.shape)
    image, sample = drawing.enlarge_image(image, factor), enlarge_sample(sample, factor)
    # Models scale their predictions to these sizes.
    sample.set_metainfo(dict(ori_shape=image.shape[:2]))
    if 'scale_factor' in sample:
        sample.set_metainfo(dict(scale_factor=tuple(s / factor for s in sample.scale_factor)))
    return image, sample


def draw(
    visualizer: Visualizer,
    image: np.ndarray,
    sample: BaseDataElement,
    truth: bool = False,
    **options: Any,
) -> np.ndarray:
    """Draw the ground truth or the prediction of a sample."""
    if 'pred_instances' in sample:
        options.update(pred_score_thr=SCORE)
    visualizer.add_datasample('', image, sample, draw_gt=truth, draw_pred=not truth, **options)
    return visualizer.get_image()


def sheet(
    cells: Sequence[np.ndarray], captions: Sequence[str], metainfo: dict[str, Any]
) -> np.ndarray:
    """Arrange images in columns, with captions above and a legend of the classes below."""
    columns = len(captions)
    rows = -(-len(cells) // columns)
    style = drawing.Style(FONT, 1)
    line = style.label_height + 2 * GAP
    width = columns * CELL + (columns + 1) * GAP
    legend = legend_rows(metainfo['classes'], style, width - 2 * GAP)
    height = line + rows * (CELL + GAP) + len(legend) * line
    picture = Image.new('RGB', (width, height), 'white')
    pen = ImageDraw.Draw(picture)
    for i, caption in enumerate(captions):
        center = GAP + CELL // 2 + i * (CELL + GAP)
        pen.text((center, line // 2), caption, font=style.font, fill='black', anchor='mm')
    for i, cell in enumerate(cells):
        y, x = divmod(i, columns)
        small = cv2.resize(cell, (CELL, CELL), interpolation=cv2.INTER_AREA)
        picture.paste(Image.fromarray(small), (GAP + x * (CELL + GAP), line + y * (CELL + GAP)))
    for i, row in enumerate(legend):
        y = height - (len(legend) - i) * line + line // 2
        for label, x in row:
            color = drawing.class_color(label, metainfo['palette'])
            pen.rectangle((x, y - FONT // 2, x + FONT, y + FONT // 2), fill=color)
            name = metainfo['classes'][label]
            pen.text((x + FONT + GAP, y), name, font=style.font, fill='black', anchor='lm')
    return np.array(picture)


def legend_rows(
    names: Sequence[str], style: drawing.Style, width: int
) -> list[list[tuple[int, int]]]:
    """Break the legend into rows of (class index, x)."""
    rows: list[list[tuple[int, int]]] = [[]]
    x = GAP
    for label, name in enumerate(names):
        length = 2 * FONT + GAP + style.label_width(name)
        if x + length > width and rows[-1]:
            rows.append([])
            x = GAP
        rows[-1].append((label, x))
        x += length
    return rows


def save(picture: np.ndarray, path: Path) -> None:
    """Save a picture (RGB)."""
    Image.fromarray(picture).save(path, quality=75)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Draw the predictions of both models of the demo.')
    parser.add_argument('work_dir', type=Path, help="the demo's --work-dir")
    parser.add_argument('--num-images', type=int, default=3, help='number of rows (default: 3)')
    parser.add_argument('--device', default='cpu', help='cpu, cuda:0, ... (default: cpu)')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    work_dir = args.work_dir.resolve()
    os.chdir(REPO)  # the configs name the data by a relative path
    register_config_packages()
    models = []
    for name, config in (('detection', DETECTOR), ('segmentation', SEGMENTOR)):
        checkpoint = last_checkpoint(str(work_dir / name / 'train'))
        models.append((Config.fromfile(config), checkpoint, args.device))
    out_file = work_dir / 'hero.jpg'
    draw_hero(*models, out_file, args.num_images)
    print(out_file)


if __name__ == '__main__':
    errors.run(main, OSError)
