"""Vision Mamba (Vim), a plain bidirectional network to compare VMamba with."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from mmengine.utils import to_2tuple
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmvmamba.nn.cpu_inference import is_plain_linear
from mmvmamba.nn.layers import DropPath
from mmvmamba.nn.settings import check_choice, check_images, check_settings
from mmvmamba.nn.ss2d import init_dt_bias
from mmvmamba.ops import BACKENDS, selective_scan
from mmvmamba.registry import MODELS

from .checks import check_init_cfg, resolve_settings

CONV_KERNEL = 4
#: Suffixes of the parameters of the scan from the first token, and of the one from the last.
DIRECTIONS = ('', '_b')
OUT_TYPES = ('featmap', 'cls_token')


class BidirectionalMamba(nn.Module):
    """Mamba mixer with a scan from each end of the tokens (arXiv 2401.09417, Alg. 1).

    Each direction has its own causal convolution and SSM over E = 2 d inner channels. Both share
    the input and output projections and the gate, and the output is their mean.
    """

    def __init__(self, dim: int, d_state: int = 16, backend: str = 'auto') -> None:
        super().__init__()
        inner, self.rank, self.d_state = 2 * dim, math.ceil(dim / 16), d_state
        self.backend = backend
        self.in_proj = nn.Linear(dim, 2 * inner, bias=False)
        for end in DIRECTIONS:
            conv = nn.Conv1d(inner, inner, CONV_KERNEL, groups=inner, padding=CONV_KERNEL - 1)
            self.add_module(f'conv1d{end}', conv)
            x_proj = nn.Linear(inner, self.rank + 2 * d_state, bias=False)
            self.add_module(f'x_proj{end}', x_proj)
            dt_proj = nn.Linear(self.rank, inner)
            nn.init.uniform_(dt_proj.weight, -(self.rank**-0.5), self.rank**-0.5)
            init_dt_bias(dt_proj.bias)
            self.add_module(f'dt_proj{end}', dt_proj)
            states = torch.arange(1.0, d_state + 1).log().repeat(inner, 1)
            self.register_parameter(f'A{end}_log', nn.Parameter(states))
            self.register_parameter(f'D{end}', nn.Parameter(torch.ones(inner)))
        self.out_proj = nn.Linear(inner, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, L, d) -> (N, L, d)."""
        x, z = self.in_proj(x).transpose(1, 2).chunk(2, dim=1)  # (N, E, L) each
        ahead = self.scan(x, z, '')
        back = self.scan(x.flip(-1), z.flip(-1), '_b').flip(-1)
        return self.out_proj((ahead + back).transpose(1, 2) / 2)

    def scan(self, x: Tensor, z: Tensor, end: str) -> Tensor:
        """Convolve, scan and gate in one direction, (N, E, L) -> (N, E, L)."""
        x = F.silu(getattr(self, f'conv1d{end}')(x)[..., : x.shape[-1]])
        params = getattr(self, f'x_proj{end}')(x.transpose(1, 2))
        dt, B, C = params.transpose(1, 2).split((self.rank, self.d_state, self.d_state), dim=1)
        dt_proj = getattr(self, f'dt_proj{end}')
        if is_plain_linear(dt_proj):
            delta, bias = F.linear(dt.transpose(1, 2), dt_proj.weight), dt_proj.bias
        else:
            delta, bias = dt_proj(dt.transpose(1, 2)), None
        delta = delta.transpose(1, 2)
        A = -getattr(self, f'A{end}_log').float().exp()
        # In autocast the projections may have a lower precision than the convolution.
        x, B, C, z = (v.to(delta.dtype) for v in (x, B, C, z))
        skip = getattr(self, f'D{end}')
        return selective_scan(
            x, delta, A, B, C, skip, z, bias, delta_softplus=True, backend=self.backend
        )


