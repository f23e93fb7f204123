"""Objects and backgrounds of the demo data set, cut from scikit-image's sample photographs.

Every photograph used here is a file inside scikit-image's wheel, so nothing is downloaded. An
outline is a coarse polygon in pixel coordinates of its photograph; `snap_to_edges` moves it to
the strongest image edge nearby, so the table below needs to be right to a few pixels only.
"""

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import skimage
from PIL import Image, ImageDraw
from scipy import ndimage
from skimage import color, filters, measure, morphology, segmentation

THINGS = ('cat', 'coin', 'cup', 'motorcycle', 'person', 'rocket')
STUFF = ('brick', 'grass', 'gravel', 'space', 'wood')
SPLITS = ('train', 'val')

NUM_COINS = 24
# One coin in three is kept for validation.
COIN_PERIOD = 3


@dataclass(frozen=True)
class Outline:
    """A hand-given outline of one object.

    Args:
        category (str): One of `THINGS`.
        photo (str): File name of the photograph.
        polygon (str): Vertices as ``x,y`` pairs.
        holes (tuple[str, ...]): Polygons inside the outline that show the background.
        splits (tuple[str, ...]): Splits that use the object.
    """

    category: str
    photo: str
    polygon: str
    holes: tuple[str, ...] = ()
    splits: tuple[str, ...] = SPLITS


@dataclass(frozen=True)
class CutOut:
    """An object with its mask as an RGBA image.

    Args:
        category (str): One of `THINGS`.
        source (str): Where the object comes from, unique for each object.
        splits (tuple[str, ...]): Splits that use the object.
        image (PIL.Image.Image): RGBA image, cropped to the object.
    """

    category: str
    source: str
    splits: tuple[str, ...]
    image: Image.Image = field(repr=False)


OUTLINES = (
    Outline(
        'cat',
        'chelsea.png',
        '42,0 400,0 387,24 372,54 358,75 361,100 366,122 362,145 350,175 340,195 326,214 315,235 '
        '313,262 296,272 275,279 255,282 235,281 212,279 190,274 160,264 132,246 105,226 80,205 '
        '60,180 48,160 40,138 36,118 31,100 32,60 36,30',
    ),
    Outline(
        'cup',
        'coffee.png',
        '173,105 175,92 182,75 195,55 215,38 240,26 270,19 300,19 330,25 355,36 375,48 390,62 '
        '397,70 402,67 411,66 421,70 424,76 422,90 417,106 432,120 450,142 465,168 474,190 '
        '479,215 478,245 470,275 455,303 432,328 405,350 370,369 335,382 300,388 265,387 235,381 '
        '200,369 165,350 135,326 110,297 93,268 82,240 77,210 80,180 90,152 105,125 125,102 '
        '150,83 172,72 181,70',
    ),
    Outline(
        'motorcycle',
        'motorcycle_left.png',
        '92,198 96,195 118,194 128,203 147,206 141,180 137,158 142,150 152,144 163,147 168,160 '
        '178,160 200,166 222,170 246,168 258,178 272,189 300,194 330,189 346,187 357,192 372,182 '
        '384,172 362,174 357,168 364,161 386,144 398,130 412,124 430,125 442,133 456,141 468,142 '
        '465,132 472,124 490,120 500,114 498,92 494,82 508,79 518,82 524,98 536,120 548,124 '
        '560,136 564,128 563,122 574,118 582,128 580,140 566,143 562,160 556,174 546,187 '
        '553,196 546,206 562,236 573,256 581,264 605,271 630,287 644,303 641,312 652,322 667,342 '
        '679,366 684,395 676,424 657,446 632,454 600,449 570,436 545,411 526,381 515,346 512,328 '
        '506,331 507,311 514,294 505,272 504,245 508,236 500,224 476,230 470,238 478,262 479,290 '
        '473,325 458,352 437,369 410,379 380,379 335,370 283,358 276,371 254,389 226,399 200,400 '
        '170,392 142,370 127,345 121,318 124,288 135,262 150,243 148,236 146,228 128,235 110,247 '
        '100,243 110,225 94,219',
        holes=('517,222 539,208 550,230 566,260 545,264 537,272',),
        splits=('train',),
    ),
    Outline(
        'person',
        'astronaut.png',
        '157,60 165,45 190,38 205,22 235,15 260,20 285,40 298,62 301,88 297,110 285,126 272,136 '
        '262,152 256,168 255,175 276,188 294,212 305,242 330,254 346,275 353,300 360,332 364,350 '
        '345,353 322,370 302,394 288,425 281,460 279,490 281,511 45,511 30,480 24,450 23,400 '
        '27,340 36,318 46,280 60,250 85,225 112,208 113,192 122,180 132,165 152,152 180,148 '
        '186,138 172,130 160,112 155,85',
    ),
    Outline(
        'person',
        'camera.png',
        '160,105 166,92 178,78 195,66 215,65 235,72 250,85 262,97 270,112 270,128 262,133 256,140 '
        '252,150 255,165 252,171 246,172 245,182 240,190 236,197 241,206 243,218 248,245 258,234 '
        '263,222 274,206 284,206 286,216 286,243 288,258 288,289 265,305 247,312 230,308 '
        '207,295 190,322 172,349 153,368 141,381 148,420 150,470 152,511 0,511 0,260 20,230 '
        '35,200 50,175 65,150 85,138 110,127 130,124 136,114 150,107',
        holes=('100,447 118,468 132,490 140,511 91,511 96,480',),
    ),
    Outline(
        'rocket',
        'rocket.jpg',
        '323,127 328,130 332,138 334,150 334,172 337,180 337,200 335,215 335,345 332,350 332,406 '
        '312,406 312,350 309,345 310,200 309,182 311,172 311,150 313,138 317,130',
    ),
    Outline(
        'rocket',
        'astronaut.png',
        '404,0 421,0 430,12 435,25 438,40 438,48 443,39 447,42 452,57 455,70 455,208 456,232 '
        '454,236 455,252 460,263 452,269 440,264 433,260 437,250 437,237 427,236 425,240 '
        '425,268 416,268 413,256 406,267 396,268 391,258 384,256 369,272 366,262 370,250 '
        '379,231 377,225 356,222 354,215 360,203 378,183 378,120 381,110 381,60 386,43 391,49 '
        '395,58 396,40 399,20',
    ),
)

