"""VMamba as an OpenMMLab backbone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

from mmengine.model import BaseModule, initialize
from torch import Tensor

from mmvmamba.nn import VMambaNet
from mmvmamba.registry import MODELS

from .loading import check_backbone, load_pretrained, rename_for_image_classifier

_PRETRAINED = 'Pretrained'


@MODELS.register_module()
class VMamba(VMambaNet, BaseModule):
    """VMamba backbone.

    A PyTorch implementation of: `VMamba: Visual State Space Model
    <https://arxiv.org/abs/2401.10166>`_

    Args:
        arch (str | dict): One of the released architectures, 'tiny' ('tiny_s1l8'), 'small'
            ('small_s2l15'), 'base' ('base_s2l15'), 'tiny_s2l5', 'small_s1l20', 'base_s1l20',
            'vanilla_tiny', 'vanilla_small' and 'vanilla_base', or a dict of settings of
            :class:`mmvmamba.nn.Arch`. Defaults to 'tiny'.
        out_indices (Sequence[int]): The stages whose maps are returned, with strides 4, 8, 16 and
            32; a negative one counts from the last. Defaults to (0, 1, 2, 3).
        frozen_stages (int): The stem and the first ``frozen_stages`` stages are frozen; -1
            freezes nothing. Defaults to -1.
        drop_path_rate (float, optional): Drop-path rate of the last block; it grows linearly from
            0. Defaults to None, the architecture's.
        with_cp (bool): Whether to recompute blocks in the backward to save memory.
            Defaults to False.
        in_channels (int): Channels of the images. Defaults to 3.
        backend (str): The scan's backend: 'auto', 'native' or 'reference'. Defaults to 'auto'.
        init_cfg (dict | list[dict], optional): ``dict(type='Pretrained', checkpoint=FILE_OR_URL)``
            takes a released file, a classifier's, detector's or segmentor's; ``prefix`` names the
            part of a larger model that is taken. Other types are MMEngine's; of a list they come
            first. Defaults to None.
        **settings: Settings of :class:`mmvmamba.nn.Arch` that replace those of ``arch``, e.g.
            ``scan='bidirectional'``.

    Raises:
        TypeError: If an argument has a wrong type.
        ValueError: If a name or a number is not allowed.
    """

    def __init__(
        self,
        arch: str | Mapping[str, Any] = 'tiny',
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        drop_path_rate: float | None = None,
        with_cp: bool = False,
        in_channels: int = 3,
        backend: str = 'auto',
        init_cfg: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        **settings: Any,
    ) -> None:
        if out_indices is None:
            raise TypeError('out_indices must be a sequence of int, but got None')
        check_init_cfg(init_cfg)
        super().__init__(
            arch,
            in_channels=in_channels,
            out_indices=out_indices,
            frozen_stages=frozen_stages,
            drop_path_rate=drop_path_rate,
            with_cp=with_cp,
            backend=backend,
            **settings,
        )
        self.init_cfg = init_cfg

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Images (N, 3, H, W) -> a tuple of maps (N, C, H, W), contiguous in this order.

        The convolutions of necks and heads keep the memory format of their input, and mmcv's
        RoIAlign reads channels-last memory as if it were NCHW: it returns wrong values in silence.
        """
        return tuple(out.contiguous() for out in super().forward(x))

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """The place of a parameter for layer-wise learning rates, as mmpretrain counts it.

        The stem is layer 0, each block a layer of its own, with the downsampling after a stage in
        that of its last block. Output norms and classifier are as far as the head.

        Args:
            param_name (str): The parameter's name.
            prefix (str): What its name begins with before the backbone's own. Defaults to ''.

        Returns:
            tuple[int, int]: The layer and the number of layers, head included.

        Raises:
            ValueError: If there is no such parameter.
        """
        name = param_name.removeprefix(prefix)
        depths = [len(stage.blocks) for stage in self.layers]
        count = sum(depths) + 2
        first, *rest = name.split('.')
        if not param_name.startswith(prefix) or name not in dict(self.named_parameters()):
            raise ValueError(f'param_name {param_name!r} names no parameter below {prefix!r}')
        if first in ('patch_embed', 'pos_embed'):
            return 0, count
        if first != 'layers':
            return count - 1, count
        stage = int(rest[0])
        within = int(rest[2]) + 1 if rest[1] == 'blocks' else depths[stage]
        return sum(depths[:stage]) + within, count

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args) -> None:
        """Refuses what MMEngine would load in part, or not at all."""
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)
        inside = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
        check_backbone(self, inside, local_metadata)

    def _checkpoint_filter(self, state_dict, prefix, *args) -> None:
        """The hook of mmpretrain's ImageClassifier for what it loads from elsewhere."""
        rename_for_image_classifier(self, state_dict, prefix)

    def init_weights(self) -> None:
        """Initialises the weights once, from a file where ``init_cfg`` names one.

        Raises:
            FileNotFoundError: If the file does not exist.
            ValueError: If it is no checkpoint, is truncated, or does not fit.
        """
        given = [self.init_cfg] if isinstance(self.init_cfg, Mapping) else self.init_cfg or []
        files = [cfg for cfg in given if cfg['type'] == _PRETRAINED]
        if self.is_init or not files:
            super().init_weights()
            return
        initialize(self, [cfg for cfg in given if cfg['type'] != _PRETRAINED])
        for cfg in files:
            load_pretrained(self, cfg['checkpoint'], cfg.get('prefix'))
        self._is_init = True


def check_init_cfg(init_cfg: Any) -> None:
    """Checks that ``init_cfg`` is one that MMEngine takes, and that a file in it is named.

    Args:
        init_cfg (Any): What a config gives.

    Raises:
        TypeError: If it is no dict or list of dict, or a file's name is no path.
        ValueError: If a type or a file is missing.
    """
    if not init_cfg:
        return
    several = isinstance(init_cfg, Sequence) and not isinstance(init_cfg, str)
    for cfg in init_cfg if several else [init_cfg]:
        if not isinstance(cfg, Mapping):
            raise TypeError(f'init_cfg must be a dict or a list of dict, but got {init_cfg!r}')
        if not cfg.get('type'):
            raise ValueError(f'init_cfg must have a type, e.g. {_PRETRAINED!r}, but got {cfg}')
        if cfg['type'] != _PRETRAINED:
            continue
        if 'checkpoint' not in cfg:
            raise ValueError(f'init_cfg must name a checkpoint, but got {cfg}')
        if not isinstance(cfg['checkpoint'], str | PathLike):
            raise TypeError(f'checkpoint in init_cfg must be a path or a URL, but got {cfg}')
        if not isinstance(cfg.get('prefix'), str | None):
            raise TypeError(f'prefix in init_cfg must be a str, but got {cfg}')
