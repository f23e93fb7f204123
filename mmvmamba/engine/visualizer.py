"""Visualizers for images of any size and with any number of channels."""

import inspect
from collections.abc import Sequence
from typing import Any

import cv2
import mmcv
import numpy as np
import torch
from mmengine import fileio
from mmengine.config import Config
from mmengine.dist import master_only
from mmengine.registry import VISUALIZERS as ROOT_VISUALIZERS
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from mmengine.visualization import Visualizer

from mmvmamba.registry import VISUALIZERS

from . import drawing
from .errors import as_user_error

#: The stock visualizers that :func:`use_adaptive_visualizer` replaces.
STOCK = ('mmdet.DetLocalVisualizer', 'mmseg.SegLocalVisualizer', 'mmpretrain.UniversalVisualizer')
#: Opacity of masks. The default of the stock visualizers, 0.8, hides the image.
ALPHA = 0.45

#: Percentiles of a band that become black and white.
_STRETCH = (2, 98)
_TIFF = ('.tif', '.tiff')


class AdaptiveMixin:
    """Scale drawings with the image; see :func:`adaptive_visualizer`."""

    def __init__(
        self, name: str = 'visualizer', font_size: int | None = None, **kwargs: Any
    ) -> None:
        super().__init__(name, **kwargs)
        self.font_size = font_size

    @master_only
    def add_datasample(
        self, name: str, image: np.ndarray, data_sample: Any = None, *args: Any, **kwargs: Any
    ) -> None:
        """Draw a sample as mmseg's and mmdet's visualizers do, but enlarge small images."""
        factor = drawing.enlargement(image.shape)
        if factor > 1:
            image = drawing.enlarge_image(np.clip(image, 0, 255).astype(np.uint8), factor)
            if data_sample is not None:
                data_sample = enlarge_sample(data_sample, factor)
        super().add_datasample(name, image, data_sample, *args, **kwargs)

    def _draw_instances(
        self,
        image: np.ndarray,
        instances: InstanceData,
        classes: Sequence[str] | None,
        palette: Any,
    ) -> np.ndarray:
        palette = palette if isinstance(palette, list | tuple) else None
        labels = [int(label) for label in instances.labels]
        masks = _masks_of(instances)
        drawn = drawing.draw_instances(
            image,
            _boxes_of(instances, masks),
            masks,
            _texts_of(instances, labels, classes),
            [drawing.class_color(label, palette) for label in labels],
            drawing.Style.of(image, self.font_size),
            self.alpha,
        )
        self.set_image(drawn)
        return drawn

    def _draw_sem_seg(
        self,
        image: np.ndarray,
        sem_seg: PixelData,
        classes: Sequence[str],
        palette: Any,
        with_labels: bool = True,
    ) -> np.ndarray:
        if 'data' not in sem_seg:  # mmdet's, next to panoptic segmentation
            return super()._draw_sem_seg(image, sem_seg, classes, palette)
        labels = np.asarray(sem_seg.data.cpu()).reshape(image.shape[:2])
        style = drawing.Style.of(image, self.font_size)
        drawn = drawing.draw_label_map(
            image, labels, classes, palette, style, self.alpha, with_labels
        )
        self.set_image(drawn)
        return drawn

    @master_only
    def visualize_cls(
        self,
        image: np.ndarray,
        data_sample: Any,
        classes: Sequence[str] | None = None,
        draw_gt: bool = True,
        draw_pred: bool = True,
        draw_score: bool = True,
        **kwargs: Any,
    ) -> Any:
        """Draw a sample as mmpretrain's visualizer does, but with the text above the image."""
        classes = classes or (self.dataset_meta or {}).get('classes')
        lines = []
        if draw_gt and 'gt_label' in data_sample:
            names = [_name_of(label, classes) for label in data_sample.gt_label.tolist()]
            lines.append('ground truth: ' + ', '.join(names))
        if draw_pred and 'pred_label' in data_sample:
            scores = data_sample.get('pred_score') if draw_score else None
            for label in data_sample.pred_label.tolist():
                score = '' if scores is None else f' {scores[label]:.2f}'
                lines.append(_name_of(label, classes) + score)
        image = self._picture(image, data_sample)
        image = drawing.enlarge_image(image, drawing.enlargement(image.shape))
        if lines:
            image = drawing.add_caption(image, lines, self.font_size)
        # The text is already drawn.
        options = dict(draw_gt=False, draw_pred=False)
        return super().visualize_cls(image, data_sample, classes, **options, **kwargs)

    def _picture(self, image: np.ndarray, data_sample: Any) -> np.ndarray:
        path = _path_of(data_sample)
        # mmpretrain's hook passes the network's input, whose channels may be reversed.
        return image if path is None else mmcv.imfrombytes(fileio.get(path), channel_order='rgb')


