"""Predicts photographs with a detector, a segmentor or a classifier, and draws what it finds.

The inferencer of mmdet, mmseg or mmpretrain does the work; the config says which. The pictures are
in OUT_DIR/vis, under the names of the photographs.

Example:
    python demo/inference.py photo.jpg configs/mask_rcnn/mask-rcnn_vmamba-t_fpn_1x_coco.py \
        work_dirs/mask-rcnn_vmamba-t_fpn_1x_coco/epoch_12.pth --out-dir outputs
"""

from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
from mmengine.config import Config
from mmengine.infer import BaseInferencer
from mmengine.registry import DATASETS, DefaultScope

from mmvmamba.engine import cli, errors
from mmvmamba.engine.errors import UserError
from mmvmamba.models.loading import load_whole, read_checkpoint

logger = logging.getLogger('inference')
SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp')


def find_images(names: Sequence[str]) -> list[str]:
    """Files, and the images in folders.

    Args:
        names (Sequence[str]): Paths of files and folders.

    Raises:
        UserError: If one does not exist or is no image, a folder holds none, or two pictures would
            have the same name.
    """
    found: dict[str, str] = {}
    for name in names:
        path = Path(name)
        if not path.exists():
            raise UserError(f'image {name!r} does not exist')
        inside = [path]
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
            if not inside:
                raise UserError(f'folder {name!r} holds no image with one of {SUFFIXES}')
        for image in inside:
            if not cv2.haveImageReader(str(image)):
                raise UserError(f'{str(image)!r} is no image, or of a format that cannot be read')
            other = found.setdefault(image.name, str(image))
            if other != str(image):
                raise UserError(f'{other!r} and {str(image)!r} would have the same picture')
    return list(found.values())


def dataset_meta(cfg: Config, checkpoint: Any) -> Mapping[str, Any]:
    """Names and colours of the classes: the checkpoint's, else those of the config's test data."""
    meta = checkpoint.get('meta') or {} if isinstance(checkpoint, Mapping) else {}
    if meta.get('dataset_meta'):
        return {key.lower(): value for key, value in meta['dataset_meta'].items()}
    dataset = dict(cfg.test_dataloader.dataset, lazy_init=True)
    with DefaultScope.overwrite_default_scope(cli.task_of(cfg)):
        return DATASETS.build(dataset).metainfo


def build_inferencer(cfg: Config, filename: str, device: str | None) -> BaseInferencer:
    """Builds the inferencer of the package that a config is for.

    Args:
        cfg (Config): The whole config.
        filename (str): Checkpoint file or URL.
        device (str, optional): 'cpu', 'cuda:0', ...; None takes a GPU where there is one.

    Raises:
        UserError: If the config is for no package that has one.
        ValueError: If the checkpoint does not fit.
    """
    task, checkpoint = cli.task_of(cfg), read_checkpoint(filename)
    with warnings.catch_warnings():
        # The weights come afterwards, in every spelling that the tools take.
        warnings.filterwarnings('ignore', message='Checkpoint is not loaded|weights is None')
        if task == 'mmdet':
            from mmdet.apis import DetInferencer

            inferencer = DetInferencer(cfg, device=device)
        elif task == 'mmseg':
            from mmseg.apis import MMSegInferencer

            inferencer = MMSegInferencer(cfg, device=device)
        elif task == 'mmpretrain':
            from mmpretrain import ImageClassificationInferencer

            inferencer = ImageClassificationInferencer(cfg, pretrained=False, device=device)
        else:
            raise UserError(f'default_scope must be mmdet, mmseg or mmpretrain, but is {task!r}')
    load_whole(inferencer.model, checkpoint, filename)
    meta = dataset_meta(cfg, checkpoint)
    if task == 'mmpretrain':
        inferencer.classes = meta.get('classes')
    else:
        names = {key: meta[key] for key in ('classes', 'palette') if meta.get(key) is not None}
        inferencer.model.dataset_meta = names
        inferencer.visualizer.dataset_meta = names
    return inferencer


def predict(
    inferencer: BaseInferencer, images: list[str], out_dir: str, score_thr: float, task: str
) -> Path:
    """Predicts and draws one image after the other; returns the folder of the pictures."""
    folder = Path(out_dir) / 'vis'
    folder.mkdir(parents=True, exist_ok=True)
    if task == 'mmdet':
        inferencer(images, out_dir=out_dir, pred_score_thr=score_thr)
    elif task == 'mmseg':
        inferencer(images, out_dir=out_dir)
    else:
        for image, result in zip(images, inferencer(images, show_dir=str(folder)), strict=True):
            logger.info('%s: %s (%.3f)', image, result['pred_class'], result['pred_score'])
    return folder


def parse_args() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description='Predict photographs and draw what is found.',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument('images', nargs='+', help='image files, and folders of them')
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file or URL')
    parser.add_argument('--out-dir', default='outputs', help='folder for the pictures')
    parser.add_argument('--device', help='cpu, cuda:0, ...; a GPU if there is one')
    parser.add_argument(
        '--score-thr', type=float, default=0.3, help='lowest score drawn, of a detector'
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=cli.KeyValueAction,
        default={},
        help='settings that replace those of the config',
    )
    parser.set_defaults(launcher='none', local_rank=0, work_dir=None)
    return parser.parse_args()


def main() -> None:
    """Runs the command line."""
    logging.basicConfig(level=logging.WARNING, format='%(message)s')
    logger.setLevel(logging.INFO)
    args = parse_args()
    images = find_images(args.images)
    cfg = cli.load_config(args)
    inferencer = build_inferencer(cfg, args.checkpoint, args.device)
    folder = predict(inferencer, images, args.out_dir, args.score_thr, cli.task_of(cfg))
    logger.info('%d pictures are in %s', len(images), folder)


if __name__ == '__main__':
    errors.run(main, ValueError, TypeError)