# (photograph, box of the train region, box of the val region); a box is left, top, right, bottom.
REGIONS = {
    'brick': ('brick.png', (0, 0, 300, 512), (304, 0, 512, 512)),
    'grass': ('grass.png', (0, 0, 300, 512), (304, 0, 512, 512)),
    'gravel': ('gravel.png', (0, 0, 300, 512), (304, 0, 512, 512)),
    'space': ('hubble_deep_field.jpg', (0, 0, 600, 872), (604, 0, 1000, 872)),
    'wood': ('coffee.png', (484, 0, 600, 216), (484, 220, 600, 400)),
}


def load_photo(name: str) -> np.ndarray:
    """Read a photograph from the installed scikit-image.

    Args:
        name (str): File name in ``skimage/data``.

    Returns:
        np.ndarray: Image as (H, W, 3), uint8.
    """
    path = Path(skimage.__file__).parent / 'data' / name
    if not path.is_file():
        raise FileNotFoundError(
            f'the photograph {name} is not in the installed scikit-image '
            f'{skimage.__version__}; version 0.26 ships it'
        )
    with Image.open(path) as photo:
        return np.asarray(photo.convert('RGB'))


def parse_polygon(text: str) -> np.ndarray:
    """Turn ``'x,y x,y'`` into an array (N, 2)."""
    return np.array([pair.split(',') for pair in text.split()], dtype=float)


