"""Create the demo dataset: real objects on real backgrounds, with exact masks.

The objects and backgrounds come from the sample images in scikit-image's wheel (see
`demo_objects.py`), so nothing is downloaded. The layout of the result is::

    OUT/
      images/train/000001.jpg ...           images/val/...
      annotations/instances_train.json      annotations/instances_val.json   (COCO instances)
      annotations/train/000001.png ...      annotations/val/...              (label maps)
      crops/train/cat/000001_1.jpg ...      crops/val/...                    (one object each)

Label maps follow ADE20K: 0 means "no label" (not used here), 1 to 6 are the objects in the order of
their COCO category ids, 7 to 11 the backgrounds (brick, grass, gravel, space, wood). Read them with
``reduce_zero_label=True``. The crops are for classification, with one folder for each of the six
objects. The same library versions produce the same bytes.

Example:
    python tools/dataset_converters/make_demo_dataset.py data/demo
"""

import argparse
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from demo_objects import SPLITS, STUFF, THINGS, CutOut, cut_objects, load_backgrounds
from PIL import Image

MAX_OBJECTS = 4
# An object is placed only where at least this share of it and of the others stays visible.
MIN_VISIBLE = 0.35
NUM_TRIES = 8
# Longest side of an object, as a share of the image side.
SCALES = {'coin': (0.2, 0.36), 'rocket': (0.5, 0.85)}
DEFAULT_SCALE = (0.35, 0.65)
# Largest rotation in degrees; only coins lie in any direction.
ROTATIONS = {'coin': 180.0}
DEFAULT_ROTATION = 25.0
# Margin of a crop around its object, as a share of the longer side of the object's box.
CROP_MARGIN = 0.1
# Colors of the label maps: no label, the objects, the backgrounds.
PALETTE = bytes.fromhex(
    '000000 ff8c28 fadc3c 1ebeaa e6283c f56ebe 3c96fa 965aa0 64b43c 7896b4 463cb4 be8c50'
)


@dataclass
class Placed:
    """An object in an image, with the mask (H, W) of what is visible of it."""

    cut: CutOut
    visible: np.ndarray
    full_area: int


def make_demo_dataset(out: Path, num_train: int, num_val: int, size: int) -> None:
    """Create the demo dataset of square images; the folder appears when it is complete."""
    if out.exists():
        raise FileExistsError(f'{out} exists; delete it to create the dataset again')
    part = out.with_name(out.name + '.part')
    shutil.rmtree(part, ignore_errors=True)
    objects = cut_objects()
    for split, num_images in zip(SPLITS, (num_train, num_val), strict=True):
        write_split(part, split, num_images, size, objects)
    part.rename(out)


def write_split(root: Path, split: str, num_images: int, side: int, objects: list[CutOut]) -> None:
    """Write images, label maps, COCO annotations and crops of one split."""
    image_dir, label_dir = root / 'images' / split, root / 'annotations' / split
    image_dir.mkdir(parents=True)
    label_dir.mkdir(parents=True)
    objects = [cut for cut in objects if split in cut.splits]
    backgrounds = load_backgrounds(split)
    images, annotations = [], []
    for i in range(1, num_images + 1):
        # A generator for each image: the first images do not depend on how many follow.
        rng = np.random.default_rng([0, SPLITS.index(split), i])
        image, labels, placed = compose(objects, backgrounds, side, rng)
        image.save(image_dir / f'{i:06d}.jpg', quality=95, subsampling=0)
        label_map = Image.fromarray(labels)
        label_map.putpalette(PALETTE)
        label_map.save(label_dir / f'{i:06d}.png')
        images.append({'id': i, 'file_name': f'{i:06d}.jpg', 'width': side, 'height': side})
        for number, p in enumerate(placed, 1):
            annotations.append(make_annotation(p, i, len(annotations) + 1))
            path = root / 'crops' / split / p.cut.category / f'{i:06d}_{number}.jpg'
            save_crop(image, annotations[-1]['bbox'], path)
        if i % 100 == 0 or i == num_images:
            print(f'{split}: {i} of {num_images} images', flush=True)
    instances = {
        'info': {'description': f'mmvmamba demo dataset, {split}', 'version': '1'},
        'images': images,
        'annotations': annotations,
        'categories': [{'id': i, 'name': name} for i, name in enumerate(THINGS, 1)],
    }
    text = json.dumps(instances, separators=(',', ':'))
    (root / 'annotations' / f'instances_{split}.json').write_text(text + '\n', encoding='utf-8')


def compose(
    objects: list[CutOut], backgrounds: list[Image.Image], side: int, rng: np.random.Generator
) -> tuple[Image.Image, np.ndarray, list[Placed]]:
    """Compose one image; return it with its label map (H, W) and its objects."""
    image, labels = make_background(backgrounds, side, rng)
    placed: list[Placed] = []
    for _ in range(rng.integers(1, MAX_OBJECTS + 1)):
        category = THINGS[rng.integers(len(THINGS))]
        choices = [cut for cut in objects if cut.category == category]
        paste_object(image, placed, choices[rng.integers(len(choices))], rng)
    for p in placed:
        labels[p.visible] = 1 + THINGS.index(p.cut.category)
    return image, labels, placed


