"""ConvNeXt with global S4ND convolutions, a network to compare VMamba with."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmvmamba.nn.layers import DropPath, Mlp, channels_first, channels_last
from mmvmamba.nn.settings import as_tuple, check_images, check_settings, stage_indices
from mmvmamba.ops.backend import accumulate_dtype, without_autocast
from mmvmamba.registry import MODELS

from .checks import check_init_cfg, resolve_settings

DT_MIN, DT_MAX = 0.1, 1.0
EPS = 1e-6
LAYER_SCALE = 1e-6


class AxisKernel(nn.Module):
    """Convolution kernels of diagonal SSMs along an axis, for both directions.

    K_l = 2 Re(sum_n C_n (exp(dt A_n) - 1) / A_n exp(dt A_n l)), the response of the state space
    model x' = A x + u, y = 2 Re(C x) to an impulse that is held for a step dt. All channels share
    A, which is initialized to -1/2 + i pi n; each channel has its own dt and C. ``d_state`` counts
    real states: two for each complex one.
    """

    def __init__(self, dim: int, d_state: int) -> None:
        super().__init__()
        states = d_state // 2
        log_dt = torch.empty(dim).uniform_(math.log(DT_MIN), math.log(DT_MAX))
        self.log_dt = nn.Parameter(log_dt)
        self.log_A_real = nn.Parameter(torch.full((states,), math.log(0.5)))
        self.A_imag = nn.Parameter(math.pi * torch.arange(float(states)))
        # (direction, channel, state, real and imaginary part)
        self.C = nn.Parameter(torch.randn(2, dim, states, 2) * math.sqrt(0.5))

    def forward(self, length: int) -> Tensor:
        """Return the kernels (2, dim, length) of both directions at distances 0, 1, 2, ..."""
        acc = accumulate_dtype(self.C.dtype)
        log_dt, log_real, imag, C = (
            v.to(acc) for v in (self.log_dt, self.log_A_real, self.A_imag, self.C)
        )
        A = torch.complex(-log_real.exp(), imag)
        step = log_dt.exp()[:, None] * A  # (dim, states)
        # view_as_complex does not accept the C of a channels-last model.
        weight = torch.complex(*C.unbind(-1)) * ((step.exp() - 1) / A)
        distance = torch.arange(length, device=step.device, dtype=acc)
        decay = torch.exp(step.unsqueeze(-1) * distance)
        return 2 * torch.einsum('kdn,dnl->kdl', weight, decay).real


class S4ND2d(nn.Module):
    """Global depthwise convolution by FFT (S4ND, arXiv 2210.06583).

    The kernel is the product of a kernel along the height and one along the width, generated for
    the size of the map. Each axis is transformed separately, padded to twice its length.
    """

    def __init__(self, dim: int, d_state: int) -> None:
        super().__init__()
        self.kernels = nn.ModuleList(AxisKernel(dim, d_state) for _ in 'HW')
        self.D = nn.Parameter(torch.randn(dim))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        with without_autocast(x.device):
            u = x.to(accumulate_dtype(x.dtype))  # the FFT needs at least float32
            y = convolve_axis(u, self.kernels[1](x.shape[3]))
            y = convolve_axis(y.transpose(2, 3), self.kernels[0](x.shape[2])).transpose(2, 3)
            return (y + self.D[:, None, None] * u).to(x.dtype)


def convolve_axis(x: Tensor, kernels: Tensor) -> Tensor:
    """Convolve the last axis of a map (N, C, M, L) with kernels (2, C, L) for both directions.

    y_i = sum_(j <= i) k0_(i-j) x_j + sum_(j > i) k1_(j-i-1) x_j.
    """
    length = x.shape[-1]
    # The upper half of the 2 L circular distances are the negative ones, -L to -1.
    circular = torch.cat((kernels[0], kernels[1].flip(-1)), dim=-1)
    spectrum = torch.fft.rfft(circular).unsqueeze(1)
    y = torch.fft.irfft(torch.fft.rfft(x, n=2 * length) * spectrum, n=2 * length)
    return y[..., :length]


class S4NDBlock(nn.Module):
    """ConvNeXt's block: x + DropPath(gamma * MLP(norm(S4ND(x))))."""

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
    """ConvNeXt with S4ND in place of every depthwise convolution.

    A PyTorch implementation of the network of: `S4ND: Modeling Images and Videos as
    Multidimensional Signals Using State Spaces <https://arxiv.org/abs/2210.06583>`_ with diagonal
    SSMs (S4D, arXiv 2206.11893). Unlike in the authors' settings, the stem and the downsampling
    are ConvNeXt's convolutions. With a norm and a linear layer for 1000 classes, 'tiny' has
    29.98 M parameters (30.0 M in the paper).

    Args:
        arch (str | dict): 'tiny' or a dict with ``depths`` and ``channels``. Defaults to 'tiny'.
        in_channels (int): Number of image channels. Defaults to 3.
        d_state (int): Number of states of each SSM, even. Defaults to 64.
        drop_path_rate (float): Drop-path rate of the last block. It increases linearly from 0 at
            the first block. Defaults to 0.1.
        out_indices (Sequence[int]): The stages whose normalized maps are returned, in this order,
            with strides 4, 8, 16 and 32. A negative index counts from the last stage.
            Defaults to (-1,).
        init_cfg (dict | list[dict], optional): Initialization config of MMEngine.
            Defaults to None.

    Raises:
        TypeError: If an argument has a wrong type.
        ValueError: If a value is not allowed.
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
        settings = resolve_settings(arch, self.ARCHS)
        depths, dims = (as_tuple(name, settings[name]) for name in ('depths', 'channels'))
        check_settings(depths=depths, channels=dims)
        if len(depths) != len(dims) or not dims:
            raise ValueError(
                f'depths and channels must have the same length, at least 1, but got {settings}'
            )
        check_settings(in_channels=in_channels, d_state=d_state, drop_path_rate=drop_path_rate)
        if d_state % 2:
            raise ValueError(f'd_state must be even, but got {d_state}')
        self.in_channels = in_channels
        self.out_indices = stage_indices(out_indices, len(dims))
        last = max(self.out_indices) + 1  # the parameters of later stages would get no gradient
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

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the maps (N, C_i, H_i, W_i) of ``out_indices``, H_i = H // stride.

        Raises:
            ValueError: If the images are not (N, in_channels, H, W), or too small for a stage.
        """
        check_images(x, self.in_channels, 4 * 2 ** (len(self.stages) - 1))
        outs = {}
        for i, (downsample, stage) in enumerate(zip(self.downsamples, self.stages, strict=True)):
            x = stage(downsample(x))
            if i in self.out_indices:
                out = getattr(self, f'norm{i}')(x.permute(0, 2, 3, 1))
                outs[i] = out.permute(0, 3, 1, 2).contiguous()
        return tuple(outs[i] for i in self.out_indices)


def _stem(in_channels: int, dim: int) -> nn.Sequential:
    norm = nn.LayerNorm(dim, eps=EPS)
    return nn.Sequential(nn.Conv2d(in_channels, dim, 4, 4), channels_last(), norm, channels_first())


def _downsample(dim: int, out_dim: int) -> nn.Sequential:
    norm = nn.LayerNorm(dim, eps=EPS)
    return nn.Sequential(channels_last(), norm, channels_first(), nn.Conv2d(dim, out_dim, 2, 2))