def fill_polygon(vertices: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Rasterise a polygon (N, 2) of x, y to a boolean mask of the given (H, W)."""
    canvas = Image.new('1', (shape[1], shape[0]))
    ImageDraw.Draw(canvas).polygon([tuple(v) for v in vertices.tolist()], fill=1)
    return np.array(canvas, dtype=bool)


def snap_to_edges(photo: np.ndarray, mask: np.ndarray, band: int = 3) -> np.ndarray:
    """Move the border of a coarse mask to the strongest edge within a few pixels.

    A watershed floods the gradient from what is surely object and surely background.

    Args:
        photo (np.ndarray): Photograph (H, W, 3).
        mask (np.ndarray): Coarse mask (H, W).
        band (int): Half width of the band in which the border may move. Defaults to 3.

    Returns:
        np.ndarray: Refined mask (H, W).
    """
    gradient = filters.sobel(color.rgb2gray(photo))
    # The frame of the photograph must not count as background, or cut objects would shrink there.
    inside = ndimage.binary_erosion(mask, iterations=band, border_value=1)
    markers = np.where(ndimage.binary_dilation(mask, iterations=band), 0, 1)
    markers[inside] = 2
    snapped = segmentation.watershed(gradient, markers) == 2
    return ndimage.binary_opening(snapped, iterations=1) | inside


def cut_out(photo: np.ndarray, mask: np.ndarray) -> Image.Image:
    """Crop an object to an RGBA image whose alpha fades over about one pixel at the border."""
    # One pixel less keeps the colours of the photograph's background out of the fringe.
    mask = ndimage.binary_erosion(mask, border_value=1)
    rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = np.s_[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
    alpha = np.pad(mask[box].astype(float), 2)
    alpha = np.rint(ndimage.gaussian_filter(alpha, 0.7) * 255).astype(np.uint8)
    rgb = np.pad(photo[box], ((2, 2), (2, 2), (0, 0)), mode='edge')
    return Image.fromarray(np.dstack([rgb, alpha]))


def outline_mask(photo: np.ndarray, polygon: np.ndarray, holes: list[np.ndarray]) -> np.ndarray:
    """Mask (H, W) of an outline with its holes, snapped to the edges of the photograph."""
    mask = fill_polygon(polygon, photo.shape[:2])
    for hole in holes:
        mask &= ~fill_polygon(hole, photo.shape[:2])
    return snap_to_edges(photo, mask)


def shift_to_right_view(vertices: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Carry vertices of the left motorcycle photograph over to the right one of the stereo pair.

    Args:
        vertices (np.ndarray): Vertices (N, 2) in the left view.
        mask (np.ndarray): The motorcycle in the left view (H, W); its disparities are trusted.

    Returns:
        np.ndarray: Vertices (N, 2) in the right view.
    """
    path = Path(skimage.__file__).parent / 'data' / 'motorcycle_disp.npz'
    with np.load(path) as archive:
        disparity = archive['arr_0']
    rows, cols = np.nonzero(mask & np.isfinite(disparity))
    known = disparity[rows, cols]
    moved = vertices.copy()
    for vertex in moved:
        # The median over a neighbourhood inside the object ignores stray matches at its border.
        near = np.argsort((cols - vertex[0]) ** 2 + (rows - vertex[1]) ** 2, kind='stable')[:150]
        vertex[0] -= np.median(known[near])
    return moved


def cut_outlined() -> list[CutOut]:
    """Cut the objects of `OUTLINES`; the motorcycle's second view becomes the one for val."""
    cuts = []
    for outline in OUTLINES:
        photo = load_photo(outline.photo)
        polygon = parse_polygon(outline.polygon)
        holes = [parse_polygon(hole) for hole in outline.holes]
        mask = outline_mask(photo, polygon, holes)
        source = f'{outline.category}:{outline.photo}'
        cuts.append(CutOut(outline.category, source, outline.splits, cut_out(photo, mask)))
        if outline.photo == 'motorcycle_left.png':
            right = load_photo('motorcycle_right.png')
            polygon, *holes = (shift_to_right_view(v, mask) for v in (polygon, *holes))
            source = f'{outline.category}:motorcycle_right.png'
            image = cut_out(right, outline_mask(right, polygon, holes))
            cuts.append(CutOut(outline.category, source, ('val',), image))
    return cuts


def cut_coins() -> list[CutOut]:
    """Cut the coins of ``coins.png``, numbered in reading order."""
    photo = load_photo('coins.png')
    gray = photo[..., 0]
    markers = np.zeros(gray.shape, dtype=int)
    markers[gray < 30] = 1
    markers[gray > 150] = 2
    mask = segmentation.watershed(filters.sobel(gray), markers) == 2
    mask = morphology.opening(ndimage.binary_fill_holes(mask), morphology.disk(5))
    regions = [r for r in measure.regionprops(measure.label(mask)) if r.area > 400]
    if len(regions) != NUM_COINS:
        raise RuntimeError(f'found {len(regions)} coins in coins.png, expected {NUM_COINS}')
    # The four rows of coins lie about 75 pixels apart.
    regions.sort(key=lambda r: (round((r.centroid[0] - 40) / 75), r.centroid[1]))
    cuts = []
    for i, region in enumerate(regions):
        coin = np.zeros(gray.shape, dtype=bool)
        coin[region.slice] = region.image_convex
        split = 'val' if i % COIN_PERIOD == COIN_PERIOD - 1 else 'train'
        cuts.append(CutOut('coin', f'coin:coins.png:{i:02d}', (split,), cut_out(photo, coin)))
    return cuts


@cache
def cut_all() -> tuple[CutOut, ...]:
    """All objects; cut once, because the watersheds take most of the time."""
    return (*cut_coins(), *cut_outlined())


def load_objects(split: str) -> dict[str, list[CutOut]]:
    """Objects of a split.

    Args:
        split (str): ``'train'`` or ``'val'``.

    Returns:
        dict[str, list[CutOut]]: The objects of each category, in the order of `THINGS`.
    """
    cuts = [cut for cut in cut_all() if split in cut.splits]
    return {name: [cut for cut in cuts if cut.category == name] for name in THINGS}


def load_backgrounds(split: str) -> dict[str, Image.Image]:
    """The part of each background photograph that a split may use, in the order of `STUFF`."""
    backgrounds = {}
    for name in STUFF:
        photo, *boxes = REGIONS[name]
        backgrounds[name] = Image.fromarray(load_photo(photo)).crop(boxes[SPLITS.index(split)])
    return backgrounds
