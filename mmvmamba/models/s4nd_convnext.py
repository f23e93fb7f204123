"""ConvNeXt with global S4ND convolutions, a network that VMamba is compared with."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmvmamba.nn.layers import DropPath, Mlp, channels_first, channels_last, check_choice
from mmvmamba.nn.settings import as_tuple, check_setting, stage_indices
from mmvmamba.ops.backend import accumulate_dtype
from mmvmamba.registry import MODELS

from .vmamba import check_init_cfg

DT_MIN, DT_MAX = 0.1, 1.0
EPS = 1e-6
LAYER_SCALE = 1e-6


class AxisKernel(nn.Module):
    """The convolution kernels of diagonal SSMs along an axis, for both directions.

    K_l = 2 Re(sum_n C_n (exp(dt A_n) - 1) / A_n exp(dt A_n l)), the response of the state space
    model x' = A x + u, y = 2 Re(C x) to an impulse that is held for a step dt. All channels share
    A, which begins as -1/2 + i pi n; each has its own dt and C.

    Args:
        dim (int): Channels.
        d_state (int): Real states; half as many complex ones are kept.
    """

    def __init__(self, dim: int, d_state: int) -> None:
        super().__init__()
        states = d_state // 2
        log_dt = torch.empty(dim).uniform_(math.log(DT_MIN), math.log(DT_MAX))
        self.log_dt = nn.Parameter(log_dt)
        self.log_A_real = nn.Parameter(torch.full((states,), math.log(0.5)))
        self.A_imag = nn.Parameter(math.pi * torch.arange(float(states)))
        # Real and imaginary part, for the positions behind a pixel and those ahead of it.
        self.C = nn.Parameter(torch.randn(2, dim, states, 2) * math.sqrt(0.5))

    def forward(self, length: int) -> Tensor:
        """The kernels (2, dim, length) of both directions, at distances 0, 1, 2, ..."""
        acc = accumulate_dtype(self.C.dtype)
        log_dt, log_real, imag, C = (
            v.to(acc) for v in (self.log_dt, self.log_A_real, self.A_imag, self.C)
        )
        A = torch.complex(-log_real.exp(), imag)
        step = log_dt.exp()[:, None] * A  # (dim, states)
        # In a channels-last model C is so too, which view_as_complex refuses.
        weight = torch.complex(*C.unbind(-1)) * ((step.exp() - 1) / A)
        distance = torch.arange(length, device=step.device, dtype=acc)
        decay = torch.exp(step.unsqueeze(-1) * distance)
        return 2 * torch.einsum('kdn,dnl->kdl', weight, decay).real


class S4ND2d(nn.Module):
    """A depthwise convolution over the whole map (S4ND, arXiv 2210.06583), by FFT.

    The kernel is the product of one along the height and one along the width, so that each axis is
    transformed by itself, padded to twice its length. It is generated for any size of map.

    Args:
        dim (int): Channels.
        d_state (int): States of each SSM, even. Defaults to 64.
    """

    def __init__(self, dim: int, d_state: int = 64) -> None:
        super().__init__()
        self.kernels = nn.ModuleList(AxisKernel(dim, d_state) for _ in 'HW')
        self.D = nn.Parameter(torch.randn(dim))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        device = x.device.type
        usual = torch.amp.is_autocast_available(device)
        with torch.autocast(device, enabled=False) if usual else contextlib.nullcontext():
            u = x.to(accumulate_dtype(x.dtype))  # the FFT takes no shorter type
            y = convolve_axis(u, self.kernels[1](x.shape[3]))
            y = convolve_axis(y.transpose(2, 3), self.kernels[0](x.shape[2])).transpose(2, 3)
            return (y + self.D[:, None, None] * u).to(x.dtype)


def convolve_axis(x: Tensor, kernels: Tensor) -> Tensor:
    """Convolves the last axis with kernels for both directions.

    Args:
        x (Tensor): The map (N, C, M, L).
        kernels (Tensor): (2, C, L): at distance l >= 0 behind a position, and l + 1 ahead of it.

    Returns:
        Tensor: y (N, C, M, L) with y_i = sum_(j <= i) k0_(i-j) x_j + sum_(j > i) k1_(j-i-1) x_j.
    """
    length = x.shape[-1]
    # Of 2 L circular distances the upper half are the negative ones, -1 last.
    circular = torch.cat((kernels[0], kernels[1].flip(-1)), dim=-1)
    spectrum = torch.fft.rfft(circular).unsqueeze(1)
    y = torch.fft.irfft(torch.fft.rfft(x, n=2 * length) * spectrum, n=2 * length)
    return y[..., :length]


class S4NDBlock(nn.Module):
    """ConvNeXt's block: global convolution, norm and MLP, scaled, beside the identity."""

    def __init__(self, dim: int, d_state: int, drop_path: float) -> None:
        super().__init__()
        self.conv = S4ND2d(dim, d_state)
        self.norm = nn.LayerNorm(dim, eps=EPS)
        self.mlp = Mlp(dim, 4 * dim)
        self.gamma = nn.Parameter(torch.full((dim,), LAYER_SCALE))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        y = self.mlp(self.norm(self.conv(x).permute(0, 2, 3, 1)))
        return x + self.drop_path((self.gamma * y).permute(0, 3, 1, 2))


