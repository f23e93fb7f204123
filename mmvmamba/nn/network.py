"""The VMamba network in plain PyTorch (arXiv 2401.10166): block, stage, classifier, network."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmvmamba.checkpoint.keys import rename_tensors, resize_pos_embed
from mmvmamba.checkpoint.matching import match_tensors, with_resized_pos_embed
from mmvmamba.checkpoint.tensors import same_shape, unusable

from .arch import Arch, check_known, resolve_arch
from .cpu_inference import fuses, plain, run_block
from .hub_methods import HubMethods
from .layers import (
    DOWNSAMPLES,
    NORMS,
    POOLS,
    STEMS,
    DropPath,
    Mlp,
    apply_norm,
    build_linear,
    build_pooling,
    channels_first,
    reset_linear,
)
from .settings import check_choice, check_images, check_setting, check_settings, stage_indices
from .ss2d import SS2D
from .timm_methods import TimmMethods


@plain
class VSSBlock(nn.Module):
    """Block of VMamba: x + DropPath(SS2D(norm(x))), then x + DropPath(MLP(norm2(x))) (Fig. 3d).

    The arguments that are not listed are settings of :class:`mmvmamba.nn.Arch`, with the same
    defaults.

    Args:
        dim (int): Channels d.
        drop_path (float): Probability of dropping each branch. Defaults to 0.
        **ssm: The other arguments of :class:`SS2D`.
    """

    def __init__(
        self,
        dim: int,
        drop_path: float = 0.0,
        mlp_ratio: float = 4.0,
        mlp_act: str = 'gelu',
        mlp_gate: bool = False,
        mlp_drop_rate: float = 0.0,
        norm: str = 'ln',
        ssm_ratio: float = 1.0,
        **ssm: Any,
    ) -> None:
        super().__init__()
        self.norm = NORMS[norm](dim) if ssm_ratio else None
        self.op = SS2D(dim, ssm_ratio=ssm_ratio, **ssm) if ssm_ratio else None
        self.drop_path = DropPath(drop_path)
        self.norm2 = NORMS[norm](dim) if mlp_ratio else None
        hidden_dim = int(dim * mlp_ratio)
        self.mlp = Mlp(dim, hidden_dim, mlp_act, mlp_gate, mlp_drop_rate) if mlp_ratio else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, d) -> (N, H, W, d)."""
        if fuses(self, x):
            return run_block(self, x)
        if self.op is not None and self.norm is not None:
            x = x + self.drop_path(self.op(apply_norm(self.norm, x)))
        if self.mlp is not None and self.norm2 is not None:
            x = x + self.drop_path(self.mlp(apply_norm(self.norm2, x)))
        return x


