"""The backbone of the authors' configs, with the arguments and the defaults of their code."""

import numbers
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.registry import MODELS as MMENGINE_MODELS
from torch import Tensor

from mmvmamba.nn import Arch
from mmvmamba.nn.layers import ACTIVATIONS
from mmvmamba.nn.settings import as_tuple, check_choice, check_setting
from mmvmamba.registry import MODELS

from .vmamba import VMamba

#: The scan of each base of ``forward_type``. Bases with the same scan differ only in their kernels
#: and their precision.
_SCANS = {
    **dict.fromkeys(('v01', 'v02', 'v03', 'v04', 'v05', 'v2', 'v3'), 'cross'),
    'v051d': 'unidirectional',
    'v052d': 'bidirectional',
    'v052dc': 'cascade',
}
_VANILLA = ('v0', 'v0seq')
_OUT_NORMS = {
    None: 'ln',
    'none': 'none',
    'dwconv3': 'dwconv3',
    'cnorm': 'ln_dwconv3',
    'softmax': 'softmax',
    'sigmoid': 'sigmoid',
}
_FORWARD_TYPE = re.compile(
    rf'(?P<base>{"|".join(_SCANS)})'
    rf'(?:_on(?P<norm>{"|".join(filter(None, _OUT_NORMS))}))?'
    r'(?P<nozact>_nozact)?(?P<noz>_noz)?(?P<oact>_oact)?(?:_no32)?'
)
#: Forward types of the authors' code that are not supported, by their first letters.
_UNSUPPORTED = {
    'xv': ': the published code cannot run the xv family',
    'v052d3': ': v052d3 is for debugging and does not define a scan',
    'm': ': the m family is Mamba-2, another network',
}
_ACTIVATIONS = {name: name for name in ACTIVATIONS}
_SSM_INITS = {'v0': 'mamba', 'v1': 'random', 'v2': 'zero'}
_STEMS = {'v1': 'patch', 'v2': 'conv'}
_DOWNSAMPLES = {'v1': 'merging', 'v2': 'conv2x2', 'v3': 'conv'}
_NORM_LAYERS = {'ln': 'ln', 'ln2d': 'ln', 'bn': 'bn'}
#: The authors' names of settings, for messages.
_ARGUMENTS = {
    'd_state': 'ssm_d_state',
    'dt_rank': 'ssm_dt_rank',
    'conv_kernel': 'ssm_conv',
    'conv_bias': 'ssm_conv_bias',
    'mlp_gate': 'gmlp',
    'stem_norm': 'patch_norm',
    'pos_embed_size': 'imgsize',
}


