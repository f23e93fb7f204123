"""Checks of image files: whether they decode, and what loading makes of them."""

import contextlib
import functools
import importlib.util
import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import mmcv
import numpy as np
from mmengine.logging import print_log
from PIL import ExifTags, Image

from mmvmamba.engine.data.sample_check import is_truncated
from mmvmamba.progress import Progress

from .report import Report
from .settings import Loader

T = TypeVar('T')
R = TypeVar('R')
#: Formats of Pillow that the other readers know as well.
_COMMON = ('BMP', 'JPEG', 'MPO', 'PNG', 'PPM', 'TIFF', 'WEBP')
_TIFF = (b'II', b'MM')
_PNG = b'\x89PNG\r\n\x1a\n'
_NEEDS_TIFFFILE = 'can only be decoded by tifffile'
_LACKS_TIFFFILE = 'cannot be decoded because tifffile is not installed'
_SETTINGS_HINTS = {
    _NEEDS_TIFFFILE: "Set `imdecode_backend='tifffile'` in `LoadImageFromFile` "
    '(see docs/multispectral.md)',
    _LACKS_TIFFFILE: 'Run `pip install tifffile imagecodecs`',
}
_EXIF_HINT = (
    "Loading applies the EXIF rotation. Set `color_type='color_ignore_orientation'` in "
    '`LoadImageFromFile`, or rotate the pixels, remove the tag and annotate the result'
)


class ImageFile(NamedTuple):
    """Properties of an image file.

    Attributes:
        path (str): The file.
        width (int): Width of the pixels in the file.
        height (int): Height of the pixels in the file.
        channels (int): Number of channels in the file; 3 for a palette.
        bits (int): Bits of a channel.
        alpha (bool): True if one of the channels is transparency.
        orientation (int): The EXIF tag; 5 to 8 swap width and height.
        problem (str): The reason if the file cannot be used; the other properties are then 0.
        detail (str): The message of the reader.
    """

    path: str
    width: int = 0
    height: int = 0
    channels: int = 0
    bits: int = 0
    alpha: bool = False
    orientation: int = 1
    problem: str = ''
    detail: str = ''

    def size(self, loader: Loader) -> tuple[int, int]:
        """Return width and height of the loaded image."""
        swapped = loader.rotates and self.orientation >= 5
        return (self.height, self.width) if swapped else (self.width, self.height)


