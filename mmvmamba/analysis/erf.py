"""Effective receptive fields (Luo et al., arXiv 1701.04128), as VMamba's paper computes them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class ReceptiveField:
    """Dependence of the center of a network's last map on each pixel of the image.

    Args:
        gradient (Tensor): The mean gradient (H, W) of the input's pixels, float64, non-negative.
    """

    gradient: Tensor

    @property
    def center(self) -> tuple[float, float]:
        """Mean row and column, weighted by the squared gradient, in pixels.

        It differs between networks: the field of a patch lies around its middle, that of a strided
        convolution with padding around its corner. The square emphasizes the bright spot.
        """
        weights = self.gradient.square()
        rows, columns = weights.sum(1), weights.sum(0)
        return tuple(
            float((v * torch.arange(len(v)).to(v)).sum() / v.sum()) for v in (rows, columns)
        )

    def distances(self) -> Tensor:
        """Return the distance (H, W) of each pixel from the center, in pixels."""
        H, W = self.gradient.shape
        y, x = (torch.arange(n) - c for n, c in zip((H, W), self.center, strict=True))
        return (y.square()[:, None] + x.square()).sqrt()

    def share_within(self, radii: Sequence[float]) -> list[float]:
        """Return the share of the gradient's mass within each distance of the center, in pixels."""
        distances, total = self.distances(), self.gradient.sum()
        return [float(self.gradient[distances <= r].sum() / total) for r in radii]

    def radius_of(self, share: float) -> float:
        """Return the smallest radius around the center, in pixels, that holds a share of the mass.

        Raises:
            ValueError: If ``share`` is not in (0, 1].
        """
        if not 0 < share <= 1:
            raise ValueError(f'share must be above 0 and at most 1, but got {share}')
        distances, order = self.distances().flatten().sort()
        mass = self.gradient.flatten()[order].cumsum(0)
        # The last sum, since rounding may leave it below the total.
        index = torch.searchsorted(mass, share * mass[-1]).clamp(max=len(mass) - 1)
        return float(distances[index])

    def picture(self) -> Tensor:
        """Return the gradient to the power 0.2 over its maximum (H, W), as the paper draws it."""
        picture = self.gradient.pow(0.2)
        return picture / picture.max()


def receptive_field(
    features: Callable[[Tensor], Tensor], images: Iterable[Tensor]
) -> ReceptiveField:
    """Compute an effective receptive field.

    For each image, this is the gradient of the sum of the positive features at the center of the
    last map. Its positive part is summed over the image's channels and averaged over images.

    Args:
        features (Callable): Maps images (N, c, H, W) to their last map (N, C, h, w).
        images (Iterable[Tensor]): Batches of images of one size, normalized for the network.

    Raises:
        ValueError: If there are no images, they differ in size, ``features`` does not return a map,
            or no pixel has a positive gradient.
    """
    total, count = None, 0
    for batch in images:
        gradient = _gradient(features, batch)
        if total is None:
            total = torch.zeros_like(gradient)
        if gradient.shape != total.shape:
            raise ValueError(
                f'images must have the same size, but got {tuple(total.shape)} and '
                f'{tuple(gradient.shape)}'
            )
        total += gradient
        count += len(batch)
    if total is None:
        raise ValueError('images must have at least one batch, but got none')
    if not total.sum() > 0:
        raise ValueError('the center of the last map has no positive gradient in any image')
    return ReceptiveField(total / count)


def _gradient(features: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
    """Return the rectified gradient (H, W), summed over a batch."""
    batch = batch.detach().requires_grad_()
    with torch.enable_grad():
        maps = features(batch)
        if maps.dim() != 4:
            raise ValueError(f'features must return maps (N, C, h, w), but got {tuple(maps.shape)}')
        h, w = maps.shape[2:]
        # Images of a batch do not depend on each other in eval mode.
        (gradient,) = torch.autograd.grad(maps[:, :, h // 2, w // 2].relu().sum(), batch)
    return gradient.double().relu().sum((0, 1)).cpu()
