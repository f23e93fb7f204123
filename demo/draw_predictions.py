"""Pictures of ground truth beside predictions, for a detector with masks or a segmentor."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, MODELS, VISUALIZERS, DefaultScope
from mmengine.runner import load_checkpoint
from mmengine.structures import BaseDataElement, PixelData

#: Shortest side of a drawn image in pixels, so that outlines and labels can be read.
MIN_SIDE = 400
#: Size of a picture on the contact sheet, and the height of its caption.
CELL = (692, 346)
CAPTION_HEIGHT = 28


def draw_predictions(
    cfg: Config, checkpoint: str, out_dir: Path, device: str = 'cpu', num_images: int = 12
) -> None:
    """Draw predictions of test images, spread evenly over the data, and a contact sheet."""
    # mmdet's visualizer draws the colors of the instances at random.
    np.random.seed(0)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        dataset = DATASETS.build(cfg.test_dataloader.dataset)
        model = MODELS.build(cfg.model)
        visualizer = VISUALIZERS.build(
            dict(cfg.visualizer, vis_backends=None, name=cfg.default_scope, alpha=0.6)
        )
    visualizer.dataset_meta = dataset.metainfo
    load_checkpoint(model, checkpoint, map_location='cpu', strict=True, logger='silent')
    model.to(device).eval()
    out_dir.mkdir(parents=True, exist_ok=True)
    pictures = []
    for i in range(num_images):
        data = dataset[i * len(dataset) // num_images]
        sample = data['data_samples']
        image = enlarge(sample)
        with torch.no_grad():
            (sample,) = model.test_step(pseudo_collate([data]))
        out_file = out_dir / f'{Path(sample.img_path).stem}.png'
        options = dict(pred_score_thr=0.5) if 'pred_instances' in sample else {}
        visualizer.add_datasample('', image, sample.to('cpu'), out_file=str(out_file), **options)
        pictures.append(cv2.imread(str(out_file)))
    sheet = contact_sheet(pictures)
    cv2.imwrite(str(out_dir / 'contact_sheet.jpg'), sheet, [cv2.IMWRITE_JPEG_QUALITY, 88])


def enlarge(sample: BaseDataElement) -> np.ndarray:
    """Enlarge the ground truth and the future predictions of a sample; return its image (RGB)."""
    image = cv2.cvtColor(cv2.imread(sample.img_path), cv2.COLOR_BGR2RGB)
    factor = max(1, -(-MIN_SIDE // min(image.shape[:2])))
    image = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
    # Models scale their predictions to these sizes.
    sample.set_metainfo(dict(ori_shape=image.shape[:2]))
    if 'scale_factor' in sample:
        sample.set_metainfo(dict(scale_factor=tuple(s / factor for s in sample.scale_factor)))
    if 'gt_instances' in sample:
        sample.gt_instances.bboxes.rescale_((factor, factor))
        sample.gt_instances.masks = sample.gt_instances.masks.resize(image.shape[:2])
    if 'gt_sem_seg' in sample:
        labels = sample.gt_sem_seg.data.repeat_interleave(factor, -2)
        sample.gt_sem_seg = PixelData(data=labels.repeat_interleave(factor, -1))
    return image


def contact_sheet(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Put pictures (H, W, 3) with captions on one sheet of two columns."""
    cells = []
    for picture in pictures:
        cell = cv2.resize(picture, CELL, interpolation=cv2.INTER_AREA)
        cell[:, CELL[0] // 2 - 2 : CELL[0] // 2 + 2] = 255
        cell = cv2.copyMakeBorder(
            cell, CAPTION_HEIGHT, 8, 4, 4, cv2.BORDER_CONSTANT, value=(255, 255, 255)
        )
        for text, x in (('ground truth', 8), ('prediction', 8 + CELL[0] // 2)):
            origin, font = (x, CAPTION_HEIGHT - 9), cv2.FONT_HERSHEY_SIMPLEX
            cv2.putText(cell, text, origin, font, 0.6, (0, 0, 0), 1, cv2.LINE_AA)
        cells.append(cell)
    cells += [np.full_like(cells[0], 255)] * (len(cells) % 2)
    return np.vstack([np.hstack(cells[i : i + 2]) for i in range(0, len(cells), 2)])
