"""The methods that timm's users expect of a model. Needs torch alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from .layers import apply_norm, build_linear, build_pooling, check_choice, reset_linear
from .settings import stage_indices

#: timm's mark of a group that is part of the one before it.
_PART_OF_PREVIOUS_GROUP = (99999,)


class TimmMethods:
    """The interface of timm's models, a base class of :class:`mmvmamba.nn.VMambaNet`."""

    #: The layout of what ``forward_features`` returns.
    output_fmt = 'NHWC'

    @property
    def in_chans(self) -> int:
        """The channels of the images, by timm's name."""
        return self.in_channels

    @property
    def num_features(self) -> int:
        """The channels of what ``forward_features`` returns."""
        return self.settings.dims[len(self.layers) - 1]

    @property
    def head_hidden_size(self) -> int:
        """The channels that the last linear layer takes."""
        return self.num_features

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """Channels, stride and module of each stage's map."""
        arch = self.settings
        return [
            dict(
                num_chs=dim,
                reduction=arch.patch_size * 2**i,
                module=f'layers.{i}.blocks.{depth - 1}',
            )
            for i, (dim, depth) in enumerate(zip(arch.dims, arch.depths, strict=True))
        ]

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """The layers of each parameter, as regular expressions, for layer-wise learning rates.

        The stem is the first layer, each block a layer of its own, with the downsampling after a
        stage in that of its last block; the classifier is the last one.

        Args:
            coarse (bool): Whether a stage is one layer. Defaults to False.
        """
        blocks = [
            (r'^layers\.(\d+)\.blocks\.(\d+)', None),
            (r'^layers\.(\d+)\.downsample', _PART_OF_PREVIOUS_GROUP),
        ]
        return dict(stem=r'^patch_embed|^pos_embed', blocks=r'^layers\.(\d+)' if coarse else blocks)

    def no_weight_decay(self) -> set[str]:
        """The parameters without weight decay, besides vectors and biases."""
        return {'pos_embed'}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Sets ``with_cp``: whether blocks are recomputed in the backward, which saves memory."""
        self.with_cp = enable

    def get_classifier(self) -> nn.Module:
        """The last linear layer, ``nn.Identity`` where there are no classes.

        Raises:
            TypeError: If the network is a backbone.
        """
        return self._classifier_or_error().head

    def reset_classifier(
        self, num_classes: int, global_pool: str | None = None, reset_other: bool = False
    ) -> None:
        """Gives the classifier a new linear layer.

        Args:
            num_classes (int): Classes; 0 for none, and the pooled map (N, C) as the result.
            global_pool (str, optional): 'avg', 'max' or '', which leaves the map as it is,
                (N, H, W, C). Defaults to None, as before.
            reset_other (bool): Whether the classifier's norm goes too. Defaults to False.

        Raises:
            TypeError: If the network is a backbone, or an argument has a wrong type.
            ValueError: If an argument is not allowed.
        """
        classifier = self._classifier_or_error()
        weight = next(self.parameters())
        new = {'head': build_linear(self.num_features, num_classes)}
        if num_classes:
            reset_linear(new['head'])
        if global_pool is not None:
            new |= build_pooling(global_pool)
        if reset_other:
            new['norm'] = nn.Identity()
        for name, layer in new.items():
            setattr(classifier, name, layer.to(weight.device, weight.dtype))
        self.num_classes = num_classes

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """What ``forward_features`` returns -> class scores (N, num_classes).

        Args:
            x (Tensor): The last stage's output (N, H, W, C).
            pre_logits (bool): Whether to return what the last linear layer takes, (N, C).
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
        """Images (N, 3, H, W) -> the maps of stages before the downsampling that follows them.

        Args:
            x (Tensor): The images.
            indices (int | Sequence[int], optional): The stages, a negative one counts from the
                last, or how many of the last ones. Defaults to None, all.
            norm (bool): Whether the last stage's map is normalised by the classifier's norm.
                Defaults to False.
            stop_early (bool): Whether to leave out what comes after the last of these stages.
                Defaults to False.
            output_fmt (str): 'NCHW' or 'NHWC'. Defaults to 'NCHW'.
            intermediates_only (bool): Whether to return the maps alone. Defaults to False.

        Returns:
            list[Tensor] | tuple[Tensor, list[Tensor]]: The maps in the order of the stages; before
            them, without ``intermediates_only``, what ``forward_features`` returns, or with
            ``stop_early`` the last map that was computed, (N, H, W, C).

        Raises:
            TypeError: If an argument has a wrong type.
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
        """Drops what the maps of some stages do not need.

        Args:
            indices (int | Sequence[int], optional): As in :meth:`forward_intermediates`.
                Defaults to 1, the last stage.
            prune_norm (bool): Whether to drop the classifier's norm. Defaults to False.
            prune_head (bool): Whether to drop the classifier's linear layer and pooling.
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
            classifier.norm = nn.Identity()  # the last stage's
        self.layers = self.layers[: last + 1]
        self.layers[last].downsample = nn.Identity()
        if prune_head or shortened:
            self.reset_classifier(0, '')
        return wanted

    def _take_indices(self, indices: int | Sequence[int] | None) -> list[int]:
        """Stages, counted from the first, in order."""
        stages = len(self.layers)
        count = stages if indices is None else indices
        if isinstance(count, int):
            if not 0 < count <= stages:
                raise ValueError(f'indices must be 1 to {stages} stages, but got {count}')
            return list(range(stages - count, stages))
        return list(stage_indices(indices, stages, 'indices'))

    def _normed(self, x: Tensor) -> Tensor:
        norm = self._classifier_or_error().norm
        return x if isinstance(norm, nn.Identity) else apply_norm(norm, x)

    def _classifier_or_error(self) -> nn.Sequential:
        if self.out_indices is not None:
            raise TypeError('a network with out_indices is a backbone and has no classifier')
        return self.classifier