@MODELS.register_module()
class S4NDConvNeXt(BaseModule):
    """ConvNeXt in which S4ND takes the place of every depthwise convolution.

    A PyTorch implementation of the network of: `S4ND: Modeling Images and Videos as
    Multidimensional Signals Using State Spaces <https://arxiv.org/abs/2210.06583>`_ with diagonal
    SSMs (S4D, arXiv 2206.11893). Stem and downsampling are ConvNeXt's convolutions, which the
    authors' settings replace too. With norm and linear layer for 1000 classes 'tiny' has 29.98 M
    parameters (30.0 M in the paper).

    Args:
        arch (str | dict): 'tiny' or a dict with ``depths`` and ``channels``. Defaults to 'tiny'.
        in_channels (int): Channels of the images. Defaults to 3.
        d_state (int): States of each SSM, even. Defaults to 64.
        drop_path_rate (float): Drop-path rate of the last block; it grows linearly from 0.
            Defaults to 0.1.
        out_indices (Sequence[int]): The stages whose normalised maps are returned, with strides 4,
            8, 16 and 32; a negative one counts from the last. Defaults to (-1,).
        init_cfg (dict | list[dict], optional): As MMEngine takes it. Defaults to None.

    Raises:
        TypeError: If an argument has a wrong type.
        ValueError: If a name or a number is not allowed.
    """

    ARCHS = {'tiny': dict(depths=(3, 3, 9, 3), channels=(96, 192, 384, 768))}

    def __init__(
        self,
        arch: str | Mapping[str, Sequence[int]] = 'tiny',
        in_channels: int = 3,
        d_state: int = 64,
        drop_path_rate: float = 0.1,
        out_indices: Sequence[int] = (-1,),
        init_cfg: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        check_init_cfg(init_cfg)
        super().__init__(init_cfg)
        depths, dims = self._resolve(arch)
        for name, value in (
            ('in_channels', in_channels),
            ('d_state', d_state),
            ('drop_path_rate', drop_path_rate),
        ):
            check_setting(name, value)
        if d_state % 2:
            raise ValueError(f'd_state must be even, but got {d_state}')
        self.in_channels, self.stride = in_channels, 4
        self.out_indices = stage_indices(out_indices, len(dims))
        last = max(self.out_indices) + 1  # later stages would get no gradient
        rates = iter(torch.linspace(0, drop_path_rate, sum(depths), device='cpu').tolist())
        self.downsamples = nn.ModuleList([_stem(in_channels, dims[0])])
        self.downsamples.extend(_downsample(dims[i], dims[i + 1]) for i in range(last - 1))
        self.stages = nn.ModuleList(
            nn.Sequential(*(S4NDBlock(dim, d_state, next(rates)) for _ in range(depth)))
            for dim, depth in zip(dims[:last], depths[:last], strict=True)
        )
        for i in self.out_indices:
            self.add_module(f'norm{i}', nn.LayerNorm(dims[i], eps=EPS))
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def _resolve(self, arch: str | Mapping[str, Sequence[int]]) -> tuple[tuple, tuple]:
        if isinstance(arch, str):
            check_choice('arch', arch, self.ARCHS)
            arch = self.ARCHS[arch]
        if not isinstance(arch, Mapping):
            raise TypeError(f'arch must be a str or a dict, but got {type(arch).__name__}')
        if set(arch) != {'depths', 'channels'}:
            raise ValueError(f'arch must be a dict with depths and channels, but got {dict(arch)}')
        depths, dims = (as_tuple(name, arch[name]) for name in ('depths', 'channels'))
        check_setting('depths', depths)
        check_setting('dims', dims)
        if len(depths) != len(dims) or not dims:
            raise ValueError(f'depths and channels must name the same stages, but got {dict(arch)}')
        return depths, dims

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Images (N, 3, H, W) -> the maps (N, C, H, W) of ``out_indices``, sizes floored.

        Raises:
            ValueError: If the images are no such tensor or too small for the last map.
        """
        least = self.stride * 2 ** (len(self.stages) - 1)
        if x.dim() != 4 or x.shape[1] != self.in_channels or min(x.shape[2:]) < least:
            raise ValueError(
                f'the images must have shape (N, {self.in_channels}, H, W) with sides of at least '
                f'{least} pixels, but got {tuple(x.shape)}'
            )
        outs = []
        for i, (downsample, stage) in enumerate(zip(self.downsamples, self.stages, strict=True)):
            x = stage(downsample(x))
            if i in self.out_indices:
                out = getattr(self, f'norm{i}')(x.permute(0, 2, 3, 1))
                outs.append(out.permute(0, 3, 1, 2).contiguous())
        return tuple(outs)


def _stem(in_channels: int, dim: int) -> nn.Sequential:
    norm = nn.LayerNorm(dim, eps=EPS)
    return nn.Sequential(nn.Conv2d(in_channels, dim, 4, 4), channels_last(), norm, channels_first())


def _downsample(dim: int, out_dim: int) -> nn.Sequential:
    norm = nn.LayerNorm(dim, eps=EPS)
    return nn.Sequential(channels_last(), norm, channels_first(), nn.Conv2d(dim, out_dim, 2, 2))
