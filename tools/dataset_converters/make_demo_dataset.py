"""Make the demo data set: real objects on real backgrounds, with exact masks.

The objects and backgrounds come from the sample photographs inside scikit-image's wheel (see
`demo_objects.py`), so nothing is downloaded. Layout of the result::

    OUT/
      images/train/000001.jpg ...           images/val/...
      annotations/instances_train.json      annotations/instances_val.json   (COCO instances)
      annotations/train/000001.png ...      annotations/val/...              (label maps)
      crops/train/cat/000001_1.jpg ...      crops/val/...                    (one object each)
      manifest.json                         arguments, classes, checksum

Label maps follow ADE20K: 0 means "no label" (it does not occur here), 1 to 6 are the objects in
the order of their COCO category ids, 7 to 11 the backgrounds. Read them with
``reduce_zero_label=True``. The crops are for classification, in a folder for each of the six
objects. The same seed gives the same bytes with the same library versions.

Example:
    python tools/dataset_converters/make_demo_dataset.py data/demo
"""

import argparse
import hashlib
import json
import logging
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from demo_objects import SPLITS, STUFF, THINGS, CutOut, load_backgrounds, load_objects
from PIL import Image

logger = logging.getLogger('make_demo_dataset')

# To be raised whenever the same arguments would give other images.
VERSION = 2
# Of the images and their annotations, which are those of version 1.
ANNOTATION_VERSION = 1

MAX_OBJECTS = 4
# An object of which less than this share can be seen is not placed, so every object is annotated.
MIN_VISIBLE = 0.35
NUM_TRIES = 8
# Longest side of an object, as a share of the image side.
SCALES = {'coin': (0.2, 0.36), 'rocket': (0.5, 0.85)}
DEFAULT_SCALE = (0.35, 0.65)
# Largest rotation in degrees; only coins lie in any direction.
ROTATIONS = {'coin': 180.0}
DEFAULT_ROTATION = 25.0
# What a crop shows around its object, as a share of the object's box.
CROP_MARGIN = 0.1

PALETTE = (
    (0, 0, 0),
    (220, 140, 60),
    (250, 220, 60),
    (150, 60, 30),
    (220, 30, 40),
    (240, 130, 180),
    (60, 160, 240),
    (130, 90, 90),
    (70, 170, 70),
    (140, 140, 150),
    (50, 40, 120),
    (190, 150, 100),
)


@dataclass
class Placed:
    """An object in an image: its category, where it comes from, and its visible mask (H, W)."""

    category: str
    source: str
    visible: np.ndarray
    full_area: int


def transform_object(cut: CutOut, side: int, rng: np.random.Generator) -> Image.Image:
    """Scale, flip, rotate and slightly re-light a cut-out, drawn at random.

    Args:
        cut (CutOut): The object.
        side (int): Side of the image it is for.
        rng (np.random.Generator): Source of randomness.

    Returns:
        PIL.Image.Image: RGBA image.
    """
    scale = rng.uniform(*SCALES.get(cut.category, DEFAULT_SCALE)) * side / max(cut.image.size)
    size = tuple(max(4, round(scale * s)) for s in cut.image.size)
    # Pillow weighs colours by alpha in resize and rotate: no halo from transparent pixels.
    image = cut.image.resize(size, Image.Resampling.LANCZOS)
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    limit = ROTATIONS.get(cut.category, DEFAULT_ROTATION)
    angle = rng.uniform(-limit, limit)
    image = image.rotate(angle, Image.Resampling.BICUBIC, expand=True)
    rgba = np.asarray(image).astype(np.float64)
    rgba[..., :3] *= rng.uniform(0.8, 1.15) * rng.uniform(0.95, 1.05, size=3)
    return Image.fromarray(np.rint(rgba.clip(0, 255)).astype(np.uint8))


def crop_background(image: Image.Image, side: int, rng: np.random.Generator) -> Image.Image:
    """Random square crop of a background, flipped or turned, resized to the image side."""
    limit = min(image.size)
    crop = int(rng.integers(min(100, limit), min(200, limit) + 1))
    left = int(rng.integers(image.width - crop + 1))
    top = int(rng.integers(image.height - crop + 1))
    image = image.crop((left, top, left + crop, top + crop))
    image = image.resize((side, side), Image.Resampling.LANCZOS)
    image = image.rotate(90 * int(rng.integers(4)))
    pixels = np.asarray(image).astype(np.float64) * rng.uniform(0.8, 1.2)
    return Image.fromarray(np.rint(pixels.clip(0, 255)).astype(np.uint8))


