"""Classify images: ``mmvmamba.classify`` and ``python -m mmvmamba.predict FOLDER``.

Requires torchvision, which installs Pillow.
"""

import argparse
import contextlib
import csv
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .checkpoint.released import IMAGENET_CLASSES, IMAGENET_CROP, IMAGENET_MEAN, IMAGENET_STD
from .nn import create_model, list_models
from .progress import Progress

_logger = logging.getLogger(__name__)
#: Longest over shortest side of an image. The resized image of a longer one would fill the memory.
_MAX_ASPECT = 100

Image = str | os.PathLike[str] | Tensor | Any  # or a PIL.Image.Image
Predictions = list[tuple[str, float]]
Row = tuple[str, Predictions, str]  # a file with its classes or an error message


def classify(
    model: nn.Module, image: Image | Sequence[Image], topk: int = 5, size: int = 224
) -> Predictions | list[Predictions]:
    """Return the most probable classes of an image, or of each image of a list.

    Preprocessing follows the authors' evaluation: resize the shorter side to ``size / 0.875``
    pixels (bicubic), crop the center, and normalize with ImageNet's mean and standard deviation.
    Images are also rotated by their EXIF orientation. Grayscale, CMYK and palette images are
    converted to RGB, transparency is ignored, and 16-bit grayscale is reduced to 8 bits.

    Args:
        model (nn.Module): A classifier, for example from :func:`mmvmamba.nn.create_model`. It runs
            in eval mode on its current device.
        image (str | PathLike | PIL.Image.Image | Tensor | list): A file, a PIL image, or a uint8
            tensor (3, H, W); or a list of them, which form one batch.
        topk (int): Number of classes to return; all if the model has fewer. Defaults to 5.
        size (int): Side of the crop (pixels). Defaults to 224.

    Returns:
        list[tuple[str, float]]: Names and probabilities, most probable class first; a list of such
        lists for a list of images. Names are ``model.class_names`` if set, otherwise those of
        ImageNet for 1000 classes, or class indices.

    Raises:
        FileNotFoundError: If a file does not exist.
        ImportError: If torchvision is not installed.
        TypeError: If an argument has a wrong type.
        ValueError: If an image cannot be read, its sides differ by more than a factor of 100, or
            the model is not a classifier.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f'model must be a torch.nn.Module, but got {type(model).__name__}')
    for name, value in (('topk', topk), ('size', size)):
        if not isinstance(value, int):
            raise TypeError(f'{name} must be an int, but got {value!r}')
        if value < 1:
            raise ValueError(f'{name} must be at least 1, but got {value}')
    if not isinstance(image, list | tuple):
        return _top(model, preprocess(image, size).unsqueeze(0), topk)[0]
    if not image:
        return []
    return _top(model, torch.stack([preprocess(item, size) for item in image]), topk)


def _top(model: nn.Module, batch: Tensor, topk: int) -> list[Predictions]:
    """Return the most probable classes of preprocessed images (N, 3, H, W)."""
    scores = _scores(model, batch)
    names = class_names(model, scores.shape[1])
    top = scores.float().softmax(1).topk(min(topk, len(names)))
    return [
        [(names[i], p) for i, p in zip(indices, values, strict=True)]
        for indices, values in zip(top.indices.tolist(), top.values.tolist(), strict=True)
    ]


@torch.no_grad()
def _scores(model: nn.Module, batch: Tensor) -> Tensor:
    """Images (N, 3, H, W) -> scores (N, classes), in eval mode."""
    weight = next(model.parameters(), None)
    if weight is not None:
        batch = batch.to(weight.device, weight.dtype)
    with _in_eval_mode(model):
        scores = model(batch)
    if getattr(model, 'num_classes', None) == 0:
        returned = 'pooled features'
    elif not isinstance(scores, Tensor):
        returned = type(scores).__name__
    elif scores.dim() != 2:
        returned = f'shape {tuple(scores.shape)}'
    else:
        return scores
    raise ValueError(
        f'model must return scores (N, classes), but this {type(model).__name__} '
        f'returned {returned}'
    )


@contextlib.contextmanager
def _in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Switch to eval mode, and back for each module that was in training mode."""
    training = [module for module in model.modules() if module.training]
    if training:
        model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def class_names(model: nn.Module, count: int) -> Sequence[str]:
    """Return the names of a model's classes: its own, those of ImageNet-1k, or the indices."""
    names = getattr(model, 'class_names', None)
    if names is not None and len(names) == count:
        return names
    return imagenet_names() if count == IMAGENET_CLASSES else [str(i) for i in range(count)]


