"""The interface of timm's models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from .layers import apply_norm, build_linear, build_pooling, reset_linear
from .settings import check_choice, stage_indices

if TYPE_CHECKING:
    from .arch import Arch

#: timm's mark of a group that belongs to the group before it.
_PART_OF_PREVIOUS_GROUP = (99999,)


class TimmMethods(nn.Module):
    """The interface of timm's models, a base class of :class:`mmvmamba.nn.VMambaNet`."""

    #: Layout of the result of ``forward_features``.
    output_fmt = 'NHWC'

    settings: Arch
    in_channels: int
    num_classes: int
    #: Names of the classes of a file that :func:`mmvmamba.nn.create_model` has loaded.
    class_names: tuple[str, ...] | None
    out_indices: tuple[int, ...] | None
    with_cp: bool
    layers: Any  # nn.ModuleList of VSSStage
    classifier: nn.Sequential

    if TYPE_CHECKING:

        def stem(self, x: Tensor) -> Tensor: ...

        def run_blocks(self, stage: Any, x: Tensor) -> Tensor: ...

    @property
    def in_chans(self) -> int:
        """Number of channels of the images."""
        return self.in_channels

    @property
    def num_features(self) -> int:
        """Number of channels of the result of ``forward_features``."""
        return self.settings.dims[len(self.layers) - 1]

    @property
    def head_hidden_size(self) -> int:
        """Number of input channels of the last linear layer."""
        return self.num_features

    @property
    def global_pool(self) -> str:
        """Pooling of a classifier: 'avg', 'max', or '' for none and for backbones."""
        if self.out_indices is not None:
            return ''
        pools = {nn.AdaptiveAvgPool2d: 'avg', nn.AdaptiveMaxPool2d: 'max'}
        return pools.get(type(self.classifier.get_submodule('avgpool')), '')

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """Channels, stride and module of the map of each stage."""
        arch = self.settings
        return [
            dict(
                num_chs=dim,
                reduction=arch.stem_stride * 2**i,
                module=f'layers.{i}.blocks.{depth - 1}',
            )
            for i, (dim, depth) in enumerate(zip(arch.dims, arch.depths, strict=True))
        ]

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return regular expressions that group parameters into layers, for layer-wise decay.

        The stem is the first layer, and each block is a separate layer. The downsampling after a
        stage belongs to its last block. The classifier is the last layer.

        Args:
            coarse (bool): Whether each stage is one layer. Defaults to False.
        """
        blocks = [
            (r'^layers\.(\d+)\.blocks\.(\d+)', None),
            (r'^layers\.(\d+)\.downsample', _PART_OF_PREVIOUS_GROUP),
        ]
        return dict(stem=r'^patch_embed|^pos_embed', blocks=r'^layers\.(\d+)' if coarse else blocks)

    def no_weight_decay(self) -> set[str]:
        """Return parameters without weight decay, in addition to 1-D ones and biases."""
        return {'pos_embed'}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Set ``with_cp``: recompute blocks in the backward pass to save memory."""
        self.with_cp = enable

    def get_classifier(self) -> nn.Module:
        """Return the last linear layer, or ``nn.Identity`` for 0 classes.

        Raises:
            TypeError: If the network is a backbone.
        """
        return self._classifier_or_error().get_submodule('head')

    def reset_classifier(
        self, num_classes: int, global_pool: str | None = None, reset_other: bool = False
    ) -> None:
        """Replace the last linear layer of the classifier.

        Args:
            num_classes (int): Number of classes; 0 returns the pooled map (N, C).
            global_pool (str, optional): 'avg', 'max' or '' for the map itself (N, H, W, C).
                Defaults to None, the current one.
            reset_other (bool): Whether to remove the classifier's norm. Defaults to False.

        Raises:
            TypeError: If the network is a backbone, or an argument has a wrong type.
            ValueError: If an argument is not allowed.
        """
        classifier = self._classifier_or_error()
        weight = next(self.parameters())
        head = build_linear(self.num_features, num_classes)
        if isinstance(head, nn.Linear):
            reset_linear(head)
        new = {'head': head}
        if global_pool is not None:
            new |= build_pooling(global_pool)
        if reset_other:
            new['norm'] = nn.Identity()
        for name, layer in new.items():
            setattr(classifier, name, layer.to(weight.device, weight.dtype))
        self.num_classes, self.class_names = num_classes, None

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Map (N, H, W, C) of ``forward_features`` -> class scores (N, num_classes).

        Args:
            x (Tensor): The last stage's output (N, H, W, C).
            pre_logits (bool): Whether to return the input of the last linear layer (N, C).
                Defaults to False.

        Raises:
            TypeError: If the network is a backbone.
        """
        classifier = self._classifier_or_error()
        return classifier[:-1](x) if pre_logits else classifier(x)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = 'NCHW',
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Images (N, 3, H, W) -> the maps of stages, taken before their downsampling.

        Args:
            x (Tensor): The images.
            indices (int | Sequence[int], optional): The stages (negative ones count from the
                last), or the number of stages, counted from the last. Defaults to None, all.
            norm (bool): Whether to normalize the map of the last stage by the classifier's norm.
                Defaults to False.
            stop_early (bool): Whether to skip everything after the last of these stages.
                Defaults to False.
            output_fmt (str): 'NCHW' or 'NHWC'. Defaults to 'NCHW'.
            intermediates_only (bool): Whether to return only the maps. Defaults to False.

        Returns:
            list[Tensor] | tuple[Tensor, list[Tensor]]: The maps in the order of the stages. Without
            ``intermediates_only`` they follow the result of ``forward_features`` or, with
            ``stop_early``, the last map computed (N, H, W, C).

        Raises:
            TypeError: If an argument has a wrong type, or with ``norm`` the network is a backbone.
            ValueError: If an argument is not allowed.
        """
        check_choice('output_fmt', output_fmt, ('NCHW', 'NHWC'))
        wanted = self._take_indices(indices)
        last = max(wanted) if stop_early else len(self.layers) - 1
        x, maps = self.stem(x), []
        for i, stage in enumerate(self.layers[: last + 1]):
            x = self.run_blocks(stage, x)
            if i in wanted:
                at_end = i == len(self.settings.dims) - 1
                maps.append(self._normed(x) if norm and at_end else x)
            if i < last:
                x = stage.downsample(x)
        if output_fmt == 'NCHW':
            maps = [y.permute(0, 3, 1, 2).contiguous() for y in maps]
        return maps if intermediates_only else (x, maps)

    def prune_intermediate_layers(
        self,
        indices: int | Sequence[int] | None = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Remove the layers that the maps of the given stages do not need.

        Args:
            indices (int | Sequence[int], optional): As in :meth:`forward_intermediates`.
                Defaults to 1, the last stage.
            prune_norm (bool): Whether to remove the classifier's norm. Defaults to False.
            prune_head (bool): Whether to remove the classifier's linear layer and pooling.
                Defaults to True.

        Returns:
            list[int]: The stages, counted from the first.

        Raises:
            TypeError: If ``indices`` has a wrong type, or the network is a backbone.
            ValueError: If there is no such stage.
        """
        classifier = self._classifier_or_error()
        wanted = self._take_indices(indices)
        last = max(wanted)
        shortened = last < len(self.layers) - 1
        if prune_norm or shortened:
            classifier.norm = nn.Identity()  # it belongs to the last stage
        self.layers = self.layers[: last + 1]
        self.layers[last].downsample = nn.Identity()
        if prune_head or shortened:
            self.reset_classifier(0, '')
        return wanted

    def _take_indices(self, indices: int | Sequence[int] | None) -> list[int]:
        """Return the stages as timm does: counted from the first, in ascending order."""
        stages = len(self.layers)
        count = stages if indices is None else indices
        if isinstance(count, int):
            if not 0 < count <= stages:
                raise ValueError(f'indices must be 1 to {stages} stages or a list, but got {count}')
            return list(range(stages - count, stages))
        return sorted(set(stage_indices(indices, stages, 'indices', unique=False)))

    def _normed(self, x: Tensor) -> Tensor:
        norm = self._classifier_or_error().get_submodule('norm')
        return x if isinstance(norm, nn.Identity) else apply_norm(norm, x)

    def _classifier_or_error(self) -> nn.Sequential:
        if self.out_indices is not None:
            raise TypeError('a network with out_indices is a backbone and has no classifier')
        return self.classifier