def make_background(
    backgrounds: dict[str, Image.Image], side: int, rng: np.random.Generator
) -> tuple[Image.Image, np.ndarray]:
    """One background, or two that meet in a straight line, with the label map (H, W)."""
    first, second = rng.choice(len(STUFF), size=2, replace=False)
    image = crop_background(backgrounds[STUFF[first]], side, rng)
    labels = np.full((side, side), len(THINGS) + 1 + first, dtype=np.uint8)
    if rng.random() < 0.5:
        return image, labels
    angle, offset = rng.uniform(0, 2 * np.pi), rng.uniform(-0.25, 0.25) * side
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    half = x * np.cos(angle) + y * np.sin(angle) > offset
    other = crop_background(backgrounds[STUFF[second]], side, rng)
    image.paste(other, mask=Image.fromarray(half))
    labels[half] = len(THINGS) + 1 + second
    return image, labels


def paste_object(
    image: Image.Image, placed: list[Placed], cut: CutOut, rng: np.random.Generator
) -> None:
    """Put an object in front of the others, where enough of every object stays visible.

    Args:
        image (PIL.Image.Image): RGB image, changed in place.
        placed (list[Placed]): Objects so far, changed in place.
        cut (CutOut): The object; left out if no place is found.
        rng (np.random.Generator): Source of randomness.
    """
    side = image.width
    patch = transform_object(cut, side, rng)
    full_area = int((np.asarray(patch)[..., 3] >= 128).sum())
    for _ in range(NUM_TRIES):
        x, y = (round(rng.uniform(0.1, 0.9) * side - s / 2) for s in patch.size)
        layer = Image.new('RGBA', image.size)
        layer.paste(patch, (x, y))
        mask = np.asarray(layer)[..., 3] >= 128
        rest = [p.visible & ~mask for p in placed]
        shares = [mask.sum() / full_area]
        shares += [r.sum() / p.full_area for r, p in zip(rest, placed, strict=True)]
        if min(shares) < MIN_VISIBLE:
            continue
        for p, visible in zip(placed, rest, strict=True):
            p.visible = visible
        placed.append(Placed(cut.category, cut.source, mask, full_area))
        image.paste(layer, mask=layer.getchannel('A'))
        return


def compose(
    objects: dict[str, list[CutOut]],
    backgrounds: dict[str, Image.Image],
    side: int,
    rng: np.random.Generator,
) -> tuple[Image.Image, np.ndarray, list[Placed]]:
    """Compose one image.

    Args:
        objects (dict[str, list[CutOut]]): Objects of the split by category.
        backgrounds (dict[str, PIL.Image.Image]): Backgrounds of the split.
        side (int): Image side in pixels.
        rng (np.random.Generator): Source of randomness.

    Returns:
        tuple[PIL.Image.Image, np.ndarray, list[Placed]]: Image, label map (H, W), objects.
    """
    image, labels = make_background(backgrounds, side, rng)
    placed: list[Placed] = []
    for _ in range(int(rng.integers(1, MAX_OBJECTS + 1))):
        choices = objects[THINGS[rng.integers(len(THINGS))]]
        paste_object(image, placed, choices[rng.integers(len(choices))], rng)
    for p in placed:
        labels[p.visible] = 1 + THINGS.index(p.category)
    return image, labels, placed


def encode_mask(mask: np.ndarray) -> dict:
    """Uncompressed COCO run lengths, exact and read by pycocotools without conversion."""
    flat = mask.ravel(order='F')
    bounds = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff(np.concatenate([[0], bounds, [flat.size]])).tolist()
    # Run lengths start with background.
    return {'size': list(mask.shape), 'counts': [0, *counts] if flat[0] else counts}


