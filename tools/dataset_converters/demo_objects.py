"""Cut objects and backgrounds from scikit-image's sample photographs.

Every photograph is a file inside scikit-image's wheel, so nothing is downloaded. An outline is a
coarse polygon in pixel coordinates of its photograph. It is moved to the strongest image edge
nearby, so it only needs to be accurate to a few pixels.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import skimage
from PIL import Image, ImageDraw
from scipy import ndimage
from skimage import color, filters, measure, morphology, segmentation

THINGS = ('cat', 'coin', 'cup', 'motorcycle', 'person', 'rocket')
STUFF = ('brick', 'grass', 'gravel', 'space', 'wood')
SPLITS = ('train', 'val')
# Half width in pixels of the band in which the border of an outline may move.
EDGE_BAND = 3


class Outline(NamedTuple):
    """Polygons of an object in a photograph, as ``'x,y x,y'``; holes show the background."""

    category: str
    photo: str
    polygon: str
    hole: str = ''
    splits: tuple[str, ...] = SPLITS


class CutOut(NamedTuple):
    """An object as an RGBA image cropped to it, with a name of its source and its splits."""

    category: str
    source: str
    splits: tuple[str, ...]
    image: Image.Image


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
        '215,38 240,26 270,19 300,19 330,25 375,48 390,62 397,70 411,66 424,76 417,106 432,120 '
        '450,142 465,168 474,190 479,215 478,245 470,275 455,303 432,328 405,350 370,369 335,382 '
        '265,387 235,381 200,369 165,350 135,326 110,297 93,268 82,240 77,210 80,180 90,152 '
        '105,125 125,102 150,83 172,72 181,70',
    ),
    Outline(
        'motorcycle',
        'motorcycle_left.png',
        '92,198 96,195 118,194 128,203 147,206 137,158 142,150 152,144 163,147 168,160 178,160 '
        '200,166 222,170 246,168 272,189 300,194 330,189 346,187 357,192 372,182 384,172 362,174 '
        '357,168 364,161 386,144 398,130 412,124 430,125 456,141 468,142 465,132 472,124 490,120 '
        '500,114 498,92 494,82 508,79 518,82 524,98 536,120 548,124 560,136 564,128 563,122 '
        '574,118 582,128 580,140 566,143 562,160 556,174 546,187 553,196 546,206 562,236 573,256 '
        '581,264 630,287 644,303 641,312 652,322 667,342 679,366 684,395 676,424 657,446 632,454 '
        '600,449 570,436 545,411 526,381 515,346 512,328 506,331 507,311 514,294 505,272 504,245 '
        '508,236 500,224 476,230 470,238 478,262 479,290 473,325 458,352 437,369 410,379 380,379 '
        '335,370 283,358 276,371 254,389 226,399 200,400 170,392 142,370 127,345 121,318 124,288 '
        '135,262 150,243 146,228 110,247 100,243 110,225 94,219',
        hole='517,222 539,208 550,230 566,260 545,264 537,272',
        splits=('train',),
    ),
    Outline(
        'motorcycle',
        'motorcycle_right.png',
        '47,198 52,195 74,194 83.6,203 101,206 93,180 90,158 95,150 107,144 119,147 122,160 '
        '132,160 175,170 200.6,168 212.7,178 226,189 253,194 281,189 297,187 307.99,192 354,182 '
        '366,172 309,174 304,168 331.9,144 343.8,130 356.6,124 374,125 403,141 414.7,142 408,132 '
        '415,124 432.6,120 444.7,114 448,92 443.98,82 458.6,79 468.7,82 468.7,98 480,120 490,124 '
        '504,136 511,128 510,122 521,118 529.6,128 528,140 513,143 499.98,174 494,187 501,196 '
        '494,206 522,256 527.7,264 573,287 586.7,303 583.5,312 594,322 609,342 621,366 626.8,395 '
        '620,424 603.8,446 581,454 552,449 524.6,436 503.7,411 481.8,381 470,346 466,328 461,331 '
        '460,311 465,294 486,272 450.9,245 454.7,236 446,224 425.6,230 419.8,238 428,262 '
        '432.8,290 422,325 408,352 388,369 361,379 332,379 286,370 235,358 232.6,371 210.8,389 '
        '183,399 157.8,400 128,392 100,370 84.8,345 78,318 80.6,288 99.6,243 100,228 82.7,235 '
        '65.5,247 55.7,243 66,225 49,219',
        hole='463,222 486,208 499,230 515,260 493.7,264 485.8,272',
        splits=('val',),
    ),
    Outline(
        'person',
        'astronaut.png',
        '157,60 165,45 190,38 205,22 235,15 260,20 285,40 298,62 301,88 285,126 272,136 262,152 '
        '255,175 276,188 294,212 305,242 330,254 346,275 364,350 345,353 322,370 302,394 288,425 '
        '281,460 281,511 45,511 30,480 24,450 23,400 27,340 46,280 60,250 85,225 112,208 113,192 '
        '122,180 132,165 152,152 180,148 186,138 172,130 160,112 155,85',
    ),
    Outline(
        'person',
        'camera.png',
        '160,105 166,92 195,66 215,65 235,72 262,97 270,112 270,128 262,133 256,140 252,150 '
        '255,165 246,172 245,182 236,197 243,218 248,245 258,234 263,222 274,206 284,206 286,216 '
        '286,243 288,258 288,289 247,312 207,295 190,322 172,349 141,381 152,511 0,511 0,260 '
        '20,230 35,200 65,150 110,127 130,124 150,107',
        hole='100,447 132,490 140,511 91,511',
    ),
    Outline(
        'rocket',
        'rocket.jpg',
        '328,130 332,138 334,150 334,172 337,180 337,200 335,345 332,350 332,406 312,406 312,350 '
        '309,345 310,200 309,182 313,138 317,130',
    ),
    Outline(
        'rocket',
        'astronaut.png',
        '404,0 421,0 435,25 438,48 443,39 447,42 452,57 455,70 455,208 456,232 460,263 452,269 '
        '433,260 437,237 427,236 425,268 416,268 413,256 406,267 396,268 391,258 384,256 369,272 '
        '370,250 379,231 377,225 356,222 360,203 378,183 381,110 381,60 386,43 395,58',
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


def cut_objects() -> list[CutOut]:
    """Cut all objects of both splits; the watersheds take a few seconds."""
    cuts = cut_coins()
    for outline in OUTLINES:
        photo = load_photo(outline.photo)
        image = cut_out(photo, outline_mask(photo, outline))
        source = f'{outline.category}:{outline.photo}'
        cuts.append(CutOut(outline.category, source, outline.splits, image))
    return cuts


def load_backgrounds(split: str) -> list[Image.Image]:
    """Return the part of each background that a split may use, in the order of ``STUFF``."""
    backgrounds = []
    for name in STUFF:
        photo, *boxes = REGIONS[name]
        backgrounds.append(Image.fromarray(load_photo(photo)).crop(boxes[SPLITS.index(split)]))
    return backgrounds


def load_photo(name: str) -> np.ndarray:
    """Read a photograph (H, W, 3) from the installed scikit-image."""
    with Image.open(Path(skimage.__file__).parent / 'data' / name) as photo:
        return np.asarray(photo.convert('RGB'))


def outline_mask(photo: np.ndarray, outline: Outline) -> np.ndarray:
    """Return the mask (H, W) of an outline, snapped to the edges of the photograph."""
    canvas = Image.new('1', photo.shape[1::-1])
    for polygon, fill in ((outline.polygon, 1), (outline.hole, 0)):
        if polygon:
            vertices = [float(v) for v in polygon.replace(',', ' ').split()]
            ImageDraw.Draw(canvas).polygon(vertices, fill=fill)
    mask = np.array(canvas)
    # The frame of the photograph must not count as background, or cut objects would shrink there.
    inside = ndimage.binary_erosion(mask, iterations=EDGE_BAND, border_value=1)
    markers = np.where(ndimage.binary_dilation(mask, iterations=EDGE_BAND), 0, 1)
    markers[inside] = 2
    snapped = segmentation.watershed(filters.sobel(color.rgb2gray(photo)), markers) == 2
    return ndimage.binary_opening(snapped) | inside


def cut_coins() -> list[CutOut]:
    """Cut the coins of ``coins.png`` in reading order, one in three for validation."""
    photo = load_photo('coins.png')
    gray = photo[..., 0]
    markers = np.zeros(gray.shape, dtype=int)
    markers[gray < 30] = 1
    markers[gray > 150] = 2
    mask = segmentation.watershed(filters.sobel(gray), markers) == 2
    mask = morphology.opening(ndimage.binary_fill_holes(mask), morphology.disk(5))
    regions = [r for r in measure.regionprops(measure.label(mask)) if r.area > 400]
    # The four rows of coins lie about 75 pixels apart.
    regions.sort(key=lambda r: (round((r.centroid[0] - 40) / 75), r.centroid[1]))
    cuts = []
    for i, region in enumerate(regions):
        coin = np.zeros(gray.shape, dtype=bool)
        coin[region.slice] = region.image_convex
        split = 'val' if i % 3 == 2 else 'train'
        cuts.append(CutOut('coin', f'coin:coins.png:{i:02d}', (split,), cut_out(photo, coin)))
    return cuts


def cut_out(photo: np.ndarray, mask: np.ndarray) -> Image.Image:
    """Crop an object to an RGBA image whose alpha fades over about one pixel at the border."""
    # One pixel less keeps the colors of the photograph's background out of the fringe.
    mask = ndimage.binary_erosion(mask, border_value=1)
    left, top, right, bottom = Image.fromarray(mask).getbbox()
    box = np.s_[top:bottom, left:right]
    alpha = ndimage.gaussian_filter(np.pad(mask[box].astype(float), 2), 0.7)
    rgb = np.pad(photo[box], ((2, 2), (2, 2), (0, 0)), mode='edge')
    return Image.fromarray(np.dstack([rgb, np.rint(alpha * 255).astype(np.uint8)]))
