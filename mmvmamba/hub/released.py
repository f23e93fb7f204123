"""Results of the released classifiers, and recognition of a file's architecture."""

import dataclasses
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from mmvmamba.checkpoint.keys import FIRST_CONV, split_state_dict
from mmvmamba.nn import ARCHS, Arch, VMambaNet


@dataclasses.dataclass(frozen=True)
class Reported:
    """Results on ImageNet-1k at 224 x 224.

    Attributes:
        top1 (float): Accuracy (%) that the paper or the authors' repository reports.
        gflops (float): Multiply-adds (G) of an image, counted by this package.
    """

    top1: float
    gflops: float


#: By architecture; `configs/vmamba/README.md` has them as well.
REPORTED = {
    'tiny_s1l8': Reported(82.60, 4.91),
    'tiny_s2l5': Reported(82.49, 4.86),
    'small_s2l15': Reported(83.65, 8.72),
    'small_s1l20': Reported(83.34, 8.61),
    'base_s2l15': Reported(83.88, 15.36),
    'base_s1l20': Reported(83.79, 15.22),
    'vanilla_tiny': Reported(82.17, 5.63),
    'vanilla_small': Reported(83.46, 11.23),
    'vanilla_base': Reported(83.73, 18.02),
}


def arch_of(tensors: Mapping[str, Tensor]) -> Arch:
    """Return the released architecture that matches a file's shapes, possibly resized.

    The channels and the number of blocks of each stage are those in the file. A released
    architecture with the same ones is preferred. Settings that do not affect shapes, such as
    ``scan`` or ``act``, are those of the released architecture.

    Args:
        tensors (Mapping[str, Tensor]): In any naming scheme; necks and heads are ignored.

    Raises:
        ValueError: If no released architecture has these tensors.
    """
    shapes = _shapes(split_state_dict(tensors)[0])
    dims, depths = _sizes(shapes)
    # Architectures of the same size come first.
    for arch in sorted(ARCHS.values(), key=lambda arch: (arch.dims, arch.depths) != (dims, depths)):
        try:
            resized = dataclasses.replace(arch, dims=dims, depths=depths)
        except ValueError:  # not with this stem
            continue
        with torch.device('meta'):
            net = VMambaNet(resized, out_indices=(0,))
        if _shapes(net.state_dict()) == shapes:
            return resized
    raise ValueError(
        f'the tensors {sorted(tensors)[:4]}, ... must have the names and shapes of a released '
        f'architecture ({", ".join(REPORTED)}), optionally with other widths and depths'
    )


def _sizes(shapes: Mapping[str, tuple[int, ...]]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the channels and the number of blocks of each stage, () and () if there are none."""
    pattern = re.compile(r'layers\.(\d{1,3})\.blocks\.(\d{1,4})\.norm\.weight')
    found = {(int(m[1]), int(m[2])): shapes[m[0]] for m in map(pattern.fullmatch, shapes) if m}
    dims: list[int] = []
    while len(shape := found.get((len(dims), 0), ())) == 1:
        dims += shape
    depths = tuple(sum(stage == i for stage, _ in found) for i in range(len(dims)))
    return tuple(dims), depths


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of stem and stages, without the channels of the images."""
    parts = ('patch_embed.', 'layers.')
    shapes = {k: tuple(v.shape) for k, v in tensors.items() if k.startswith(parts)}
    if FIRST_CONV in shapes:
        shapes[FIRST_CONV] = (shapes[FIRST_CONV][0], *shapes[FIRST_CONV][2:])
    return shapes