def make_annotation(placed: Placed, image_id: int, annotation_id: int) -> dict:
    """COCO annotation of one object; `source` names the object it was cut from."""
    rows = np.flatnonzero(placed.visible.any(axis=1))
    cols = np.flatnonzero(placed.visible.any(axis=0))
    box = [cols[0], rows[0], cols[-1] - cols[0] + 1, rows[-1] - rows[0] + 1]
    return {
        'id': annotation_id,
        'image_id': image_id,
        'category_id': 1 + THINGS.index(placed.category),
        'bbox': [int(v) for v in box],
        'area': int(placed.visible.sum()),
        'iscrowd': 0,
        'segmentation': encode_mask(placed.visible),
        'source': placed.source,
    }


def save_crop(image: Image.Image, annotation: dict, number: int, root: Path) -> None:
    """Save what an image shows of one object in the folder of its category.

    Args:
        image (PIL.Image.Image): The image.
        annotation (dict): The object's annotation.
        number (int): The object's number in the image.
        root (Path): The folder of the split.
    """
    x, y, width, height = annotation['bbox']
    margin = round(CROP_MARGIN * max(width, height))
    box = (x - margin, y - margin, x + width + margin, y + height + margin)
    left, top = (max(0, v) for v in box[:2])
    right, bottom = (min(side, v) for side, v in zip(image.size, box[2:], strict=True))
    folder = root / THINGS[annotation['category_id'] - 1]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f'{annotation["image_id"]:06d}_{number}.jpg'
    image.crop((left, top, right, bottom)).save(path, quality=95, subsampling=0)


def write_json(path: Path, content: dict) -> None:
    """Write JSON with stable bytes."""
    path.write_text(json.dumps(content, separators=(',', ':')) + '\n', encoding='utf-8')


def write_split(root: Path, split: str, num_images: int, seed: int, side: int) -> None:
    """Write images, label maps, COCO annotations and crops of one split."""
    image_dir, label_dir = root / 'images' / split, root / 'annotations' / split
    image_dir.mkdir(parents=True)
    label_dir.mkdir(parents=True)
    objects, backgrounds = load_objects(split), load_backgrounds(split)
    images: list[dict] = []
    annotations: list[dict] = []
    for i in range(1, num_images + 1):
        # A generator for each image: the first images do not depend on how many follow.
        rng = np.random.default_rng([seed, SPLITS.index(split), i])
        image, labels, placed = compose(objects, backgrounds, side, rng)
        image.save(image_dir / f'{i:06d}.jpg', quality=95, subsampling=0)
        label_map = Image.fromarray(labels)
        label_map.putpalette([v for colour in PALETTE for v in colour])
        label_map.save(label_dir / f'{i:06d}.png')
        images.append({'id': i, 'file_name': f'{i:06d}.jpg', 'width': side, 'height': side})
        for number, p in enumerate(placed, 1):
            annotations.append(make_annotation(p, i, len(annotations) + 1))
            save_crop(image, annotations[-1], number, root / 'crops' / split)
        if i % 100 == 0 or i == num_images:
            logger.info('%s: %d of %d images', split, i, num_images)
    write_json(
        root / 'annotations' / f'instances_{split}.json',
        {
            'info': {
                'description': f'mmvmamba demo data, {split}',
                'version': str(ANNOTATION_VERSION),
            },
            'images': images,
            'annotations': annotations,
            'categories': [{'id': i, 'name': name} for i, name in enumerate(THINGS, 1)],
        },
    )


def checksum(root: Path) -> str:
    """SHA-256 over the names and contents of all files but the manifest."""
    digest = hashlib.sha256()
    files = {path.relative_to(root).as_posix(): path for path in root.rglob('*') if path.is_file()}
    files.pop('manifest.json', None)
    for name in sorted(files):
        content = files[name].read_bytes()
        digest.update(f'{name}\n{len(content)}\n'.encode())
        digest.update(content)
    return digest.hexdigest()


def read_manifest(root: Path) -> dict:
    """Manifest of an existing data set; ValueError if the folder holds something else."""
    try:
        manifest = json.loads((root / 'manifest.json').read_text(encoding='utf-8'))
        if manifest['kind'] == 'mmvmamba-demo':
            return manifest
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise ValueError(
        f'out={str(root)!r} exists and is not a demo data set; give a new or an empty folder'
    )


