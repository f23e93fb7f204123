"""VMamba as an OpenMMLab backbone."""

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.model import BaseModule, initialize
from torch import Tensor

from mmvmamba.checkpoint.matching import copy_tensors
from mmvmamba.nn import VMambaNet
from mmvmamba.registry import MODELS

from .checks import check_init_cfg
from .loading import check_backbone, read_pretrained, rename_for_image_classifier

#: Arguments of other backbones, and what to do instead.
_HINTS = {
    'pretrained': "use init_cfg=dict(type='Pretrained', checkpoint=FILE)",
    'norm_eval': (
        'leave it out: VMamba normalizes with LayerNorm, which has no running statistics, and '
        'frozen stages stay in eval mode'
    ),
}


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
        out_indices (Sequence[int]): The stages whose maps are returned, in this order, with
            strides 4, 8, 16 and 32. A negative index counts from the last stage.
            Defaults to (0, 1, 2, 3).
        frozen_stages (int): Freeze the stem and the first ``frozen_stages`` stages; -1 freezes
            nothing. Defaults to -1.
        drop_path_rate (float, optional): Drop-path rate of the last block. It increases linearly
            from 0 at the first block. Defaults to None, the architecture's rate.
        with_cp (bool): Whether to recompute each block in the backward pass to save memory.
            Defaults to False.
        in_channels (int): Number of image channels. ``init_cfg`` adapts the first convolution of a
            file for 3 channels. Defaults to 3.
        backend (str): Backend of the scan: 'auto', 'native', 'triton' or 'reference', see
            :func:`mmvmamba.ops.ss2d_scan`. Defaults to 'auto'.
        init_cfg (dict | list[dict], optional): Initialization config.
            ``dict(type='Pretrained', checkpoint=FILE_OR_URL)`` loads a released classifier,
            detector or segmentor; ``prefix`` selects a part of a larger model. MMEngine handles
            the other types, before files are loaded. Defaults to None.
        **settings: Settings of :class:`mmvmamba.nn.Arch` that override those of ``arch``, e.g.
            ``scan='bidirectional'``.

    Raises:
        TypeError: If an argument has a wrong type.
        ValueError: If an argument is unknown or its value is not allowed.
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
        if out_indices is None:  # a classifier in the base class
            raise TypeError('out_indices must be a sequence of int, but got None')
        for name, hint in _HINTS.items():
            if name in settings:
                raise ValueError(f'VMamba has no argument {name}; {hint}')
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
        """Return the maps (N, C_i, H_i, W_i) of images (N, in_channels, H, W), contiguous.

        The convolutions of necks and heads keep the memory format of their input, and mmcv's
        RoIAlign reads channels-last memory as if it were NCHW: it silently returns wrong values.
        """
        return tuple(out.contiguous() for out in super().forward(x))

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Return the layer of a parameter, for layer-wise learning rate decay.

        The stem is layer 0. Each block is a layer; the downsampling after a stage belongs to the
        stage's last block. The output norms and everything outside the backbone, such as the head,
        belong to the last layer.

        Args:
            param_name (str): The name of the parameter.
            prefix (str): The prefix of the backbone's parameters in the model. Defaults to ''.

        Returns:
            tuple[int, int]: The layer and the number of layers.
        """
        depths = self.settings.depths
        num_layers = sum(depths) + 2
        within = param_name.startswith(prefix)
        parts = param_name.removeprefix(prefix).split('.')
        if within and parts[0] in ('patch_embed', 'pos_embed'):
            return 0, num_layers
        if within and parts[0] == 'layers':
            stage = int(parts[1])
            block = int(parts[3]) if parts[2] == 'blocks' else depths[stage] - 1
            return sum(depths[:stage]) + block + 1, num_layers
        return num_layers - 1, num_layers

    def check_tensors(
        self, own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], assign: bool
    ) -> None:
        """Reject a state dict that MMEngine would load partially or not at all."""
        check_backbone(self, own, tensors, assign)

    def _checkpoint_filter(self, state_dict, prefix, *args) -> None:
        """Rename a released classifier; mmpretrain's ImageClassifier calls this before loading."""
        rename_for_image_classifier(self, state_dict, prefix)

    def init_weights(self) -> None:
        """Initialize the weights once, from a file if ``init_cfg`` specifies one.

        Raises:
            FileNotFoundError: If the file does not exist.
            ValueError: If the file is not a checkpoint, is truncated, does not match, or contains
                NaN or Inf.
        """
        cfgs = [self.init_cfg] if isinstance(self.init_cfg, Mapping) else self.init_cfg or []
        files = [cfg for cfg in cfgs if cfg['type'] == 'Pretrained']
        if self.is_init or not files:
            super().init_weights()
            return
        # All files are read and checked first, so that an error changes nothing.
        pretrained = [read_pretrained(self, cfg['checkpoint'], cfg.get('prefix')) for cfg in files]
        initialize(self, [cfg for cfg in cfgs if cfg['type'] != 'Pretrained'])
        for tensors in pretrained:
            copy_tensors(self, tensors)
        self._is_init = True