class VSSStage(nn.Sequential):
    """Blocks of a stage, then the layer that halves the map for the next stage."""

    def __init__(self, blocks: list[VSSBlock], downsample: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.downsample = downsample


def build_classifier(
    arch: Arch, num_classes: int, global_pool: str = 'avg', drop_rate: float = 0.0
) -> nn.Sequential:
    """Build norm, pooling and linear layer, by the names in the released files."""
    layers: dict[str, nn.Module] = {'norm': NORMS[arch.norm](arch.dims[-1])}
    layers['permute'] = channels_first()
    if arch.norm == 'bn':  # normalizes maps (N, C, H, W)
        layers = dict(reversed(layers.items()))
    layers |= build_pooling(global_pool)
    if drop_rate:
        layers['drop'] = nn.Dropout(drop_rate)
    layers['head'] = build_linear(arch.dims[-1], num_classes)
    return nn.Sequential(OrderedDict(layers))


class VMambaNet(TimmMethods, HubMethods):
    """VMamba as a classifier or, with ``out_indices``, as a backbone.

    Parameter names are those of the released files.

    Args:
        arch (str | dict | Arch): A key of :data:`mmvmamba.nn.ARCHS`, or settings of
            :class:`mmvmamba.nn.Arch`. Defaults to 'tiny'.
        in_channels (int): Channels of the images. Defaults to 3.
        num_classes (int): Number of classes; 0 returns the pooled features. Defaults to 1000.
        out_indices (Sequence[int], optional): Stages whose normalized maps a backbone returns, in
            this order; negative indices count from the last stage. Later stages do not run and get
            no gradient. Defaults to None, a classifier.
        frozen_stages (int): Freeze the stem and the first ``frozen_stages`` stages (with the
            downsampling and output norm after each): no gradients, eval mode. 0 freezes only the
            stem and -1 nothing. Defaults to -1.
        with_cp (bool): Whether to recompute each block in the backward pass instead of keeping its
            activations (non-reentrant checkpointing). Defaults to False.
        global_pool (str): Pooling of a classifier: 'avg', 'max' or '' for none.
            Defaults to 'avg'.
        drop_rate (float): Dropout before a classifier's linear layer. Defaults to 0.
        backend (str): The scan's backend: 'auto', 'native', 'triton' or 'reference', see
            :func:`mmvmamba.ops.ss2d_scan`. Defaults to 'auto'.
        **settings: Settings of :class:`mmvmamba.nn.Arch` that replace those of ``arch``, except
            those that are None.

    Raises:
        TypeError: If an argument has a wrong type.
        ValueError: If a name or a number is not allowed.
    """

    def __init__(
        self,
        arch: str | Mapping[str, Any] | Arch = 'tiny',
        in_channels: int = 3,
        num_classes: int = 1000,
        out_indices: Sequence[int] | None = None,
        frozen_stages: int = -1,
        with_cp: bool = False,
        global_pool: str = 'avg',
        drop_rate: float = 0.0,
        backend: str = 'auto',
        **settings: Any,
    ) -> None:
        super().__init__()
        arguments = inspect.signature(type(self)).parameters.values()
        check_known(settings, [p.name for p in arguments if p.kind is not p.VAR_KEYWORD])
        self.settings = arch = resolve_arch(arch, **settings)
        stages = len(arch.dims)
        check_setting('frozen_stages', frozen_stages, stages)
        check_settings(in_channels=in_channels, num_classes=num_classes, drop_rate=drop_rate)
        check_choice('global_pool', global_pool, POOLS)
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.class_names = None
        self.out_indices = None if out_indices is None else stage_indices(out_indices, stages)
        self.frozen_stages = frozen_stages
        self.with_cp = with_cp

        self.patch_embed = STEMS[arch.stem](
            in_channels, arch.dims[0], arch.patch_size, arch.norm if arch.stem_norm else None
        )
        self.pos_embed: nn.Parameter | None = None
        if arch.pos_embed_size is not None:
            side = arch.pos_embed_size // arch.patch_size
            self.pos_embed = nn.Parameter(torch.zeros(1, arch.dims[0], side, side))
            nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.layers = nn.ModuleList(self._build_stages(arch, backend))
        if self.out_indices is None:
            self.classifier = build_classifier(arch, num_classes, global_pool, drop_rate)
        else:
            for i in sorted(self.out_indices):
                self.add_module(f'outnorm{i}', NORMS[arch.norm](arch.dims[i]))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                reset_linear(module)
        self._freeze_stages()

    def _build_stages(self, arch: Arch, backend: str) -> list[VSSStage]:
        num_blocks = sum(arch.depths)
        # On the CPU even if the model is built on the meta device.
        rates = iter(torch.linspace(0, arch.drop_path_rate, num_blocks, device='cpu').tolist())
        stages = []
        for i, (dim, depth) in enumerate(zip(arch.dims, arch.depths, strict=True)):
            blocks = [
                VSSBlock(
                    dim,
                    next(rates),
                    arch.mlp_ratio,
                    arch.mlp_act,
                    arch.mlp_gate,
                    arch.mlp_drop_rate,
                    arch.norm,
                    backend=backend,
                    **arch.ssm_settings,
                )
                for _ in range(depth)
            ]
            # A backbone keeps the stages that it does not run, so that a released file loads as a
            # whole.
            downsample: nn.Module = nn.Identity()
            if i + 1 < len(arch.dims):
                downsample = DOWNSAMPLES[arch.downsample](dim, arch.dims[i + 1], arch.norm)
            stages.append(VSSStage(blocks, downsample))
        return stages

    def _freeze_stages(self) -> None:
        if self.out_indices is not None:
            # DistributedDataParallel would wait for the gradients of stages that do not run.
            last = max(self.out_indices)
            for module in (self.layers[last].downsample, *self.layers[last + 1 :]):
                module.requires_grad_(False)
        if self.frozen_stages < 0:
            return
        frozen = [self.patch_embed, *self.layers[: self.frozen_stages]]
        frozen += [getattr(self, f'outnorm{i}', None) for i in range(self.frozen_stages)]
        for module in filter(None, frozen):
            module.eval()
            module.requires_grad_(False)
        if self.pos_embed is not None:
            self.pos_embed.requires_grad_(False)

    def train(self, mode: bool = True) -> VMambaNet:
        """Set the mode; frozen stages stay in eval mode."""
        super().train(mode)
        self._freeze_stages()
        return self

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load the tensors of any released naming scheme.

        As in :class:`torch.nn.Module`, but an error leaves the network unchanged, unless ``assign``
        is set.

        Raises:
            RuntimeError: As in torch, if names or shapes differ.
            ValueError: If two names refer to the same tensor, or a tensor has a different kind of
                dtype, or contains NaN or Inf where the network's own tensor is finite.
        """
        if isinstance(state_dict, Mapping) and not assign:
            self._try_load(state_dict, strict)
        return super().load_state_dict(state_dict, strict, assign)

    def _try_load(self, state_dict: Mapping[str, Any], strict: bool) -> None:
        """Raise torch's error by copying the network's own values; torch raises after copying."""
        own, renamed = self.state_dict(), self.renamed(state_dict)
        same = {key for key, value in renamed.items() if key in own and same_shape(value, own[key])}
        if same != own.keys() or same != renamed.keys():
            trial = OrderedDict((k, own[k] if k in same else v) for k, v in renamed.items())
            trial._metadata = getattr(state_dict, '_metadata', None)  # type: ignore[attr-defined]
            super().load_state_dict(trial, strict)

    def renamed(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of any released naming scheme by the names of this network."""
        own = {} if self.pos_embed is None else {'pos_embed': self.pos_embed}
        return with_resized_pos_embed(rename_tensors(tensors), own)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, metadata: dict[str, Any], *args: Any
    ) -> None:
        """Rename the tensors, and check them before the first is copied."""
        inside = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
        renamed = self.renamed(inside)
        own = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        # FSDP has other names and shapes than a file.
        if not any('_fsdp_wrapped_module' in key or '_flat_param' in key for key in own):
            self.check_tensors(own, renamed, metadata.get('assign_to_params_buffers', False))
        for key in inside:
            del state_dict[prefix + key]
        state_dict.update({prefix + key: value for key, value in renamed.items()})
        super()._load_from_state_dict(state_dict, prefix, metadata, *args)

    def check_tensors(
        self, own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], assign: bool
    ) -> None:
        """Reject other kinds of dtypes, NaN and Inf. torch compares names and shapes."""
        common = {
            key: value
            for key, value in tensors.items()
            if key in own and (unusable(value) or value.shape == own[key].shape)
        }
        if common:
            matching = match_tensors({key: own[key] for key in common}, common, assign)
            matching.check('the state dict', type(self).__name__)

    def stem(self, x: Tensor) -> Tensor:
        """Images (N, 3, H, W) -> the first stage's input (N, H/4, W/4, d0), position added."""
        arch = self.settings
        check_images(x, self.in_channels, arch.patch_size if arch.stem == 'patch' else 1)
        x = self.patch_embed(x.contiguous(memory_format=torch.channels_last))
        return x if self.pos_embed is None else self.add_pos_embed(x, self.pos_embed)

    def add_pos_embed(self, x: Tensor, pos_embed: Tensor) -> Tensor:
        """Add the position embedding (1, d0, h, w) to a map (N, H, W, d0)."""
        pos = resize_pos_embed(pos_embed, x.shape[1:3])
        return x + pos.to(x.dtype).permute(0, 2, 3, 1)

    def run_blocks(self, stage: VSSStage, x: Tensor) -> Tensor:
        """Run the blocks of a stage, without its downsampling: (N, H, W, d) -> (N, H, W, d)."""
        for block in stage.blocks:
            if self.with_cp and self.training and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return x

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (N, 3, H, W) -> the last stage's output (N, H/32, W/32, d3)."""
        x = self.stem(x)
        for stage in self.layers:
            x = stage.downsample(self.run_blocks(stage, x))
        return x

    def forward_stages(self, x: Tensor, out_indices: Sequence[int]) -> tuple[Tensor, ...]:
        """Images (N, 3, H, W) -> the normalized maps (N, d_i, H_i, W_i) of these stages."""
        x = self.stem(x)
        maps, last = {}, max(out_indices)
        for i, stage in enumerate(self.layers[: last + 1]):
            x = self.run_blocks(stage, x)
            if i in out_indices:
                # Necks take NCHW; channels-last memory, so that nothing is copied.
                maps[i] = apply_norm(getattr(self, f'outnorm{i}'), x).permute(0, 3, 1, 2)
            if i < last:
                x = stage.downsample(x)
        return tuple(maps[i] for i in out_indices)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Class scores (N, num_classes), or with ``out_indices`` a tuple of NCHW maps.

        Args:
            x (Tensor): Images (N, in_channels, H, W), large enough for each stage to have a map.

        Raises:
            TypeError: If ``x`` is not a tensor.
            ValueError: If ``x`` is not 4-D, has other channels or a side below a patch.
        """
        if self.out_indices is None:
            return self.forward_head(self.forward_features(x))
        return self.forward_stages(x, self.out_indices)