def make_background(
    backgrounds: list[Image.Image], side: int, rng: np.random.Generator
) -> tuple[Image.Image, np.ndarray]:
    """Return one background, or two that meet in a straight line, with the label map (H, W)."""
    first, second = rng.choice(len(STUFF), size=2, replace=False)
    image = crop_background(backgrounds[first], side, rng)
    labels = np.full((side, side), len(THINGS) + 1 + first, dtype=np.uint8)
    if rng.random() < 0.5:
        return image, labels
    angle, offset = rng.uniform(0, 2 * np.pi), rng.uniform(-0.25, 0.25) * side
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    half = x * np.cos(angle) + y * np.sin(angle) > offset
    image.paste(crop_background(backgrounds[second], side, rng), mask=Image.fromarray(half))
    labels[half] = len(THINGS) + 1 + second
    return image, labels


def crop_background(image: Image.Image, side: int, rng: np.random.Generator) -> Image.Image:
    """Crop a random square of a background, resize it to the image side and turn it."""
    limit = min(image.size)
    crop = rng.integers(min(100, limit), min(200, limit) + 1)
    left, top = (rng.integers(length - crop + 1) for length in image.size)
    image = image.crop((left, top, left + crop, top + crop))
    image = image.resize((side, side), Image.Resampling.LANCZOS)
    image = image.rotate(90 * rng.integers(4))
    return relight(image, rng.uniform(0.8, 1.2))


def paste_object(
    image: Image.Image, placed: list[Placed], cut: CutOut, rng: np.random.Generator
) -> None:
    """Paste an object in front of the others, if there is room; extend ``placed``."""
    patch = transform_object(cut, image.width, rng)
    full_area = (np.asarray(patch)[..., 3] >= 128).sum()
    for _ in range(NUM_TRIES):
        x, y = (round(rng.uniform(0.1, 0.9) * image.width - s / 2) for s in patch.size)
        alpha = Image.new('L', image.size)
        alpha.paste(patch.getchannel('A'), (x, y))
        mask = np.asarray(alpha) >= 128
        rest = [p.visible & ~mask for p in placed]
        shares = [r.sum() / p.full_area for r, p in zip(rest, placed, strict=True)]
        if min([mask.sum() / full_area, *shares]) >= MIN_VISIBLE:
            for p, visible in zip(placed, rest, strict=True):
                p.visible = visible
            placed.append(Placed(cut, mask, full_area))
            image.paste(patch, (x, y), patch)
            return


def transform_object(cut: CutOut, side: int, rng: np.random.Generator) -> Image.Image:
    """Scale, flip, rotate and slightly re-light an object at random, for an image side."""
    scale = rng.uniform(*SCALES.get(cut.category, DEFAULT_SCALE)) * side / max(cut.image.size)
    size = tuple(max(4, round(scale * s)) for s in cut.image.size)
    # Pillow weighs colors by alpha in resize and rotate: no halo from transparent pixels.
    image = cut.image.resize(size, Image.Resampling.LANCZOS)
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    limit = ROTATIONS.get(cut.category, DEFAULT_ROTATION)
    image = image.rotate(rng.uniform(-limit, limit), Image.Resampling.BICUBIC, expand=True)
    return relight(image, rng.uniform(0.8, 1.15) * rng.uniform(0.95, 1.05, size=3))


def relight(image: Image.Image, gain: float | np.ndarray) -> Image.Image:
    """Multiply the colors of an RGB or RGBA image by a factor, or by one for each channel."""
    pixels = np.asarray(image).astype(float)
    pixels[..., :3] *= gain
    return Image.fromarray(np.rint(pixels.clip(0, 255)).astype(np.uint8))


def make_annotation(placed: Placed, image_id: int, annotation_id: int) -> dict:
    """Return the COCO annotation of one object; `source` names what it was cut from."""
    mask = placed.visible
    left, top, right, bottom = Image.fromarray(mask).getbbox()
    # Uncompressed run lengths, column by column, starting with the background.
    changes = np.flatnonzero(np.diff(mask.ravel(order='F'), prepend=False))
    counts = np.diff(changes, prepend=0, append=mask.size)
    return {
        'id': annotation_id,
        'image_id': image_id,
        'category_id': 1 + THINGS.index(placed.cut.category),
        'bbox': [left, top, right - left, bottom - top],
        'area': int(mask.sum()),
        'iscrowd': 0,
        'segmentation': {'size': list(mask.shape), 'counts': counts.tolist()},
        'source': placed.cut.source,
    }


def save_crop(image: Image.Image, box: list[int], path: Path) -> None:
    """Save the part of a square image around a box (x, y, width, height)."""
    x, y, width, height = box
    margin = round(CROP_MARGIN * max(width, height))
    corners = [x - margin, y - margin, x + width + margin, y + height + margin]
    crop = image.crop(np.clip(corners, 0, image.width).tolist())
    path.parent.mkdir(parents=True, exist_ok=True)
    crop.save(path, quality=95, subsampling=0)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Create the demo dataset from the sample images of scikit-image.',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument('out', type=Path, help='output folder')
    parser.add_argument('--num-train', type=int, default=400, help='number of training images')
    parser.add_argument('--num-val', type=int, default=80, help='number of validation images')
    parser.add_argument('--size', type=int, default=160, help='side of the square images (pixels)')
    return parser.parse_args()


if __name__ == '__main__':
    try:
        make_demo_dataset(**vars(parse_args()))
    except OSError as error:
        sys.exit(f'error: {error}')
