"""Models and images of demo/web.py."""

import argparse
import logging
import re
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
import torch.nn.functional as F
import web_drawing as drawing
import yaml
from inference import build_inferencer
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import DefaultScope

from mmvmamba.analysis.recording import record
from mmvmamba.engine import cli
from mmvmamba.engine.checks.configs import leaf_datasets
from mmvmamba.engine.errors import UserError, as_user_error
from mmvmamba.engine.work_dir import read_last_checkpoint
from mmvmamba.ops.scan_orders import resolve_pattern

CONFIGS = Path(__file__).resolve().parents[1] / 'configs'
#: The package of each task.
TASKS = {'Detection': 'mmdet', 'Segmentation': 'mmseg', 'Classification': 'mmpretrain'}
#: Folders of configs of published models, in the same order.
PUBLISHED = ('mask_rcnn', 'upernet', 'vmamba')
FORMATS = ('JPEG', 'PNG', 'WEBP', 'BMP', 'TIFF')
MAX_MEGAPIXELS, MAX_ASPECT = 25, 20
#: Longer side of an image that is drawn on, in pixels: labels must be readable.
MIN_SIDE, MAX_SIDE = 640, 1280
#: Longer side of the input from which activation maps are computed, in pixels.
MAP_SIDE = 512
#: Detections to keep: each may have a mask as large as the image.
MIN_SCORE, MAX_DETECTIONS = 0.05, 50
logger = logging.getLogger('mmvmamba.web')


class VisitorError(UserError):
    """A mistake of a visitor. The message names nothing of the computer that runs the page."""


# ---- models --------------------------------------------------------------------------------------


class Source(NamedTuple):
    """Model offered on the page."""

    name: str
    package: str
    config: str
    checkpoint: str
    is_published: bool


def find_trained(folders: Sequence[str]) -> list[Source]:
    """Find work directories, which have a config and a checkpoint, in the given folders."""
    found = {}
    for folder in map(Path, folders):
        marks = [*folder.rglob('last_checkpoint'), *folder.rglob('best_*.pth')]
        for parent in sorted({mark.parent for mark in marks}):
            try:
                (config, package), checkpoint = find_config(parent), find_checkpoint(parent)
            except ValueError as error:
                logger.warning('%s is not offered: %s', parent, error)
                continue
            name = f'{config.stem} ({parent})' if config.stem in found else config.stem
            found[name] = Source(name, package, str(config), str(checkpoint), False)
    return list(found.values())


def newest_first(paths: Iterable[Path]) -> list[Path]:
    files = [path for path in paths if path.is_file()]
    return sorted(files, key=lambda path: path.stat().st_mtime, reverse=True)


def find_config(folder: Path) -> tuple[Path, str]:
    """Return the newest config of a work directory, among other Python files, and its package.

    Raises:
        ValueError: If there is none.
    """
    for path in newest_first(folder.glob('*.py')):
        text = path.read_text(encoding='utf-8', errors='replace')
        package = re.search(r"^default_scope = '(\w+)'", text, re.MULTILINE)
        if package and package[1] in TASKS.values():
            return path, package[1]
    raise ValueError(f'it has no config with a default_scope of {tuple(TASKS.values())}')


def find_checkpoint(folder: Path) -> Path:
    """Return the best checkpoint of a work directory, or else the last one.

    Raises:
        ValueError: If there is none in the folder.
    """
    for best in newest_first(folder.glob('best_*.pth')):
        return best
    last = read_last_checkpoint(str(folder))
    if last is None:
        raise ValueError('its last_checkpoint is empty')
    path = folder / Path(last).name  # the folder may have been moved
    if not path.is_file():
        raise ValueError(f'it does not have the file of its last_checkpoint, {last!r}')
    return path


def find_published() -> list[Source]:
    """Read the models with published weights from the metafiles."""
    found = []
    for folder, package in zip(PUBLISHED, TASKS.values(), strict=True):
        content = yaml.safe_load((CONFIGS / folder / 'metafile.yml').read_text(encoding='utf-8'))
        found += [
            Source(
                f'{m["Name"]} (published)',
                package,
                str(CONFIGS.parent / m['Config']),
                m['Weights'],
                True,
            )
            for m in content['Models']
            if m.get('Weights')
        ]
    return found