@MODELS.register_module()
@MMENGINE_MODELS.register_module()  # the authors' configs have no scope
class MM_VSSM(VMamba):  # noqa: N801
    """:class:`VMamba` with the arguments and the defaults of the authors' backbone.

    Args:
        out_indices (Sequence[int]): As in :class:`VMamba`. Defaults to (0, 1, 2, 3).
        pretrained (str, optional): File or URL that ``init_weights`` loads; None or '' loads
            nothing. Defaults to None.
        norm_layer (str): 'ln', 'ln2d' (the same model) or 'bn'. Defaults to 'ln'.
        patch_size (int): Stride of the stem. Defaults to 4.
        in_chans (int): Number of image channels. Defaults to 3.
        num_classes (int): Not used, because a backbone has no classifier. Defaults to 1000.
        depths (Sequence[int]): Number of blocks of each stage. Defaults to (2, 2, 9, 2).
        dims (int | Sequence[int]): Channels of each stage, or of the first stage, doubled at every
            next one. Defaults to (96, 192, 384, 768).
        ssm_d_state (int): As ``d_state``. Defaults to 16.
        ssm_ratio (float): Inner channels of SS2D over channels; 0 for no SS2D. Defaults to 2.
        ssm_dt_rank (int | str): Rank of the time steps; 'auto' for ceil(d / 16).
            Defaults to 'auto'.
        ssm_act_layer (str): 'silu', 'gelu', 'relu' or 'sigmoid'. Defaults to 'silu'.
        ssm_conv (int): Kernel size of the depthwise convolution; below 2 for none. Defaults to 3.
        ssm_conv_bias (bool): As ``conv_bias``. Defaults to True.
        ssm_drop_rate (float): Dropout rate of the output of SS2D. Defaults to 0.
        ssm_init (str): 'v0' ('mamba'), 'v1' ('random') or 'v2' ('zero'). Defaults to 'v0'.
        forward_type (str): 'v0' or 'v0seq' for the vanilla block, or
            ``<base>[_on<norm>][_nozact][_noz][_oact][_no32]`` with the bases v01 to v05, v2 and v3
            (cross scan), v051d (unidirectional), v052d (bidirectional) and v052dc (cascade), and
            the output norms none, dwconv3, cnorm, softmax and sigmoid. Defaults to 'v2'.
        mlp_ratio (float): Hidden channels of the MLP over channels; 0 for no MLP. Defaults to 4.
        mlp_act_layer (str): As ``ssm_act_layer``. Defaults to 'gelu'.
        mlp_drop_rate (float): Dropout rate of the MLP. Defaults to 0.
        gmlp (bool): Whether the MLP is gated. Defaults to False.
        drop_path_rate (float): Drop-path rate of the last block. Defaults to 0.1.
        patch_norm (bool): Whether the stem has norms. Defaults to True.
        downsample_version (str): 'v1' (patch merging), 'v2' (2x2 convolution) or 'v3' (3x3).
            Defaults to 'v2'.
        patchembed_version (str): 'v1' (patch) or 'v2' (convolutions). Defaults to 'v1'.
        use_checkpoint (bool, optional): The authors' name of ``with_cp``. Defaults to None, False.
        with_cp (bool, optional): As in :class:`VMamba`. Defaults to None, False.
        posembed (bool): Whether to create a position embedding. As in the authors' backbone, it is
            stored but neither added nor trained; their classifier, and :class:`VMamba` with
            ``pos_embed_size``, add it. Defaults to False.
        imgsize (int): Image side (pixels) of the embedding. Defaults to 224.
        **ignored: Other arguments, such as those of Swin that a config inherits, ``init_cfg``
            included. One warning lists them.

    Raises:
        TypeError: If an argument has a wrong type.
        ValueError: If a value is not allowed, the authors' code cannot run it, or ``with_cp`` and
            ``use_checkpoint`` differ.
    """

    def __init__(
        self,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        pretrained: str | None = None,
        norm_layer: str = 'ln',
        *,
        patch_size: int = 4,
        in_chans: int = 3,
        num_classes: int = 1000,
        depths: Sequence[int] = (2, 2, 9, 2),
        dims: int | Sequence[int] = (96, 192, 384, 768),
        ssm_d_state: int = 16,
        ssm_ratio: float = 2.0,
        ssm_dt_rank: int | str = 'auto',
        ssm_act_layer: str = 'silu',
        ssm_conv: int = 3,
        ssm_conv_bias: bool = True,
        ssm_drop_rate: float = 0.0,
        ssm_init: str = 'v0',
        forward_type: str = 'v2',
        mlp_ratio: float = 4.0,
        mlp_act_layer: str = 'gelu',
        mlp_drop_rate: float = 0.0,
        gmlp: bool = False,
        drop_path_rate: float = 0.1,
        patch_norm: bool = True,
        downsample_version: str = 'v2',
        patchembed_version: str = 'v1',
        use_checkpoint: bool | None = None,
        with_cp: bool | None = None,
        posembed: bool = False,
        imgsize: int = 224,
        **ignored: Any,
    ) -> None:
        if ignored:
            hint = ' (use pretrained= for weights)' if ignored.get('init_cfg') else ''
            warnings.warn(f'MM_VSSM ignores {", ".join(sorted(ignored))}{hint}', stacklevel=2)
        if None not in (with_cp, use_checkpoint) and with_cp != use_checkpoint:
            raise ValueError(
                f'with_cp and use_checkpoint are aliases and must be equal, but got {with_cp} '
                f'(perhaps inherited from another config) and {use_checkpoint}'
            )
        depths = as_tuple('depths', depths)
        if isinstance(dims, int):
            dims = tuple(dims * 2**i for i in range(len(depths)))
        ssm = dict(
            ssm_ratio=_at_least_0(ssm_ratio),
            d_state=ssm_d_state,
            dt_rank=None if ssm_dt_rank == 'auto' else ssm_dt_rank,
            act=_choice('ssm_act_layer', ssm_act_layer, _ACTIVATIONS, lower=True),
            conv_kernel=_at_least_0(ssm_conv),
            conv_bias=ssm_conv_bias,
            ssm_drop_rate=ssm_drop_rate,
            ssm_init=_choice('ssm_init', ssm_init, _SSM_INITS),
        )
        norm = _choice('norm_layer', norm_layer, _NORM_LAYERS, lower=True)
        settings = dict(
            dims=dims,
            depths=depths,
            **(ssm | scan_settings(forward_type, norm_layer)),
            mlp_ratio=_at_least_0(mlp_ratio),
            mlp_act=_choice('mlp_act_layer', mlp_act_layer, _ACTIVATIONS, lower=True),
            mlp_gate=gmlp,
            mlp_drop_rate=mlp_drop_rate,
            norm=norm,
            stem=_choice('patchembed_version', patchembed_version, _STEMS),
            stem_norm=patch_norm,
            downsample=_choice('downsample_version', downsample_version, _DOWNSAMPLES),
            patch_size=patch_size,
            pos_embed_size=imgsize if posembed else None,
            drop_path_rate=drop_path_rate,
        )
        for setting, argument in _ARGUMENTS.items():
            check_setting(setting, settings[setting], argument=argument)
        check_setting('in_channels', in_chans, argument='in_chans')
        super().__init__(
            Arch(**settings),
            out_indices=out_indices,
            with_cp=bool(with_cp or use_checkpoint),
            in_channels=in_chans,
            init_cfg=dict(type='Pretrained', checkpoint=pretrained) if pretrained else None,
        )
        if self.pos_embed is not None:
            # DistributedDataParallel waits for the gradients of all parameters that require one.
            self.pos_embed.requires_grad_(False)

    def add_pos_embed(self, x: Tensor, pos_embed: Tensor) -> Tensor:
        """Leave the map as it is, as the authors' backbone does."""
        return x