def check_arguments(out: Path, seed: int, num_train: int, num_val: int, size: int) -> None:
    """Raise ValueError for arguments out of range."""
    limits = {
        'seed': (seed, 0, 2**32 - 1),
        'num_train': (num_train, 1, 999_999),
        'num_val': (num_val, 1, 999_999),
        'size': (size, 32, 1024),
    }
    for name, (value, low, high) in limits.items():
        if not low <= value <= high:
            raise ValueError(f'{name}={value} is not allowed: it must be from {low} to {high}')
    if out.exists() and not out.is_dir():
        raise ValueError(f'out={str(out)!r} is a file; it must be a folder or not exist yet')


def can_reuse(out: Path, arguments: dict, force: bool) -> bool:
    """Whether the folder already holds this data set, complete; ValueError if it holds another."""
    if not out.is_dir() or not any(out.iterdir()):
        return False
    manifest = read_manifest(out)
    if force:
        return False
    same = manifest.get('version') == VERSION and manifest.get('arguments') == arguments
    if not same:
        raise ValueError(
            f'out={str(out)!r} holds a demo data set with version={manifest.get("version")}, '
            f'arguments={manifest.get("arguments")}; asked for version={VERSION}, '
            f'arguments={arguments}. Give another folder, or force=True (--force) to replace it'
        )
    if manifest.get('sha256') == checksum(out):
        return True
    logger.warning('%s is damaged or incomplete; it is made again', out)
    return False


def replace_folder(new: Path, out: Path) -> None:
    """Move a finished folder to its place, in one step where there was none or an empty one."""
    if out.is_dir() and any(out.iterdir()):
        old = new.with_name(new.name + '-old')
        out.rename(old)
        new.rename(out)
        shutil.rmtree(old)
    else:
        new.rename(out)


def make_demo_dataset(
    out: str | os.PathLike,
    seed: int = 0,
    num_train: int = 400,
    num_val: int = 80,
    size: int = 160,
    force: bool = False,
) -> Path:
    """Make the demo data set, or reuse a complete one made with the same arguments.

    Args:
        out (str | os.PathLike): Folder to make.
        seed (int): Seed. Defaults to 0.
        num_train (int): Number of training images. Defaults to 400.
        num_val (int): Number of validation images. Defaults to 80.
        size (int): Side of the square images in pixels. Defaults to 160.
        force (bool): Make it again even if it is there. Defaults to False.

    Returns:
        Path: The folder.
    """
    out = Path(out).resolve()
    check_arguments(out, seed, num_train, num_val, size)
    arguments = {'seed': seed, 'num_train': num_train, 'num_val': num_val, 'size': size}
    if can_reuse(out, arguments, force):
        logger.info('%s is complete and is used as it is', out)
        return out
    out.parent.mkdir(parents=True, exist_ok=True)
    # A sibling folder is on the same file system, so that the final rename is atomic.
    work = out.with_name(f'.{out.name}.tmp-{os.getpid()}')
    shutil.rmtree(work, ignore_errors=True)
    try:
        for split, num_images in zip(SPLITS, (num_train, num_val), strict=True):
            write_split(work, split, num_images, seed, size)
        manifest = {
            'kind': 'mmvmamba-demo',
            'version': VERSION,
            'arguments': arguments,
            'things': THINGS,
            'stuff': STUFF,
            'palette': PALETTE,
            'sha256': checksum(work),
        }
        write_json(work / 'manifest.json', manifest)
        replace_folder(work, out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    logger.info('%s: %d training and %d validation images', out, num_train, num_val)
    return out


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description='Make the demo data set from the photographs inside scikit-image.',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument('out', help='folder to make')
    parser.add_argument('--seed', type=int, default=0, help='same seed, same bytes')
    parser.add_argument('--num-train', type=int, default=400, help='number of training images')
    parser.add_argument('--num-val', type=int, default=80, help='number of validation images')
    parser.add_argument('--size', type=int, default=160, help='side of the square images')
    parser.add_argument('--force', action='store_true', help='make it again if it is there')
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; a user's mistake is one line on stderr and exit status 1."""
    logging.basicConfig(level=logging.INFO, format='%(message)s')
    try:
        make_demo_dataset(**vars(parse_args(argv)))
    except (ValueError, OSError) as error:
        logger.error('error: %s', error)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