class Prediction(NamedTuple):
    """A predicted sample, the RGB image to draw it on, and sentences about it."""

    visualizer: Any
    classes: Sequence[str]
    sample: Any
    image: np.ndarray
    facts: tuple[str, ...]


class Model:
    """A detector, segmentor or classifier with its weights.

    Args:
        config (str): The config file.
        checkpoint (str): The weights, a path or URL.
        device (str | None): The device; None stands for a GPU if there is one.
    """

    def __init__(self, config: str, checkpoint: str, device: str | None) -> None:
        options = dict(cfg_options={}, work_dir=None, launcher='none', local_rank=0)
        cfg = cli.load_config(argparse.Namespace(config=config, **options))
        self.scope = cfg.default_scope
        # The inferencers read the pipeline of a dataset that is not inside a wrapper.
        cfg.test_dataloader.dataset = next(leaf_datasets(cfg.test_dataloader.dataset))
        with (
            DefaultScope.overwrite_default_scope(self.scope),
            as_user_error(ValueError, TypeError),
        ):
            self.inferencer = build_inferencer(cfg, checkpoint, device)
        self.net = self.inferencer.model.eval()
        steps = [
            s for s in cfg.test_dataloader.dataset.pipeline if not type_of(s).startswith('Load')
        ]
        with DefaultScope.overwrite_default_scope(self.scope):
            self.steps = Compose(steps)
        # A segmentor whose pipeline resizes nothing expects objects of the size that it has seen.
        is_whole = self.scope == 'mmseg' and cfg.model.test_cfg.get('mode') == 'whole'
        resizes = any('Resize' in type_of(step) for step in steps)
        self.side = min(cfg.crop_size) if is_whole and not resizes and 'crop_size' in cfg else None
        parameters = sum(p.numel() for p in self.net.parameters()) / 1e6
        self.name = f'{Path(config).stem}, {parameters:.1f} million parameters.'

    @property
    def classes(self) -> Sequence[str]:
        if self.scope != 'mmpretrain':
            return self.net.dataset_meta['classes']
        return self.inferencer.classes or [str(i) for i in range(self.net.head.num_classes)]

    def prepare(self, image: np.ndarray) -> dict[str, Any]:
        """Run the config's test pipeline on a BGR image."""
        if self.side:
            image = resize(image, self.side / min(image.shape[:2]))
        shape = image.shape[:2]
        data = dict(img=image, img_shape=shape, ori_shape=shape, img_path=None, img_id=0)
        with DefaultScope.overwrite_default_scope(self.scope):
            return self.steps(data)

    @torch.no_grad()
    def predict(self, image: np.ndarray) -> Prediction:
        """Predict for a BGR image, scaled to the size of the image that is drawn."""
        start = time.perf_counter()
        data = self.prepare(image)
        sample, drawn = data['data_samples'], resize(image, max(1, MIN_SIDE / max(image.shape[:2])))
        if self.scope != 'mmpretrain':
            # The heads scale their predictions to these sizes.
            height, width = sample.img_shape
            scale = (width / drawn.shape[1], height / drawn.shape[0])
            sample.set_metainfo(dict(ori_shape=drawn.shape[:2], scale_factor=scale))
        with DefaultScope.overwrite_default_scope(self.scope):
            sample = smaller(self.net.test_step(pseudo_collate([data]))[0]).cpu()
        seconds, device = time.perf_counter() - start, next(self.net.parameters()).device.type
        facts = (f'{seconds:.2f} seconds on the {"CPU" if device == "cpu" else "GPU"}.', self.name)
        visualizer = self.inferencer.visualizer
        return Prediction(visualizer, self.classes, sample, drawn[..., ::-1], facts)

    @torch.no_grad()
    def look_inside(self, image: np.ndarray, point: tuple[float, float], stage: int) -> str:
        """Draw the maps of a point, whose x and y are shares of the image, and the scan paths."""
        data = self.prepare(image)
        view = data['inputs'].permute(1, 2, 0).cpu().numpy()[..., ::-1]
        x, y = self.locate(image.shape[:2], point)
        with DefaultScope.overwrite_default_scope(self.scope):
            inputs = self.net.data_preprocessor(pseudo_collate([data]))['inputs']
        size, backbone = tuple(inputs.shape[-2:]), self.net.backbone
        if (scale := MAP_SIDE / max(size)) < 1:
            inputs = F.interpolate(inputs, scale_factor=scale, mode='bilinear', antialias=True)
        with as_user_error(ValueError):
            maps = record(backbone, stage, lambda: backbone(inputs))[-1]
        if not hasattr(maps, 'passes'):
            raise VisitorError(f'{type(backbone).__name__} has no scan paths')
        rows, columns = maps.shape
        query = int(y / size[0] * rows) * columns + int(x / size[1] * columns)
        scan = backbone.settings.scan
        orders = ('rows', 'columns') if scan == 'cascade' else resolve_pattern(scan)
        orders = [order for order in orders for _ in range(len(maps.paths) // len(orders))]
        return drawing.draw_inside(view, size, maps, query, orders)

    def locate(self, shape: tuple[int, int], point: tuple[float, float]) -> tuple[float, float]:
        """Return x and y of a point in the network's input, by a trip of x and y as colors."""
        y, x = (np.linspace(0, 255, side).astype(np.uint8) for side in shape)
        grid = np.stack([*np.meshgrid(x, y), np.zeros(shape, np.uint8)], axis=-1)
        at = self.prepare(grid)['inputs'][:2].float()
        distance = (at - torch.tensor(point).view(2, 1, 1) * 255).square().sum(0)
        rows, columns = (distance == distance.min()).nonzero(as_tuple=True)
        return columns.double().mean().item(), rows.double().mean().item()


def smaller(sample: Any) -> Any:
    """Return a predicted sample without weak detections and the scores of all pixels."""
    sample.pop('seg_logits', None)
    if 'pred_instances' in sample:
        found = sample.pred_instances
        found = found[found.scores >= MIN_SCORE]
        order = found.scores.argsort(descending=True)[:MAX_DETECTIONS]
        sample.pred_instances = found[order]
    return sample


def type_of(step: dict[str, Any]) -> str:
    kind = step['type']
    return (kind if isinstance(kind, str) else kind.__name__).rpartition('.')[2]


# ---- images --------------------------------------------------------------------------------------


class Picture(NamedTuple):
    """A BGR image, its width and height before it was resized, and a notice if it was."""

    image: np.ndarray
    size: tuple[int, int]
    notice: str


def read_image(path: Path) -> Picture:
    """Read an image, not larger than MAX_SIDE.

    One library checks and decodes it: two may disagree on the size that a file declares.

    Raises:
        VisitorError: If it is not an image, is damaged, or is too large.
    """
    try:
        opened = PIL.Image.open(path, formats=FORMATS)  # reads no pixels
    except PIL.Image.DecompressionBombError as error:
        raise VisitorError(f'The image has more than {MAX_MEGAPIXELS} megapixels.') from error
    except (OSError, ValueError) as error:
        formats = 'JPEG, PNG, WebP, BMP or TIFF'
        raise VisitorError(f'This file is not an image in {formats} format.') from error
    with opened:
        check_size(*opened.size)
        try:
            image = to_bgr(PIL.ImageOps.exif_transpose(opened))
        except (OSError, SyntaxError, ValueError, EOFError) as error:
            raise VisitorError('This image cannot be read. It may be damaged.') from error
    height, width = image.shape[:2]  # of the upright image
    image = resize(image, min(1, MAX_SIDE / max(width, height)))
    after = f'{image.shape[1]} x {image.shape[0]}'
    is_resized = image.shape[:2] != (height, width)
    notice = f'The image was resized from {width} x {height} to {after}.' if is_resized else ''
    return Picture(image, (width, height), notice)


def check_size(width: int, height: int) -> None:
    if width * height > MAX_MEGAPIXELS * 1e6:
        raise VisitorError(
            f'The image has {width * height / 1e6:.0f} megapixels. The limit is {MAX_MEGAPIXELS}.'
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise VisitorError(
            f'One side is more than {MAX_ASPECT} times as long as the other ({width} x {height}).'
        )


def to_bgr(image: PIL.Image.Image) -> np.ndarray:
    """Return the pixels of an image (H, W, 3) as 8-bit BGR."""
    if image.mode.startswith('I;16'):  # Pillow would clip the values
        image = PIL.Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return np.ascontiguousarray(np.asarray(image.convert('RGB'))[..., ::-1])


def resize(image: np.ndarray, factor: float) -> np.ndarray:
    if factor == 1:
        return image
    size = [max(1, round(factor * side)) for side in image.shape[1::-1]]
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC)