def scan_settings(forward_type: str, norm_layer: str = 'ln') -> dict[str, Any]:
    """Translate ``forward_type`` to settings of :class:`mmvmamba.nn.Arch`.

    The arguments are those of :class:`MM_VSSM`; the vanilla block needs the norm 'ln'.
    """
    if not isinstance(forward_type, str):
        raise TypeError(f'forward_type must be a str, but got {type(forward_type).__name__}')
    if forward_type in _VANILLA:
        if norm_layer.lower() != 'ln':
            raise ValueError(
                f"forward_type {forward_type!r} needs norm_layer 'ln', but got {norm_layer!r}"
            )
        # The authors' vanilla block does not take these from the arguments.
        fixed = dict(act='silu', conv_kernel=3, conv_bias=True, ssm_init='mamba')
        return scan_settings('v01') | fixed
    parts = _FORWARD_TYPE.fullmatch(forward_type)
    if parts is None:
        why = (why for start, why in _UNSUPPORTED.items() if forward_type.startswith(start))
        raise ValueError(
            f'forward_type must be one of {_VANILLA} or <base>[_on<norm>][_nozact][_noz][_oact]'
            f'[_no32] with a base of {tuple(_SCANS)} and a norm of '
            f'{tuple(filter(None, _OUT_NORMS))}, but got {forward_type!r}{next(why, "")}'
        )
    gate = 'linear' if parts['nozact'] else 'act'
    return dict(
        scan=_SCANS[parts['base']],
        gate='none' if parts['noz'] else gate,
        out_norm=_OUT_NORMS[parts['norm']],
        out_act=parts['oact'] is not None,
    )


def _choice(name: str, value: str, allowed: Mapping[str, str], lower: bool = False) -> str:
    if lower and isinstance(value, str):
        value = value.lower()
    check_choice(name, value, allowed)
    return allowed[value]


def _at_least_0(value: float) -> float:
    """Replace a negative number by 0, as the authors' code does."""
    return max(value, 0) if isinstance(value, numbers.Real) else value
