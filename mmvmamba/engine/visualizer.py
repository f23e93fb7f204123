"""Visualizer for images with any number of channels."""

from collections.abc import Sequence
from typing import Any

import mmcv
import numpy as np
from mmengine import fileio
from mmengine.dist import master_only
from mmengine.registry import VISUALIZERS as ROOT_VISUALIZERS
from mmengine.visualization import Visualizer

from mmvmamba.registry import VISUALIZERS

from .errors import as_user_error

#: Percentiles of a band that become black and white.
_STRETCH = (2, 98)
_TIFF = ('.tif', '.tiff')


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

    @master_only
    def visualize_cls(self, image: np.ndarray, data_sample: Any, *args: Any, **kwargs: Any) -> Any:
        """Draw a sample as mmpretrain's visualizer does."""
        image = self._picture(image, data_sample)
        return super().visualize_cls(image, data_sample, *args, **kwargs)

    def _picture(self, image: np.ndarray, data_sample: Any) -> np.ndarray:
        path = None if data_sample is None else data_sample.get('img_path')
        if path is not None:
            # mmpretrain's hook has cast the image to 8 bits, and inferencers reverse its channels.
            image = mmcv.imfrombytes(fileio.get(path), backend='tifffile')
        with as_user_error(ValueError):
            return picture_of_bands(image, self.bands)


@VISUALIZERS.register_module(name='MultispectralVisualizer')
def multispectral_visualizer(
    base: str, bands: Sequence[int] | None = None, **kwargs: Any
) -> Visualizer:
    """Build a stock visualizer that draws three bands of images with any number of channels.

    Images are TIFF files, which are read with tifffile. It becomes mmcv's default reader in this
    process (:func:`mmcv.use_backend`), so that stock hooks and inferencers can read them.

    Args:
        base (str): The stock class: 'mmseg.SegLocalVisualizer', 'mmdet.DetLocalVisualizer' or
            'mmpretrain.UniversalVisualizer'.
        bands (Sequence[int], optional): The channels that are drawn as red, green and blue, from
            0. Defaults to None, the first three.
        **kwargs: Other arguments of the stock class.

    Returns:
        Visualizer: An instance of a subclass of the stock class.

    Raises:
        ValueError: If ``bands`` are not three channels, or ``base`` is not registered.
    """
    if bands is not None and (len(bands) != 3 or min(bands) < 0):
        raise ValueError(f'bands must be three non-negative channel indices, but got {bands}')
    with ROOT_VISUALIZERS.switch_scope_and_registry(None) as registry:
        stock = registry.get(base)
    if stock is None:
        raise ValueError(f'base must be a registered visualizer, but got {base!r}')
    cls = type(f'Multispectral{stock.__name__}', (BandsMixin, stock), {})
    with as_user_error(ImportError):  # of tifffile
        return cls.get_instance(bands=bands, **{'name': 'visualizer', **kwargs})


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
            f'bands must be below the number of channels, {channels}, but got {list(bands)}'
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
