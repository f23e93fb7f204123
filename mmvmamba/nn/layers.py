"""Layers around SS2D: stems, downsampling, MLP, drop path, classifier. Channels last inside."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from .cpu_inference import Conv2d, LayerNorm, Stem, plain
from .settings import check_choice, check_setting

#: Activations of the reference and its ablation.
ACTIVATIONS: dict[str, type[nn.Module]] = {
    'silu': nn.SiLU,
    'gelu': nn.GELU,
    'relu': nn.ReLU,
    'sigmoid': nn.Sigmoid,
}
#: Norms of stem, blocks, downsampling and outputs.
NORMS: dict[str, type[nn.Module]] = {'ln': LayerNorm, 'bn': nn.BatchNorm2d}


def reset_linear(layer: nn.Linear) -> None:
    """Initialize a linear layer as the authors do."""
    nn.init.trunc_normal_(layer.weight, std=0.02)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


@plain
class DropPath(nn.Module):
    """Drop a residual branch for whole samples (stochastic depth, arXiv 1603.09382)."""

    def __init__(self, p: float = 0.0) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f'p must be in [0, 1), but got {p}')
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Scale the kept samples of ``x`` (N, ...) by 1 / (1 - p)."""
        if self.p == 0.0 or not self.training:
            return x
        mask = x.new_empty((x.shape[0],) + (1,) * (x.dim() - 1)).bernoulli_(1 - self.p)
        return x * mask.div_(1 - self.p)

    def extra_repr(self) -> str:
        return f'p={self.p}'


@plain
class Permute(nn.Module):
    """Permute dimensions: a view, which moves no memory in channels-last maps."""

    def __init__(self, *dims: int) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.dims)

    def extra_repr(self) -> str:
        return f'{self.dims}'


def channels_last() -> Permute:
    """(N, C, H, W) -> (N, H, W, C)."""
    return Permute(0, 2, 3, 1)


def channels_first() -> Permute:
    """(N, H, W, C) -> (N, C, H, W)."""
    return Permute(0, 3, 1, 2)


