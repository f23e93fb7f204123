"""Run a detector, a segmentor or a classifier on images and draw the predictions.

The inferencer of mmdet, mmseg or mmpretrain runs the model, depending on the config. The results
are in OUT_DIR/vis, under the file names of the images. Small images are enlarged.

Example:
    python demo/inference.py photo.jpg configs/mask_rcnn/mask-rcnn_vmamba-t_fpn_1x_coco.py \
        work_dirs/mask-rcnn_vmamba-t_fpn_1x_coco/epoch_12.pth --out-dir outputs
"""

import argparse
import copy
import functools
import importlib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.infer import BaseInferencer
from mmengine.registry import DATASETS, VISUALIZERS, DefaultScope

from mmvmamba.engine import cli, console, errors
from mmvmamba.engine.checks.configs import leaf_datasets
from mmvmamba.engine.errors import UserError
from mmvmamba.engine.run_summary import count
from mmvmamba.engine.visualizer import ALPHA, use_adaptive_visualizer
from mmvmamba.models.loading import load_whole, read_checkpoint

#: Module, class and arguments of the inferencer of each package.
INFERENCERS = {
    'mmdet': ('mmdet.apis', 'DetInferencer', {}),
    'mmseg': ('mmseg.apis', 'MMSegInferencer', {}),
    'mmpretrain': ('mmpretrain', 'ImageClassificationInferencer', dict(pretrained=False)),
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Run a model on images and draw the predictions.')
    parser.add_argument('images', nargs='+', help='image files or folders of images')
    cli.add_config_arguments(parser)
    parser.add_argument('checkpoint', help='checkpoint file or URL')
    parser.add_argument('--out-dir', default='outputs', help='output folder (default: outputs)')
    parser.add_argument('--device', help='cpu, cuda:0, ... (default: a GPU if available)')
    parser.add_argument(
        '--score-thr',
        type=float,
        default=0.3,
        help='minimum score of the detections to draw (default: 0.3)',
    )
    return parser.parse_args()


def find_images(names: Sequence[str]) -> list[str]:
    """Return the given files and the images in the given folders, with distinct stems."""
    found: dict[str, str] = {}
    for name in names:
        path = Path(name)
        if not path.exists():
            raise UserError(f'image {name!r} does not exist')
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        images = [str(p) for p in files if p.is_file() and cv2.haveImageReader(str(p))]
        if not images:
            raise UserError(f'{name!r} is not an image in a known format or a folder of images')
        for image in images:
            other = found.setdefault(Path(image).stem, image)  # mmpretrain saves STEM.png
            if other != image:
                raise UserError(
                    f'images must have different file names without suffix, but got {other!r} and '
                    f'{image!r}'
                )
    return list(found.values())


def build_inferencer(cfg: Config, filename: str, device: str | None) -> BaseInferencer:
    """Build the inferencer of the config's package and load the weights."""
    task, checkpoint = cli.task_of(cfg), read_checkpoint(filename)
    if task not in INFERENCERS:
        raise UserError(f'default_scope must be one of {tuple(INFERENCERS)}, but got {task!r}')
    cfg = copy.deepcopy(cfg)
    use_adaptive_visualizer(cfg)
    # The inferencers read the pipeline of the test data, but not inside a wrapper.
    cfg.test_dataloader.dataset = next(leaf_datasets(cfg.test_dataloader.dataset))
    module, name, options = INFERENCERS[task]
    with warnings.catch_warnings():
        # The weights are loaded below, in every naming scheme that the tools support.
        warnings.filterwarnings('ignore', message='Checkpoint is not loaded|weights is None')
        inferencer = getattr(importlib.import_module(module), name)(cfg, device=device, **options)
    load_whole(inferencer.model, checkpoint, filename)
    meta = dataset_meta(cfg, checkpoint)
    if task == 'mmpretrain':
        inferencer.classes = meta.get('classes')
        use_test_settings(inferencer, cfg)
    else:
        meta = {key: meta[key] for key in ('classes', 'palette') if meta.get(key) is not None}
        inferencer.model.dataset_meta = inferencer.visualizer.dataset_meta = meta
    if task == 'mmseg':
        # mmseg's inferencer overrides the visualizer's opacity, with 0.8 by default.
        inferencer.visualize = functools.partial(inferencer.visualize, opacity=ALPHA)
    return inferencer


def use_test_settings(inferencer: BaseInferencer, cfg: Config) -> None:
    """Apply the config's pipeline and visualizer, which mmpretrain's inferencer ignores."""
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        steps = Compose(cfg.test_dataloader.dataset.pipeline)
        if cfg.get('visualizer'):
            settings = dict(cfg.visualizer, vis_backends=None, name='inference')
            inferencer.visualizer = VISUALIZERS.build(settings)
    inferencer.pipeline = lambda path: steps(dict(img_path=path))
    # The method of the base class only calls the pipeline.
    inferencer.preprocess = super(type(inferencer), inferencer).preprocess


def dataset_meta(cfg: Config, checkpoint: Any) -> Mapping[str, Any]:
    """Return names and colors of the classes from the checkpoint, or else the test data."""
    meta = checkpoint.get('meta') or {} if isinstance(checkpoint, Mapping) else {}
    if meta.get('dataset_meta'):
        return {key.lower(): value for key, value in meta['dataset_meta'].items()}
    with DefaultScope.overwrite_default_scope(cli.task_of(cfg)):
        return DATASETS.build(dict(cfg.test_dataloader.dataset, lazy_init=True)).metainfo


@console.concise()
def main() -> None:
    args = parse_args()
    images = find_images(args.images)
    cfg = cli.load_config(args)
    inferencer = build_inferencer(cfg, args.checkpoint, args.device)
    folder = Path(args.out_dir) / 'vis'
    folder.mkdir(parents=True, exist_ok=True)
    if cli.task_of(cfg) == 'mmpretrain':
        for image, result in zip(images, inferencer(images, show_dir=str(folder)), strict=True):
            print(f'{image}: {result["pred_class"]} ({result["pred_score"]:.3f})')
    else:
        options = dict(pred_score_thr=args.score_thr) if cli.task_of(cfg) == 'mmdet' else {}
        inferencer(images, out_dir=args.out_dir, **options)
    print(f'wrote {count(len(images), "image")} to {folder}')


if __name__ == '__main__':
    errors.run(main, ValueError, TypeError)
