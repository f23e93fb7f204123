"""Drawing of boxes, masks, label maps and captions.

Text and lines scale with the image, and text is set in a TrueType font. Labels are placed next to
their objects and avoid other objects and labels as far as there is room.
"""

import colorsys
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

#: Images with a shorter side are enlarged to at least this size, in pixels,
MIN_SIDE = 480
#: unless their longer side would exceed this one.
MAX_SIDE = 2048
#: Ratios of the shorter side to line width and font size, and the minimum of each size.
_SIDE_PER_LINE, _MIN_LINE = 300, 1
_SIDE_PER_FONT, _MIN_FONT = 36, 14
_GOLDEN_RATIO = 0.618034

Color = tuple[int, int, int]
Rect = tuple[int, int, int, int]  # left, top, right, bottom


class Style(NamedTuple):
    """Sizes in pixels."""

    font_size: int
    line_width: int

    @classmethod
    def of(cls, image: np.ndarray, font_size: int | None = None) -> 'Style':
        """Derive the sizes from an image (H, W, 3)."""
        side = min(image.shape[:2])
        return cls(
            font_size or max(_MIN_FONT, round(side / _SIDE_PER_FONT)),
            max(_MIN_LINE, round(side / _SIDE_PER_LINE)),
        )

    @property
    def font(self) -> ImageFont.FreeTypeFont:
        """DejaVu Sans, which is part of matplotlib."""
        return _load_font(self.font_size)

    @property
    def padding(self) -> int:
        """Space around the text of a label."""
        return max(2, self.font_size // 5)

    @property
    def label_height(self) -> int:
        """Height of a label, which is the same for all texts."""
        return sum(self.font.getmetrics()) + self.padding

    def label_width(self, text: str) -> int:
        """Width of a label with this text."""
        return round(self.font.getlength(text)) + 2 * self.padding


@functools.lru_cache(maxsize=16)
def _load_font(size: int) -> ImageFont.FreeTypeFont:
    path = Path(matplotlib.get_data_path(), 'fonts', 'ttf', 'DejaVuSans.ttf')
    return ImageFont.truetype(str(path), size)


def enlargement(shape: Sequence[int]) -> int:
    """Return the integer factor by which an image (H, W, ...) is enlarged before drawing."""
    height, width = shape[:2]
    wanted = -(-MIN_SIDE // min(height, width))
    return max(1, min(wanted, MAX_SIDE // max(height, width)))


def enlarge_image(image: np.ndarray, factor: int) -> np.ndarray:
    """Enlarge an image (H, W, 3)."""
    if factor == 1:
        return image
    return cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)


def enlarge_masks(masks: np.ndarray, factor: int) -> np.ndarray:
    """Enlarge boolean masks (N, H, W) with smooth borders."""
    height, width = (side * factor for side in masks.shape[1:])
    large = np.zeros((len(masks), height, width), bool)
    for mask, out in zip(masks, large, strict=True):
        share = cv2.resize(mask.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
        out[:] = share > 0.5
    return large


def enlarge_label_map(labels: np.ndarray, factor: int) -> np.ndarray:
    """Enlarge a label map (H, W) with smooth borders between classes."""
    large = np.repeat(np.repeat(labels, factor, 0), factor, 1)
    best = np.full(large.shape, 0.5, np.float32)
    for label in np.unique(labels):
        share = cv2.resize((labels == label).astype(np.float32), large.shape[::-1])
        large[share > best] = label
        np.maximum(best, share, out=best)
    return large


def class_color(label: int, palette: Sequence[Sequence[int]] | None = None) -> Color:
    """Return the color (RGB) of a class from the palette, or else a generated one."""
    if palette is not None and label < len(palette):
        red, green, blue = (int(value) for value in palette[label])
        return red, green, blue
    # Steps of the golden ratio keep the hues of any number of classes apart.
    hue, value = label * _GOLDEN_RATIO % 1, (0.95, 0.75, 0.85)[label % 3]
    red, green, blue = (round(255 * v) for v in colorsys.hsv_to_rgb(hue, 0.75, value))
    return red, green, blue


def contrasting(color: Color) -> Color:
    """Return black or white, whichever contrasts more with a color."""
    red, green, blue = color
    return (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else (255, 255, 255)


def draw_instances(
    image: np.ndarray,
    boxes: np.ndarray,
    masks: np.ndarray | None,
    texts: Sequence[str],
    colors: Sequence[Color],
    style: Style,
    alpha: float,
) -> np.ndarray:
    """Draw objects with outlines and labels.

    Args:
        image (ndarray): (H, W, 3), uint8, RGB.
        boxes (ndarray): (N, 4), left, top, right and bottom. Objects whose box is not finite are
            not drawn.
        masks (ndarray, optional): (N, H, W), bool.
        texts (Sequence[str]): N labels; empty ones are not drawn.
        colors (Sequence[tuple]): N colors (RGB).
        style (Style): Sizes of text and lines.
        alpha (float): Opacity of the masks.

    Returns:
        ndarray: The result, (H, W, 3), uint8, RGB.
    """
    drawn = image.copy()
    occupied = np.zeros(image.shape[:2], np.uint8)
    bounds = {i: _clip(b, image.shape) for i, b in enumerate(boxes) if np.isfinite(b).all()}
    order = sorted(bounds, key=lambda i: -_area(bounds[i]))  # small ones on top
    for i in order:
        left, top, right, bottom = bounds[i]
        if masks is None:
            occupied[top:bottom, left:right] = 1
        else:
            occupied[masks[i]] = 1
            _fill(drawn, masks[i], colors[i], alpha)
            _outline(drawn, masks[i], colors[i], style.line_width)
        cv2.rectangle(drawn, (left, top), (right - 1, bottom - 1), colors[i], style.line_width)
    labels = []
    for i in order[::-1]:
        if texts[i]:
            width = max(bounds[i][2] - bounds[i][0], image.shape[1] // 3, 12 * style.font_size)
            text = _shorten(texts[i], min(width, image.shape[1]), style)
            size = style.label_width(text), style.label_height
            labels.append((_around(bounds[i], size, image.shape), text, colors[i]))
    return _draw_labels(drawn, labels, occupied, style)


def draw_label_map(
    image: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    palette: Sequence[Sequence[int]] | None,
    style: Style,
    alpha: float,
    with_labels: bool = True,
) -> np.ndarray:
    """Draw a label map, with a label on one region of each class.

    Args:
        image (ndarray): (H, W, 3), uint8, RGB.
        labels (ndarray): (H, W), class indices. Pixels with other values are not drawn.
        names (Sequence[str]): Names of the classes. Without names, nothing is drawn.
        palette (Sequence, optional): Colors (RGB) of the classes.
        style (Style): Sizes of text and lines.
        alpha (float): Opacity of the classes.
        with_labels (bool): Draw labels. Defaults to True.

    Returns:
        ndarray: The result, (H, W, 3), uint8, RGB.
    """
    if not names:
        return image.copy()
    known = (labels >= 0) & (labels < len(names))
    table = np.array([class_color(i, palette) for i in range(len(names))], np.uint8)
    blend = cv2.addWeighted(image, 1 - alpha, table[np.where(known, labels, 0)], alpha, 0)
    drawn = np.where(known[..., None], blend, image)
    placed = []
    if with_labels:
        step = max(1, min(labels.shape) // MIN_SIDE)  # places need not be exact
        coarse = np.ascontiguousarray(labels[::step, ::step])
        for label in np.unique(coarse[known[::step, ::step]]):
            text = _shorten(names[label], image.shape[1] // 2, style)
            size = style.label_width(text), style.label_height
            places = _in_region(coarse == label, step, size, image.shape)
            if places:
                placed.append((places, text, class_color(int(label), palette)))
    occupied = np.zeros(image.shape[:2], np.uint8)
    return _draw_labels(drawn, placed, occupied, style)


def add_caption(
    image: np.ndarray, lines: Sequence[str], font_size: int | None = None
) -> np.ndarray:
    """Add lines of text above an image (H, W, 3), in black on white."""
    style = Style.of(image, font_size or round(1.5 * Style.of(image).font_size))
    height = style.label_height * len(lines) + 2 * style.padding
    canvas = cv2.copyMakeBorder(image, height, 0, 0, 0, cv2.BORDER_CONSTANT, value=(255,) * 3)
    picture = Image.fromarray(canvas)
    draw = ImageDraw.Draw(picture)
    for i, line in enumerate(lines):
        text = _shorten(line, image.shape[1], style)
        position = 2 * style.padding, style.padding + i * style.label_height
        draw.text(position, text, font=style.font, fill=(0, 0, 0))
    return np.array(picture)


def _fill(drawn: np.ndarray, mask: np.ndarray, color: Color, alpha: float) -> None:
    left, top, width, height = cv2.boundingRect(mask.view(np.uint8))
    window = slice(top, top + height), slice(left, left + width)
    part, mask = drawn[window], mask[window]
    part[mask] = np.rint(part[mask] * (1 - alpha) + np.multiply(color, alpha))


def _outline(drawn: np.ndarray, mask: np.ndarray, color: Color, width: int) -> None:
    contours, _ = cv2.findContours(mask.view(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(drawn, contours, -1, color, width, cv2.LINE_AA)


def _draw_labels(
    drawn: np.ndarray,
    labels: Sequence[tuple[list[Rect], str, Color]],
    occupied: np.ndarray,
    style: Style,
) -> np.ndarray:
    """Draw each label where it covers the least, preferring the first of its places.

    Each label has at least one place.
    """
    picture = Image.fromarray(drawn)
    draw = ImageDraw.Draw(picture)
    for places, text, color in labels:
        costs = [
            int(occupied[top:bottom, left:right].sum()) + 0.05 * rank * _area(places[0])
            for rank, (left, top, right, bottom) in enumerate(places)
        ]
        left, top, right, bottom = places[int(np.argmin(costs))]
        occupied[top:bottom, left:right] = 10  # covering a label is worse than covering an object
        draw.rectangle((left, top, right - 1, bottom - 1), fill=color)
        position = left + style.padding, top + style.padding // 2
        draw.text(position, text, font=style.font, fill=contrasting(color))
    return np.array(picture)


def _around(rect: Rect, size: tuple[int, int], shape: Sequence[int]) -> list[Rect]:
    """Return places for a label above, below, next to and inside a rectangle, in this order.

    The four inside are always there. The others are left out if the image's border would push the
    label onto the rectangle or away from it.
    """
    left, top, right, bottom = rect
    width, height = size
    above_or_below = [(x, y) for y in (top - height, bottom) for x in (left, right - width)]
    beside = [(x, y) for y in (top, bottom - height) for x in (right, left - width)]
    inside = [(x, y) for y in (top, bottom - height) for x in (left, right - width)]
    places = []
    for x, y in above_or_below + beside:
        place = _move_inside((x, y), size, shape)
        if place[1] == y and (place[0] == x or (x, y) in above_or_below):
            places.append(place)
    return places + [_move_inside(corner, size, shape) for corner in inside]


def _in_region(
    region: np.ndarray, step: int, size: tuple[int, int], shape: Sequence[int]
) -> list[Rect]:
    """Return places for a label in the widest part of a region or, if it is thin, around it.

    The region (h, w) has every ``step``-th pixel of the image. A speck has no places.
    """
    width, height = size
    padded = cv2.copyMakeBorder(region.view(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    distances = cv2.distanceTransform(padded, cv2.DIST_L2, 3)[1:-1, 1:-1]
    y, x = np.unravel_index(int(distances.argmax()), distances.shape)
    radius = step * distances[y, x]
    if radius < height / 4:
        return []  # specks
    if radius > height:
        left, top = int(x) * step - width // 2, int(y) * step - height // 2
        offsets = [0, height, -height, 2 * height, -2 * height]
        return [_move_inside((left, top + offset), size, shape) for offset in offsets]
    _, components = cv2.connectedComponents(region.view(np.uint8))
    left, top, w, h = cv2.boundingRect((components == components[y, x]).view(np.uint8))
    rect = step * left, step * top, step * (left + w), step * (top + h)
    return _around(rect, size, shape)


def _move_inside(corner: tuple[int, int], size: tuple[int, int], shape: Sequence[int]) -> Rect:
    left = max(0, min(corner[0], shape[1] - size[0]))
    top = max(0, min(corner[1], shape[0] - size[1]))
    return left, top, left + size[0], top + size[1]


def _clip(box: np.ndarray, shape: Sequence[int]) -> Rect:
    """Round and clip a box to the pixels of the image, at least one."""
    left, right = np.clip(np.rint(box[[0, 2]]), 0, shape[1]).astype(int).tolist()
    top, bottom = np.clip(np.rint(box[[1, 3]]), 0, shape[0]).astype(int).tolist()
    left, top = min(left, shape[1] - 1), min(top, shape[0] - 1)
    return left, top, max(right, left + 1), max(bottom, top + 1)


def _area(rect: Rect) -> int:
    return (rect[2] - rect[0]) * (rect[3] - rect[1])


def _shorten(text: str, width: int, style: Style) -> str:
    """Shorten a text to the width of a label, keeping its last characters, such as a score."""
    if style.label_width(text) <= width:
        return text
    head, tail = text[:-5], text[-5:]
    while head and style.label_width(f'{head}…{tail}') > width:
        head = head[:-1]
    return f'{head}…{tail}'