def apply_norm(norm: nn.Module, x: Tensor) -> Tensor:
    """Normalize a map (N, H, W, C) with a norm of :data:`NORMS`."""
    if isinstance(norm, nn.LayerNorm):
        return norm(x)
    return norm(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # BatchNorm takes (N, C, H, W)


@plain
class Mlp(nn.Module):
    """Two linear layers with an activation between, over the last dimension.

    A gated MLP has twice the hidden channels, multiplies the first half by the activation of the
    second half, and has dropout only after the second layer.
    """

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        act: str = 'gelu',
        gate: bool = False,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.gate = gate
        self.fc1 = nn.Linear(dim, hidden_dim * (2 if gate else 1))
        self.act = ACTIVATIONS[act]()
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.drop = nn.Dropout(drop_rate) if drop_rate else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        if self.gate:
            x, z = x.chunk(2, dim=-1)
            x = x * self.act(z)
        else:
            x = self.drop(self.act(x))
        return self.drop(self.fc2(x))


def _conv_norm(conv: nn.Module, norm: str | None, dim: int, last: bool = True) -> list[nn.Module]:
    """A convolution (N, C, H, W) and its norm at the released files' indices, 0 and 2.

    BatchNorm stays between maps (N, C, H, W), so that SyncBN can replace it. With ``last`` the
    result is (N, H, W, C).
    """
    if norm == 'ln':
        layers = [conv, channels_last(), LayerNorm(dim)]
        return layers if last else [*layers, channels_first()]
    layer = nn.BatchNorm2d(dim) if norm == 'bn' else nn.Identity()
    return [conv, nn.Identity(), layer, channels_last() if last else nn.Identity()]


def conv_stem(in_channels: int, dim: int, patch_size: int, norm: str | None = 'ln') -> Stem:
    """Two overlapping convolutions of stride ``patch_size`` / 2 with norms.

    (N, 3, H, W) -> (N, H/4, W/4, dim), rounded up, for a patch of 4.

    The indices of the layers are part of the released files' keys.
    """
    stride = patch_size // 2
    first = Conv2d(in_channels, dim // 2, stride + 1, stride, 1)
    second = Conv2d(dim // 2, dim, stride + 1, stride, 1)
    return Stem(
        *_conv_norm(first, norm, dim // 2, last=False), nn.GELU(), *_conv_norm(second, norm, dim)
    )


def patch_stem(
    in_channels: int, dim: int, patch_size: int, norm: str | None = 'ln'
) -> nn.Sequential:
    """A convolution of stride ``patch_size`` and its norm.

    (N, 3, H, W) -> (N, H/4, W/4, dim), rounded down, for a patch of 4.
    """
    return nn.Sequential(*_conv_norm(Conv2d(in_channels, dim, patch_size, patch_size), norm, dim))


def conv_downsample(dim: int, out_dim: int, norm: str = 'ln') -> nn.Sequential:
    """A 3x3 stride 2 convolution and its norm: (N, H, W, C) -> (N, H/2, W/2, out_dim), ceil."""
    conv = Conv2d(dim, out_dim, 3, 2, 1)
    return nn.Sequential(channels_first(), *_conv_norm(conv, norm, out_dim))


def conv2x2_downsample(dim: int, out_dim: int, norm: str = 'ln') -> nn.Sequential:
    """A 2x2 stride 2 convolution and its norm: (N, H, W, C) -> (N, H/2, W/2, out_dim), floor."""
    conv = Conv2d(dim, out_dim, 2, 2)
    return nn.Sequential(channels_first(), *_conv_norm(conv, norm, out_dim))


class PatchMerging(nn.Module):
    """Stack 2x2 neighbors, normalize and project them, as Swin does (arXiv 2103.14030).

    An odd map is padded with zeros at its bottom and right.
    """

    def __init__(self, dim: int, out_dim: int, norm: str = 'ln') -> None:
        super().__init__()
        self.norm = NORMS[norm](4 * dim)
        self.reduction = nn.Linear(4 * dim, out_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) -> (N, ceil(H/2), ceil(W/2), out_dim)."""
        H, W = x.shape[1:3]
        h, w = (H + 1) // 2, (W + 1) // 2
        x = F.pad(x, (0, 0, 0, 2 * w - W, 0, 2 * h - H))
        # (N, h, row, w, column, C) -> (N, h, w, 4 C), columns first: the order of the weights
        x = x.unflatten(1, (h, 2)).unflatten(3, (w, 2)).permute(0, 1, 3, 4, 2, 5).flatten(3)
        return self.reduction(apply_norm(self.norm, x))


#: Pooling of a map (N, C, H, W); '' leaves it, as (N, H, W, C).
POOLS: dict[str, Callable[[], nn.Module]] = {
    'avg': lambda: nn.AdaptiveAvgPool2d(1),
    'max': lambda: nn.AdaptiveMaxPool2d(1),
    '': channels_last,
}


def build_pooling(global_pool: str) -> dict[str, nn.Module]:
    """Return the layers between a classifier's norm and its linear layer, by name."""
    check_choice('global_pool', global_pool, POOLS)
    flatten = nn.Flatten(1) if global_pool else nn.Identity()
    return {'avgpool': POOLS[global_pool](), 'flatten': flatten}


def build_linear(dim: int, num_classes: int) -> nn.Module:
    """Return the last linear layer of a classifier, or the identity for 0 classes."""
    check_setting('num_classes', num_classes)
    return nn.Linear(dim, num_classes) if num_classes else nn.Identity()


STEMS: dict[str, Callable[..., nn.Module]] = {'conv': conv_stem, 'patch': patch_stem}
DOWNSAMPLES: dict[str, Callable[..., nn.Module]] = {
    'conv': conv_downsample,
    'conv2x2': conv2x2_downsample,
    'merging': PatchMerging,
}
