"""Released ImageNet classifiers: URLs, download, and the images that they take."""

import os
from urllib.parse import unquote

import torch

from .download import download

#: Mean and standard deviation of the channels (RGB, values in [0, 1]) in their preprocessing.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGENET_CLASSES = 1000
#: Side of the crop over the shorter side of the resized image, as in the authors' test.
IMAGENET_CROP = 0.875
_RELEASES = 'https://github.com/MzeroMiko/VMamba/releases/download'
#: URLs of the released ImageNet classifiers, by architecture: a key of ``mmvmamba.nn.ARCHS``.
RELEASED_URLS = {
    arch: f'{_RELEASES}/{file}'
    for arch, file in {
        'tiny_s1l8': '%23v2cls/vssm1_tiny_0230s_ckpt_epoch_264.pth',
        'tiny_s2l5': '%23v2cls/vssm_tiny_0230_ckpt_epoch_262.pth',
        'small_s2l15': '%23v2cls/vssm_small_0229_ckpt_epoch_222.pth',
        'small_s1l20': '%23v2cls/vssm1_small_0229s_ckpt_epoch_240.pth',
        'base_s2l15': '%23v2cls/vssm_base_0229_ckpt_epoch_237.pth',
        'base_s1l20': '%23v2cls/vssm1_base_0229s_ckpt_epoch_225.pth',
        'vanilla_tiny': '%23v0cls/vssmtiny_dp01_ckpt_epoch_292.pth',
        'vanilla_small': '%23v0cls/vssmsmall_dp03_ckpt_epoch_238.pth',
        'vanilla_base': '%23v0cls/vssmbase_dp06_ckpt_epoch_241.pth',
    }.items()
}
for _alias, _arch in dict(tiny='tiny_s1l8', small='small_s2l15', base='base_s2l15').items():
    RELEASED_URLS[_alias] = RELEASED_URLS[_arch]


def released_name(arch: str) -> str:
    """Return the file name of an architecture's released classifier."""
    return unquote(RELEASED_URLS[arch].rpartition('/')[2])


def released_file(arch: str) -> str:
    """Return the path of an architecture's released classifier, and download it first if needed.

    A file of this name in the folder ``checkpoints`` of torch.hub, where a user or torch.hub has
    put it, is used instead of a download.

    Args:
        arch (str): A key of :data:`RELEASED_URLS`.

    Raises:
        ValueError: If the file cannot be downloaded.
    """
    url = RELEASED_URLS[arch]
    path = os.path.join(torch.hub.get_dir(), 'checkpoints', released_name(arch))
    if os.path.isfile(path):
        return path
    try:
        return download(url)
    except ValueError as error:
        raise ValueError(
            f'{error}. Without a network, download the file on another machine and save it here '
            f'as {path!r}'
        ) from None
