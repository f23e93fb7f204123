"""The layers around SS2D: stems, downsampling, MLP, drop path. Channels last inside."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: The activations that the reference and its ablation use.
ACTIVATIONS: dict[str, type[nn.Module]] = {'silu': nn.SiLU, 'gelu': nn.GELU, 'relu': nn.ReLU}


def check_choice(name: str, value: object, allowed: Iterable[str]) -> None:
    """Raises ValueError where an argument is not one of the names that are allowed."""
    allowed = tuple(allowed)
    if value not in allowed:
        raise ValueError(f'{name} must be one of {allowed}, but got {value!r}')


class DropPath(nn.Module):
    """Drops a residual branch for whole samples (stochastic depth, arXiv 1603.09382).

    Args:
        p (float): The probability that a sample's branch is dropped in training. Defaults to 0.
    """

    def __init__(self, p: float = 0.0) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f'p must be in [0, 1), but got {p}')
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Scales the kept samples of ``x`` (N, ...) by 1 / (1 - p)."""
        if self.p == 0.0 or not self.training:
            return x
        mask = x.new_empty((x.shape[0],) + (1,) * (x.dim() - 1)).bernoulli_(1 - self.p)
        return x * mask.div_(1 - self.p)

    def extra_repr(self) -> str:
        return f'p={self.p}'


class Permute(nn.Module):
    """Permutes dimensions; a change of view, which moves no memory in channels-last maps."""

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


class Linear(nn.Linear):
    """A linear layer that also loads 1x1 convolution weights (out, in, 1, 1).

    Released files of early March 2024 hold its weights in that shape.
    """

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        weight = state_dict.get(prefix + 'weight')
        if weight is not None and weight.dim() == 4 and weight.shape[2:] == (1, 1):
            state_dict[prefix + 'weight'] = weight.flatten(1)
        super()._load_from_state_dict(state_dict, prefix, *args)


class Mlp(nn.Module):
    """Two linear layers with an activation between, over the last dimension.

    Args:
        dim (int): Input and output channels.
        hidden_dim (int): Channels between the layers.
        act (str): A key of :data:`ACTIVATIONS`. Defaults to 'gelu'.
    """

    def __init__(self, dim: int, hidden_dim: int, act: str = 'gelu') -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden_dim)
        self.act = ACTIVATIONS[act]()
        self.fc2 = Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


def conv_stem(in_channels: int, dim: int, patch_size: int) -> nn.Sequential:
    """Two 3x3 stride 2 convolutions with LayerNorm: (N, 3, H, W) -> (N, H/4, W/4, dim), ceil.

    The indices of the layers are part of the released files' keys.
    """
    stride = patch_size // 2
    kernel = stride + 1
    return nn.Sequential(
        nn.Conv2d(in_channels, dim // 2, kernel, stride, 1),
        channels_last(),
        nn.LayerNorm(dim // 2),
        channels_first(),
        nn.GELU(),
        nn.Conv2d(dim // 2, dim, kernel, stride, 1),
        channels_last(),
        nn.LayerNorm(dim),
    )


def patch_stem(in_channels: int, dim: int, patch_size: int) -> nn.Sequential:
    """A 4x4 stride 4 convolution and LayerNorm: (N, 3, H, W) -> (N, H/4, W/4, dim), floor."""
    return nn.Sequential(
        nn.Conv2d(in_channels, dim, patch_size, patch_size),
        channels_last(),
        nn.LayerNorm(dim),
    )


def conv_downsample(dim: int, out_dim: int) -> nn.Sequential:
    """A 3x3 stride 2 convolution and LayerNorm: (N, H, W, C) -> (N, H/2, W/2, out_dim), ceil."""
    return nn.Sequential(
        channels_first(),
        nn.Conv2d(dim, out_dim, 3, 2, 1),
        channels_last(),
        nn.LayerNorm(out_dim),
    )


class PatchMerging(nn.Module):
    """Stacks 2x2 neighbours, normalises and projects them, as Swin does (arXiv 2103.14030).

    An odd map is padded with zeros at its bottom and right.

    Args:
        dim (int): Input channels.
        out_dim (int): Output channels.
    """

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = Linear(4 * dim, out_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) -> (N, ceil(H/2), ceil(W/2), out_dim)."""
        H, W = x.shape[1:3]
        x = F.pad(x, (0, 0, 0, W % 2, 0, H % 2))
        neighbours = [x[:, row::2, col::2] for row, col in ((0, 0), (1, 0), (0, 1), (1, 1))]
        return self.reduction(self.norm(torch.cat(neighbours, dim=-1)))


STEMS = {'conv': conv_stem, 'patch': patch_stem}
DOWNSAMPLES = {'conv': conv_downsample, 'merging': PatchMerging}