def spread(items: Sequence[T], count: int | None) -> list[T]:
    """Return a sample of a sequence at equal distances, or all items if ``count`` is None."""
    if count is None or count >= len(items):
        return list(items)
    return [items[i * len(items) // count] for i in range(max(count, 0))]


def read_all(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Apply a function that reads a file to each item, with a few threads."""
    items = list(items)
    log = functools.partial(print_log, logger='current')
    progress = Progress(f'checking {len(items):,} files', len(items), log)
    with ThreadPoolExecutor(min(8, 2 * (os.cpu_count() or 1))) as pool:
        for result in pool.map(function, items):
            progress.step()
            yield result


def read_image(path: str, loader: Loader) -> ImageFile:
    """Decode an image and return its properties."""
    content = read_bytes(path)
    if isinstance(content, ImageFile):
        return content
    try:
        if loader.is_stock and loader.backend == 'tifffile':
            if not _has_tifffile():
                return ImageFile(path, problem=_LACKS_TIFFFILE)
            return _properties(path, _load(content, loader))  # Pillow reads one page of several
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            if loader.is_stock and image.format not in _COMMON and not _loads(content, loader):
                reason = f'{loader.backend} does not read {image.format} files'
                return ImageFile(path, problem='cannot be decoded', detail=reason)
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
            channels = 3 if image.mode == 'P' else len(image.getbands())
            if loader.is_stock and loader.keeps_channels:
                # Readers differ in CMYK, gray with alpha, and palettes.
                channels = _channels(_load(content, loader))
            return ImageFile(
                path,
                *image.size,
                channels=channels,
                bits=_bits(image, content),
                alpha=image.mode.endswith(('A', 'a')),
                orientation=orientation if orientation in range(1, 9) else 1,
            )
    except Exception as error:  # readers raise all kinds of exceptions for broken files
        return _read_with_mmcv(path, content, loader, error)


def read_bytes(path: str) -> bytes | ImageFile:
    """Return the content of a file, or the problem."""
    try:
        with open(path, 'rb') as file:
            content = file.read()
    except (OSError, ValueError) as error:
        reason = getattr(error, 'strerror', None) or str(error)
        return ImageFile(path, problem='cannot be read', detail=reason)
    return content or ImageFile(path, problem='is an empty file')


def undecodable(path: str, error: Exception) -> ImageFile:
    """Return the problem of a file that a reader refuses."""
    try:
        truncated = is_truncated(path)
    except Exception:  # of the reader, as above
        truncated = False
    if truncated:
        return ImageFile(path, problem='is truncated')
    return ImageFile(path, problem='cannot be decoded', detail=str(error)[:80])


def _read_with_mmcv(path: str, content: bytes, loader: Loader, error: Exception) -> ImageFile:
    """Read an image that Pillow does not know, such as one of many channels, as training does."""
    problem = undecodable(path, error)
    if problem.problem == 'is truncated' or loader.backend == 'tifffile':
        return problem
    with contextlib.suppress(Exception):  # of OpenCV and others
        return _properties(path, _load(content, loader))
    if not loader.is_stock or not content.startswith(_TIFF):
        return problem
    if not _has_tifffile():
        detail = f'{loader.backend} cannot read it, and tifffile is not installed'
        return problem._replace(detail=detail)
    if _loads(content, loader._replace(backend='tifffile')):
        return ImageFile(path, problem=_NEEDS_TIFFFILE)
    return problem


def _has_tifffile() -> bool:
    return importlib.util.find_spec('tifffile') is not None


def _properties(path: str, array: np.ndarray) -> ImageFile:
    bits = 8 * array.dtype.itemsize
    return ImageFile(path, array.shape[1], array.shape[0], channels=_channels(array), bits=bits)


def _channels(array: np.ndarray) -> int:
    return 1 if array.ndim == 2 else array.shape[2]


def _loads(content: bytes, loader: Loader) -> bool:
    try:
        _load(content, loader)
    except Exception:  # of OpenCV, tifffile and others
        return False
    return True


def _load(content: bytes, loader: Loader) -> np.ndarray:
    array: Any = mmcv.imfrombytes(content, flag=loader.flag, backend=loader.backend)
    if not isinstance(array, np.ndarray) or array.ndim not in (2, 3):
        raise ValueError(
            f'expected an image, but got an array of shape {getattr(array, "shape", None)}'
        )
    return array


def _bits(image: Image.Image, content: bytes) -> int:
    if content.startswith(_PNG):  # Pillow reduces 16-bit colors to 8 bits
        return content[24] if content[24] > 8 else 8
    return 16 if image.mode.startswith('I;16') else 32 if image.mode in 'IF' else 8


def report_images(
    report: Report, folder: str, images: Iterable[ImageFile], loader: Loader
) -> list[ImageFile]:
    """Report what is wrong with images of a folder, and return those that can be used."""
    usable = []
    for image in images:
        item = item_name(image.path, folder)
        if not image.problem:
            usable.append(image)
        elif loader.is_stock or image.problem != 'cannot be decoded':
            report_problem(report, folder, 'image', image)
        else:
            kind = f'image is not checked because `{loader.name}` loads it'
            report.add('note', folder, kind, item)
    if loader.is_stock:
        _report_formats(report, folder, usable, loader)
    return usable


def report_problem(report: Report, folder: str, kind: str, image: ImageFile) -> None:
    """Report a file that cannot be used."""
    item = item_name(image.path, folder) + (f' ({image.detail})' if image.detail else '')
    hint = 'Copy the file again or remove it from the dataset'
    if image.problem == 'cannot be read':
        hint = 'Give this user permission to read the file'
    is_single = image.problem not in _SETTINGS_HINTS
    hint = _SETTINGS_HINTS.get(image.problem, hint)
    report.add('error', folder, f'{kind} {image.problem}', item, hint, single=is_single)


def item_name(path: str, folder: str) -> str:
    """Return the quoted path of a file relative to its folder."""
    return repr(os.path.relpath(path, folder) if path.startswith(folder) else path)


def _report_formats(
    report: Report, folder: str, images: Sequence[ImageFile], loader: Loader
) -> None:
    """Report channels and bits that loading drops, or that make batches impossible."""
    counts = sorted({image.channels for image in images})
    if loader.keeps_channels and len(counts) > 1:
        kind = f"images have {counts} channels, and `color_type='unchanged'` keeps them"
        hint = "All images of a batch must match. Convert them, or set `color_type='color'`"
        if loader.backend == 'tifffile':
            kind = f"images have {counts} channels, and `imdecode_backend='tifffile'` keeps them"
            hint = 'All images of a batch must match. Convert them'
        report.add('error', folder, kind, hint=hint)
    for image in images:
        _report_channels(report, folder, image, loader)
    for image in images:
        item = item_name(image.path, folder)
        if loader.flag.startswith('color') and not loader.keeps_channels:
            if image.bits > 8:
                kind = f'image has {image.bits} bits per channel, but only 8 are loaded'
                hint = (
                    'Images that do not use all bits become dark. Scale them to 8 bits, or set '
                    "`color_type='unchanged'` with a matching `mean` and `std`"
                )
                report.add('warning', folder, kind, item, hint)
            if image.alpha:
                hint = 'Transparent pixels get the color stored in them'
                report.add(
                    'note', folder, 'image has an alpha channel, which is ignored', item, hint
                )
            elif image.channels == 1:
                report.add(
                    'note', folder, 'grayscale image is loaded as three equal channels', item
                )


def _report_channels(report: Report, folder: str, image: ImageFile, loader: Loader) -> None:
    """Report an image with other channels than the model's."""
    loaded = image.channels
    if not loader.keeps_channels:
        loaded = 1 if loader.flag.startswith('grayscale') else 3
    # Stock data preprocessors broadcast a single channel to three.
    if loader.channels in (None, loaded) or (loaded, loader.channels) == (1, 3):
        return
    hint = (
        'Set `in_channels` of the backbone, and `mean` and `std` of the data preprocessor, to '
        'match the images (see docs/multispectral.md)'
    )
    if not loader.keeps_channels:
        hint = (
            f'`color_type={loader.flag!r}` changes the channels. Set `imdecode_backend='
            "'tifffile'` for TIFF files, or `color_type='unchanged'`"
        )
    elif image.height == loader.channels:
        hint = (
            'The file stores channels first. Store them last, for example with `gdal_translate '
            '-co INTERLEAVE=PIXEL`'
        )
    kind = f'image is loaded with {loaded} channels, but the model takes {loader.channels}'
    report.add('error', folder, kind, item_name(image.path, folder), hint)


def report_sizes(
    report: Report,
    folder: str,
    other: str,
    pairs: Iterable[tuple[ImageFile, tuple[int, int]]],
    loader: Loader,
) -> None:
    """Compare the sizes of loaded images with those of annotations or label maps.

    Args:
        report (Report): Gets an error for sizes that differ.
        folder (str): The folder of the images.
        other (str): The name of the other size, such as 'label map'.
        pairs (Iterable[tuple[ImageFile, tuple[int, int]]]): Images, and width and height of
            the other.
        loader (Loader): How the images are loaded.
    """
    for image, size in pairs:
        loaded, raw = image.size(loader), (image.width, image.height)
        item = item_name(image.path, folder)
        tag = f'EXIF orientation {image.orientation}'
        if loaded == size and raw == size and image.orientation != 1 and loader.rotates:
            kind = f'image is rotated by its EXIF orientation, but the {other} may not be'
            report.add('warning', folder, kind, f'{item} ({tag})', _EXIF_HINT)
        elif loaded == size or (not loader.is_stock and size in (raw, raw[::-1])):
            continue
        elif image.orientation >= 5:
            kind = f'EXIF orientation of the image does not match the {other}'
            hint = _EXIF_HINT
            if not loader.rotates:
                hint = f"`color_type={loader.flag!r}` ignores the tag. Set `color_type='color'`"
            report.add('error', folder, kind, f'{item} ({tag})', hint, single=True)
        else:
            kind = f'image and {other} differ in size'
            detail = f'{loaded[0]} x {loaded[1]} and {size[0]} x {size[1]}'
            hint = (
                'One of them was resized or belongs to another image, so the labels would be in '
                'the wrong places'
            )
            report.add('error', folder, kind, f'{item} ({detail})', hint, single=True)