class VimBlock(nn.Module):
    """x + DropPath(mixer(norm(x)))."""

    def __init__(self, dim: int, d_state: int, drop_path: float, backend: str) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(dim, eps=1e-5)
        self.mixer = BidirectionalMamba(dim, d_state, backend)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(N, L, d) -> (N, L, d)."""
        return x + self.drop_path(self.mixer(self.norm(x)))


@MODELS.register_module()
class Vim(BaseModule):
    """Vision Mamba, with tokens of 16x16 pixels, a class token in the middle and one width.

    A PyTorch implementation of: `Vision Mamba: Efficient Visual Representation Learning with
    Bidirectional State Space Model <https://arxiv.org/abs/2401.09417>`_, based on
    :func:`mmvmamba.ops.selective_scan`. With a linear layer for 1000 classes, 'small' has 25.8 M
    parameters (26 M in the paper).

    Args:
        arch (str | dict): 'tiny', 'small', 'base', or a dict with ``embed_dims``, ``num_layers``
            and optionally ``d_state`` (16 by default). Defaults to 'small'.
        img_size (int | tuple[int, int]): Side, or height and width (pixels), of the images for the
            position embedding. The embedding is resized for other images, and the square embedding
            of a checkpoint is resized to this size. Defaults to 224.
        patch_size (int): Side (pixels) of a token. Defaults to 16.
        in_channels (int): Number of image channels. Defaults to 3.
        out_type (str): 'featmap' for the map (N, d, H/16, W/16), or 'cls_token' for the class
            token (N, d) of a classifier. Defaults to 'featmap'.
        drop_path_rate (float): Drop-path rate of the last block. It increases linearly from 0 at
            the first block. Defaults to 0.1.
        with_cp (bool): Whether to recompute each block in the backward pass to save memory.
            Defaults to False.
        backend (str): Backend of the scan: 'auto', 'native', 'triton' or 'reference', see
            :func:`mmvmamba.ops.selective_scan`. Defaults to 'auto'.
        init_cfg (dict | list[dict], optional): Initialization config of MMEngine.
            Defaults to None.

    Raises:
        TypeError: If an argument has a wrong type.
        ValueError: If a value is not allowed.
    """

    ARCHS = {
        'tiny': dict(embed_dims=192, num_layers=24),
        'small': dict(embed_dims=384, num_layers=24),
        'base': dict(embed_dims=768, num_layers=24),
    }

    def __init__(
        self,
        arch: str | Mapping[str, int] = 'small',
        img_size: int | Sequence[int] = 224,
        patch_size: int = 16,
        in_channels: int = 3,
        out_type: str = 'featmap',
        drop_path_rate: float = 0.1,
        with_cp: bool = False,
        backend: str = 'auto',
        init_cfg: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        check_init_cfg(init_cfg)
        super().__init__(init_cfg)
        settings = resolve_settings(arch, self.ARCHS, d_state=16)
        dim, depth, d_state = (settings[k] for k in ('embed_dims', 'num_layers', 'd_state'))
        check_settings(**settings, patch_size=patch_size)
        check_settings(in_channels=in_channels, drop_path_rate=drop_path_rate)
        check_choice('out_type', out_type, OUT_TYPES)
        check_choice('backend', backend, BACKENDS)
        self.out_type, self.with_cp, self.patch_size = out_type, with_cp, patch_size
        sides = to_2tuple(img_size)
        if not all(isinstance(side, int) for side in sides):
            raise TypeError(f'img_size must be an int or a pair of ints, but got {img_size!r}')
        if len(sides) != 2 or min(sides) < patch_size:
            raise ValueError(
                f'img_size must be one or two sides of at least patch_size {patch_size}, but got '
                f'{img_size!r}'
            )
        self.grid = tuple(side // patch_size for side in sides)
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(in_channels, dim, patch_size, patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, math.prod(self.grid) + 1, dim))
        rates = torch.linspace(0, drop_path_rate, depth, device='cpu').tolist()
        self.layers = nn.ModuleList(VimBlock(dim, d_state, rate, backend) for rate in rates)
        self.norm_f = nn.RMSNorm(dim, eps=1e-5)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for block in self.layers:  # keeps the residual sum from growing with the depth
            block.mixer.out_proj.weight.data.div_(math.sqrt(depth))

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """Return one map (N, d, H // 16, W // 16), or one class token (N, d).

        Raises:
            ValueError: If the images are not (N, in_channels, H, W), or smaller than a token.
        """
        check_images(x, self.patch_embed.proj.in_channels, self.patch_size)
        x = self.patch_embed.proj(x)
        H, W = x.shape[2:]
        x, middle = x.flatten(2).transpose(1, 2), H * W // 2
        token = self.cls_token.expand(len(x), -1, -1).to(x.dtype)
        x = torch.cat((x[:, :middle], token, x[:, middle:]), dim=1)
        # The position embedding keeps the residual sum in float32 in autocast.
        x = x + resize_positions(self.pos_embed, self.grid, (H, W))
        for block in self.layers:
            if self.with_cp and self.training and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        x = self.norm_f(x)
        if self.out_type == 'cls_token':
            return (x[:, middle],)
        x = torch.cat((x[:, :middle], x[:, middle + 1 :]), dim=1)
        return (x.transpose(1, 2).unflatten(2, (H, W)).contiguous(),)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        """Resize the position embedding of a checkpoint for square images of another size."""
        given = state_dict.get(f'{prefix}pos_embed')
        if given is not None and given.shape != self.pos_embed.shape and given.dim() == 3:
            side = math.isqrt(given.shape[1] - 1)
            if side**2 + 1 == given.shape[1]:
                state_dict[f'{prefix}pos_embed'] = resize_positions(given, (side, side), self.grid)
        super()._load_from_state_dict(state_dict, prefix, *args)


def resize_positions(pos_embed: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Resize a position embedding (1, h * w + 1, d) bicubically to another grid (H, W).

    The embedding of the class token, in the middle, is not changed.
    """
    if old == new:
        return pos_embed
    middle = math.prod(old) // 2
    sizes = (middle, 1, math.prod(old) - middle)
    before, token, after = pos_embed.split(sizes, dim=1)
    grid = torch.cat((before, after), dim=1).transpose(1, 2).unflatten(2, old)
    grid = F.interpolate(grid, new, mode='bicubic', align_corners=False)
    grid, middle = grid.flatten(2).transpose(1, 2), math.prod(new) // 2
    return torch.cat((grid[:, :middle], token, grid[:, middle:]), dim=1)