class BandsMixin:
    """Draw three bands of an image instead of all; see :func:`multispectral_visualizer`."""

    def __init__(
        self, name: str = 'visualizer', bands: Sequence[int] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(name, **kwargs)
        self.bands = bands
        # The hooks and inferencers read the images again, and the default reader fails for them.
        mmcv.use_backend('tifffile')

    @master_only
    def add_datasample(
        self,
        name: str,
        image: np.ndarray,
        data_sample: Any = None,
        *args: Any,
        out_file: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Draw a sample as mmseg's and mmdet's visualizers do."""
        image = self._picture(image, data_sample)
        out_file = _as_png(out_file)
        super().add_datasample(name, image, data_sample, *args, out_file=out_file, **kwargs)

    def _picture(self, image: np.ndarray, data_sample: Any) -> np.ndarray:
        path = _path_of(data_sample)
        if path is not None:
            # mmpretrain's hook has cast the image to 8 bits, and inferencers reverse its channels.
            image = mmcv.imfrombytes(fileio.get(path), backend='tifffile')
        with as_user_error(ValueError):
            return picture_of_bands(image, self.bands)


@VISUALIZERS.register_module(name='AdaptiveVisualizer')
def adaptive_visualizer(base: str, **kwargs: Any) -> Visualizer:
    """Build a stock visualizer whose text and lines scale with the image.

    Small images are enlarged. Labels are placed next to their objects and avoid each other. Ground
    truth and predictions share one color per class.

    Args:
        base (str): The stock class: 'mmseg.SegLocalVisualizer', 'mmdet.DetLocalVisualizer' or
            'mmpretrain.UniversalVisualizer'.
        **kwargs: Arguments of the stock class, with ``alpha`` defaulting to 0.45, and ``font_size``
            (int), in pixels, which scales with the image by default.

    Returns:
        Visualizer: An instance of a subclass of the stock class.

    Raises:
        ValueError: If ``base`` is not registered.
    """
    return _build((AdaptiveMixin,), base, kwargs)


def use_adaptive_visualizer(cfg: Config) -> None:
    """Replace a stock visualizer in a config with :func:`adaptive_visualizer`."""
    settings = cfg.get('visualizer') or {}
    for base in STOCK:
        if settings.get('type') in (base, base.split('.')[1]):
            cfg.visualizer = dict(settings, type='mmvmamba.AdaptiveVisualizer', base=base)


@VISUALIZERS.register_module(name='MultispectralVisualizer')
def multispectral_visualizer(
    base: str, bands: Sequence[int] | None = None, **kwargs: Any
) -> Visualizer:
    """Build an adaptive visualizer that draws three bands of images with any number of channels.

    Images are TIFF files that are read with tifffile, which becomes mmcv's default reader in this
    process (:func:`mmcv.use_backend`). Stock hooks and inferencers can then read them.

    Args:
        base (str): The stock class, as in :func:`adaptive_visualizer`.
        bands (Sequence[int], optional): Zero-based indices of the channels to draw as red, green
            and blue. Defaults to None, the first three.
        **kwargs: Other arguments of :func:`adaptive_visualizer`.

    Returns:
        Visualizer: An instance of a subclass of the stock class.

    Raises:
        ValueError: If ``bands`` are not three channels, or ``base`` is not registered.
    """
    if bands is not None and (len(bands) != 3 or min(bands) < 0):
        raise ValueError(f'bands must be three non-negative channel indices, but got {bands}')
    with as_user_error(ImportError):  # of tifffile
        return _build((BandsMixin, AdaptiveMixin), base, dict(kwargs, bands=bands))


def _build(mixins: tuple[type, ...], base: str, options: dict[str, Any]) -> Visualizer:
    with ROOT_VISUALIZERS.switch_scope_and_registry(None) as registry:
        stock = registry.get(base)
    if stock is None:
        raise ValueError(f'base must be a registered visualizer, but got {base!r}')
    cls = type(mixins[0].__name__.removesuffix('Mixin') + stock.__name__, (*mixins, stock), {})
    if 'alpha' in inspect.signature(stock).parameters:
        options.setdefault('alpha', ALPHA)
    return cls.get_instance(**{'name': 'visualizer', **options})


def enlarge_sample(sample: BaseDataElement, factor: int) -> BaseDataElement:
    """Return a copy of a sample with its boxes, masks and label maps enlarged."""
    sample = sample.cpu()
    for key, value in sample.items():
        if isinstance(value, InstanceData):
            setattr(sample, key, _enlarge_instances(value, factor))
        elif isinstance(value, PixelData) and key != 'seg_logits':
            maps = {
                name: torch.stack([_enlarge_map(channel, factor) for channel in data])
                for name, data in value.items()
            }
            setattr(sample, key, PixelData(metainfo=value.metainfo, **maps))
    return sample


def _enlarge_instances(instances: InstanceData, factor: int) -> InstanceData:
    large = instances.new()
    if 'bboxes' in large:
        large.bboxes = _tensor_of(large.bboxes) * factor
    masks = _masks_of(instances)
    if masks is not None:
        large.masks = torch.from_numpy(drawing.enlarge_masks(masks, factor))
    return large


def _enlarge_map(channel: torch.Tensor, factor: int) -> torch.Tensor:
    if channel.is_floating_point():
        return channel.repeat_interleave(factor, 0).repeat_interleave(factor, 1)
    return torch.from_numpy(drawing.enlarge_label_map(channel.numpy(), factor))


def _tensor_of(boxes: Any) -> torch.Tensor:
    """Return boxes as a tensor; mmdet's box types have one."""
    return torch.as_tensor(getattr(boxes, 'tensor', boxes))


def _masks_of(instances: InstanceData) -> np.ndarray | None:
    """Return the masks as booleans (N, H, W)."""
    if 'masks' not in instances:
        return None
    masks = instances.masks
    # mmdet's bitmap and polygon masks
    masks = masks.to_ndarray() if hasattr(masks, 'to_ndarray') else np.asarray(masks)
    return masks.astype(bool)


def _boxes_of(instances: InstanceData, masks: np.ndarray | None) -> np.ndarray:
    """Return the boxes (N, 4), derived from the masks if the detector predicts no boxes."""
    boxes = np.zeros((len(instances), 4), np.float32)
    if 'bboxes' in instances:
        boxes = _tensor_of(instances.bboxes).numpy()
    if masks is None or boxes.any():
        return boxes
    corners = np.array([cv2.boundingRect(mask.astype(np.uint8)) for mask in masks]).reshape(-1, 4)
    return np.hstack([corners[:, :2], corners[:, :2] + corners[:, 2:]])


def _texts_of(
    instances: InstanceData, labels: Sequence[int], classes: Sequence[str] | None
) -> list[str]:
    names = instances.get('label_names') or [_name_of(label, classes) for label in labels]
    scores = instances.get('scores')
    if scores is None:
        return list(names)
    return [f'{name} {score:.2f}' for name, score in zip(names, scores.tolist(), strict=True)]


def _path_of(data_sample: Any) -> str | None:
    return None if data_sample is None else data_sample.get('img_path')


def _name_of(label: int, classes: Sequence[str] | None) -> str:
    return f'class {label}' if classes is None else classes[label]


def picture_of_bands(image: np.ndarray, bands: Sequence[int] | None = None) -> np.ndarray:
    """Make a picture of three bands of an image.

    Bands of 8 bits stay as they are. Each of the others is stretched: its 2nd percentile becomes
    black and its 98th white. Values that are not finite are black.

    Args:
        image (ndarray): (H, W, channels) or (H, W), any real dtype.
        bands (Sequence[int], optional): The channels for red, green and blue. Defaults to None,
            the first three; an image with fewer repeats its last.

    Returns:
        ndarray: (H, W, 3), uint8.

    Raises:
        ValueError: If the image does not have the channels.
    """
    image = image[..., None] if image.ndim == 2 else image
    channels = image.shape[2]
    if bands is None:
        bands = [min(i, channels - 1) for i in range(3)]
    if max(bands) >= channels:
        raise ValueError(
            f'bands must be less than the number of channels ({channels}), but got {list(bands)}'
        )
    return np.stack([_to_bytes(image[..., band]) for band in bands], axis=-1)


def _to_bytes(band: np.ndarray) -> np.ndarray:
    if band.dtype == np.uint8:
        return band
    band = band.astype(np.float64)
    finite = np.isfinite(band)
    if not finite.any():
        return np.zeros(band.shape, np.uint8)
    low, high = np.percentile(band[finite], _STRETCH)
    scale = 255 / (high - low) if high > low else 0.0
    stretched = np.where(finite, (band - low) * scale, 0)
    return stretched.clip(0, 255).round().astype(np.uint8)


def _as_png(path: str | None) -> str | None:
    """Replace the suffix of a TIFF file, which few programs show."""
    for suffix in _TIFF:
        if path is not None and path.lower().endswith(suffix):
            return path[: -len(suffix)] + '.png'
    return path
