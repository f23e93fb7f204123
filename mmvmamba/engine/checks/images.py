"""Checks of the files of a dataset, before anything is built from them."""

import os
from collections.abc import Iterable, Mapping
from typing import Any

from mmvmamba.engine.errors import UserError

from .class_folders import check_classification
from .classes import Head
from .coco import coco_files, read_coco
from .configs import dataset_class
from .folders import Folder, report_missing
from .image_files import read_all, read_image, report_images, report_sizes, spread
from .report import Report
from .segmentation import check_segmentation
from .settings import Loader, data_folder, image_loader, is_remote, setting

_COCO = ('CocoDataset.parse_data_info', 'CocoPanopticDataset.parse_data_info')


def check_images(
    leaf: Mapping[str, Any],
    report: Report,
    sample: int | None = 64,
    channels: int | None = None,
    head: Head | None = None,
) -> None:
    """Check that images and label maps exist, and decode some of them.

    Datasets of mmdet with COCO files, those of mmseg, and those of mmpretrain that read folders
    of classes or a list are checked; others have formats of their own.

    Args:
        leaf (Mapping[str, Any]): The config of a dataset, without wrappers around it.
        report (Report): Gets the problems.
        sample (int, optional): The number of images to decode, spread over the dataset; None for
            all. Defaults to 64.
        channels (int, optional): Number of image channels of the model. Defaults to None, unknown.
        head (Head, optional): The head of a segmentor or classifier that is trained with the
            labels. Defaults to None.
    """
    kind = dataset_class(leaf)
    listing = getattr(getattr(kind, 'load_data_list', None), '__qualname__', '')
    parsing = getattr(getattr(kind, 'parse_data_info', None), '__qualname__', '')
    is_coco = listing == 'CocoDataset.load_data_list' and parsing in _COCO
    checks = {
        'BaseSegDataset.load_data_list': check_segmentation,
        'CustomDataset.load_data_list': check_classification,
    }
    if not is_coco and listing not in checks:
        return
    if is_remote(leaf):
        text = 'files in another storage backend are not checked'
        report.add('note', str(leaf.get('type')), text)
    elif is_coco:
        _check_coco(leaf, report, sample, channels, parsing)
    else:
        checks[listing](leaf, report, sample, channels, head)


def _check_coco(
    leaf: Mapping[str, Any], report: Report, sample: int | None, channels: int | None, parsing: str
) -> None:
    folder = data_folder(leaf, 'img')
    for _, path in coco_files(leaf):
        try:
            images = [
                (image.file_name, *(image.size or (None, None))[::-1])
                for image in read_coco(path).images
            ]
        except UserError:  # the check of the annotations reports it
            return
        if folder is None:
            kind = 'the image folder is not set'
            report.add('error', path, kind, hint='Set `data_prefix.img`')
            return
        check_listed_images(images, folder, report, sample, image_loader(leaf, channels))
        maps = data_folder(leaf, 'seg')
        if maps and (leaf.get('data_prefix') or {}).get('seg'):
            names = [_map_name(leaf, n, parsing) for n, *_ in images if isinstance(n, str)]
            hint = 'Add the label maps or remove `data_prefix.seg`'
            report_missing(report, Folder(maps), 'label map', names, hint)


def _map_name(leaf: Mapping[str, Any], name: str, parsing: str) -> str:
    if parsing != _COCO[0]:
        return name.replace('.jpg', '.png')
    return name.rsplit('.', 1)[0] + str(setting(leaf, 'seg_map_suffix', '.png'))


def check_listed_images(
    images: Iterable[tuple[Any, Any, Any]],
    path: str,
    report: Report,
    sample: int | None,
    loader: Loader,
) -> None:
    """Check images whose names and sizes an annotation file lists.

    Args:
        images (Iterable[tuple[Any, Any, Any]]): Name, width and height; a size that is not an
            integer is not compared.
        path (str): The folder of the images.
        report (Report): Gets the problems.
        sample (int, optional): The number of images to decode; None for all.
        loader (Loader): How the pipeline loads images.
    """
    sizes = {name: (width, height) for name, width, height in images if isinstance(name, str)}
    hint = 'Add the files or remove the images from the annotation file'
    missing = report_missing(report, Folder(path), 'image', sizes, hint)
    present = [name for name in sizes if name not in missing]
    names = {os.path.join(path, name): name for name in spread(present, sample)}
    files = read_all(lambda file: read_image(file, loader), names)
    usable = report_images(report, path, files, loader)
    pairs = [(image, sizes[names[image.path]]) for image in usable]
    known = [(i, size) for i, size in pairs if all(isinstance(side, int) for side in size)]
    report_sizes(report, path, 'annotation', known, loader)