def imagenet_names() -> tuple[str, ...]:
    """Return torchvision's names of the classes of ImageNet-1k.

    Raises:
        ImportError: If torchvision is not installed.
    """
    _check_torchvision()
    from torchvision.models import ResNet50_Weights

    return tuple(ResNet50_Weights.IMAGENET1K_V2.meta['categories'])


def preprocess(image: Image, size: int = 224) -> Tensor:
    """Return an image as a normalized tensor (3, size, size), as :func:`mmvmamba.classify` does."""
    _check_torchvision()
    from torchvision import transforms

    steps = transforms.Compose(
        [
            transforms.Resize(int(size / IMAGENET_CROP), transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    return steps(_as_rgb(image))


def _check_torchvision() -> None:
    try:
        import torchvision  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f'{error}; mmvmamba.predict requires it: pip install torchvision'
        ) from error


def _as_rgb(image: Image) -> Any:
    """Return a file, a PIL image or a tensor as a PIL image in RGB."""
    import PIL.Image
    from torchvision.transforms.functional import to_pil_image

    if isinstance(image, Tensor):
        if image.dtype != torch.uint8 or image.dim() != 3 or image.shape[0] != 3:
            raise ValueError(
                'a tensor must be a uint8 image (3, H, W), but got shape '
                f'{tuple(image.shape)} and {image.dtype}'
            )
        with _named('the tensor'):
            return _converted(to_pil_image(image.cpu()))
    if isinstance(image, PIL.Image.Image):
        with _named('the image'):
            return _converted(image)
    if not isinstance(image, str | os.PathLike):
        raise TypeError(
            'image must be a path, a PIL image, a uint8 tensor (3, H, W) or a list of them, but '
            f'got {type(image).__name__}'
        )
    path = os.fsdecode(image)
    if not os.path.isfile(path):
        raise FileNotFoundError(f'image {path!r} does not exist or is not a file')
    with _named(f'image {path!r}'), PIL.Image.open(path) as opened:
        return _converted(opened)


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """Turn any error into a ValueError that names the image."""
    try:
        yield
    except Exception as error:  # a damaged file can make Pillow raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f'{name} cannot be read: {reason}') from error


def _converted(image: Any) -> Any:
    import numpy as np
    import PIL.Image
    import PIL.ImageOps

    if max(image.size) > _MAX_ASPECT * min(image.size):
        raise ValueError(
            f'its sides must differ by a factor of at most {_MAX_ASPECT}, but are '
            f'{image.width} x {image.height} pixels'
        )
    if image.mode in ('I', 'F'):
        raise ValueError(f'its channels must have 8 or 16 bits, but have 32 (mode {image.mode!r})')
    image = PIL.ImageOps.exif_transpose(image)
    if image.mode.startswith('I;16'):
        image = PIL.Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert('RGB')


def find_images(inputs: Sequence[str]) -> list[str]:
    """Return the files among the inputs, and the images in the folders, subfolders included.

    Raises:
        FileNotFoundError: If an input does not exist.
        ValueError: If a folder contains no images.
    """
    _check_torchvision()
    from torchvision.datasets.folder import is_image_file

    files = []
    for name in inputs:
        if os.path.isdir(name):
            paths = [path for path in Path(name).rglob('*') if not path.is_dir()]
            inside = [str(path) for path in paths if is_image_file(path.name)]
            if not inside:
                raise ValueError(f'folder {name!r} contains no images')
            if others := len(paths) - len(inside):
                _logger.info('%s: skipped %d files without an image suffix', name, others)
            files += sorted(inside)
        elif os.path.isfile(name):
            files.append(name)
        else:
            raise FileNotFoundError(f'{name!r} does not exist')
    return files


def predict_files(
    model: nn.Module, files: Sequence[str], topk: int = 5, size: int = 224, batch_size: int = 16
) -> Iterator[Row]:
    """Yield each file with the most probable classes of its image, or with an error message.

    The arguments are those of :func:`mmvmamba.classify`. Threads read the images of a batch.
    """

    def read(file: str) -> Tensor | str:
        try:
            return preprocess(file, size)
        except (OSError, ValueError) as error:
            return str(error)

    with ThreadPoolExecutor() as threads:
        for start in range(0, len(files), batch_size):
            batch = files[start : start + batch_size]
            images = list(threads.map(read, batch))
            tensors = [image for image in images if isinstance(image, Tensor)]
            found = iter(_top(model, torch.stack(tensors), topk) if tensors else ())
            for file, image in zip(batch, images, strict=True):
                yield (file, [], image) if isinstance(image, str) else (file, next(found), '')


def write_csv(path: str, rows: Iterator[Row], topk: int) -> list[str]:
    """Write a row for each file: names and probabilities, or an error; return the errors."""
    errors = []
    with open(path, 'w', newline='', encoding='utf-8', errors='surrogateescape') as file:
        writer = csv.writer(file)
        columns = [f'{kind}{i + 1}' for i in range(topk) for kind in ('label', 'probability')]
        writer.writerow(['file', *columns, 'error'])
        for name, predictions, error in rows:
            cells = [cell for label, p in predictions for cell in (label, f'{p:.6f}')]
            writer.writerow([name, *cells, *[''] * (2 * topk - len(cells)), error])
            if error:
                errors.append(error)
    return errors


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='python -m mmvmamba.predict',
        description='Write the most probable classes of images to a CSV file. The exit status is '
        '1 if an image cannot be read; its row contains the reason.',
    )
    parser.add_argument('images', nargs='+', help='image files and folders of images')
    parser.add_argument('--model', default='vmamba_tiny', help=f'one of {", ".join(list_models())}')
    parser.add_argument(
        '--pretrained',
        default=True,
        metavar='FILE_OR_URL',
        help='weights: a released file or a training checkpoint, which also sets the classes '
        '(default: the released ImageNet weights, which are downloaded)',
    )
    parser.add_argument(
        '--out', default='predictions.csv', help='file to write (default: predictions.csv)'
    )
    parser.add_argument('--topk', type=_positive, default=5, help='classes per row (default: 5)')
    parser.add_argument(
        '--size', type=_positive, default=224, help='side of the crop in pixels (default: 224)'
    )
    parser.add_argument('--batch-size', type=_positive, default=16, help='(default: 16)')
    parser.add_argument('--device', help='cpu, cuda:0, ... (default: a GPU if available)')
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'must be an integer of at least 1, but got {text!r}')
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = _parser()
    args = parser.parse_args(argv)
    logging.basicConfig(format='%(message)s')
    logging.getLogger('mmvmamba').setLevel(logging.INFO)  # downloads, and what was loaded
    try:
        files = find_images(args.images)
        model = create_model(args.model, args.pretrained)
        rows = predict_files(_to(model, args.device), files, args.topk, args.size, args.batch_size)
        progress = Progress(f'classifying {len(files):,} images', len(files), _logger.info)
        errors = write_csv(args.out, _counted(rows, progress), args.topk)
    except (ImportError, OSError, ValueError) as error:
        parser.error(str(error))
    for error in errors:
        sys.stderr.write(f'{error}\n')
    unread = f', {len(errors)} of which cannot be read' if errors else ''
    plural = '' if len(files) == 1 else 's'
    sys.stdout.write(f'{args.out}: {len(files)} image{plural}{unread}\n')
    return 1 if errors else 0


def _counted(rows: Iterator[Row], progress: Progress) -> Iterator[Row]:
    for row in rows:
        progress.step()
        yield row


def _to(model: nn.Module, device: str | None) -> nn.Module:
    device = device or ('cuda' if torch.cuda.is_available() else 'cpu')
    try:
        return model.to(device)
    except (AssertionError, RuntimeError) as error:  # without CUDA, or not a device
        reason = str(error).splitlines()[0]
        raise ValueError(f'--device {device} cannot be used: {reason}') from error


if __name__ == '__main__':
    sys.exit(main())
