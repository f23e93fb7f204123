"""Released architectures and their settings."""

import dataclasses
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from mmvmamba.ops.scan_orders import Order

from .layers import ACTIVATIONS, DOWNSAMPLES, NORMS, STEMS
from .settings import (
    as_tuple,
    check_choice,
    check_conv_kernel,
    check_settings,
    check_width,
    did_you_mean,
)
from .ss2d import GATES, OUT_NORMS, SS2D, SSM_INITS, check_scan

_CHOICES: dict[str, Iterable[str]] = dict(
    gate=GATES,
    act=ACTIVATIONS,
    mlp_act=ACTIVATIONS,
    ssm_init=SSM_INITS,
    out_norm=OUT_NORMS,
    norm=NORMS,
    stem=STEMS,
    downsample=DOWNSAMPLES,
)


@dataclasses.dataclass(frozen=True)
class Arch:
    """Settings of a VMamba network. The defaults are those of VMamba-T s1l8.

    Args:
        dims (tuple[int, ...]): Channels of each stage.
        depths (tuple[int, ...]): VSS blocks of each stage.
        d_state (int): States per inner channel, 1 to 256.
        ssm_ratio (float): Ratio of inner channels to channels; 0 for blocks without SS2D.
        dt_rank (int, optional): Rank of the time steps' projection; None is ceil(d / 16).
        gate (str): 'none', 'act' (SS2D's result is multiplied by the activation of a second
            projection of its input, as in Mamba) or 'linear' (without that activation).
        conv_kernel (int): Size of the depthwise convolution in SS2D, odd; 0 or 1 for none.
        conv_bias (bool): Whether that convolution has a bias.
        act (str): SS2D's activation: 'silu', 'gelu', 'relu' or 'sigmoid'.
        scan (str | tuple[int | str, ...]): 'cross', 'unidirectional', 'bidirectional', 'cascade'
            (rows, then columns), an order registered with
            :func:`mmvmamba.ops.register_scan_order`, such as 'diagonal', 'snake', 'local_window' or
            'hilbert', or the order of each direction, see :func:`mmvmamba.ops.ss2d_scan`.
        ssm_init (str): Initialization of the SSM: 'mamba', 'random' or 'zero'.
        out_norm (str): Normalization after the scan: 'ln', 'none', 'dwconv3', 'ln_dwconv3',
            'softmax', 'sigmoid', or one registered with :func:`mmvmamba.nn.register_out_norm`.
        out_act (bool): Whether a GELU follows ``out_norm``.
        ssm_drop_rate (float): Dropout of SS2D's result.
        mlp_ratio (float): Ratio of hidden channels of the MLP to channels; 0 for no MLP.
        mlp_act (str): The MLP's activation.
        mlp_gate (bool): Whether the MLP is gated.
        mlp_drop_rate (float): Dropout in the MLP.
        norm (str): The norms outside SS2D: 'ln' or 'bn'.
        stem (str): 'conv' or 'patch'.
        stem_norm (bool): Whether the stem's convolutions are normalized.
        downsample (str): 'conv' (3x3), 'conv2x2' or 'merging'.
        patch_size (int): Side of a patch (pixels), even: the stride of the stem 'patch'. Each of
            the two convolutions of the stem 'conv' has half this stride.
        pos_embed_size (int, optional): Image side (pixels) for which a learned position embedding
            is created; None for no embedding.
        drop_path_rate (float): Drop-path rate of the last block; it grows linearly from 0.

    Raises:
        TypeError: If a setting has a wrong type.
        ValueError: If a name or a number is not allowed.
    """

    dims: tuple[int, ...] = (96, 192, 384, 768)
    depths: tuple[int, ...] = (2, 2, 8, 2)
    d_state: int = 1
    ssm_ratio: float = 1.0
    dt_rank: int | None = None
    gate: str = 'none'
    conv_kernel: int = 3
    conv_bias: bool = False
    act: str = 'silu'
    scan: str | tuple[Order, ...] = 'cross'
    ssm_init: str = 'mamba'
    out_norm: str = 'ln'
    out_act: bool = False
    ssm_drop_rate: float = 0.0
    mlp_ratio: float = 4.0
    mlp_act: str = 'gelu'
    mlp_gate: bool = False
    mlp_drop_rate: float = 0.0
    norm: str = 'ln'
    stem: str = 'conv'
    stem_norm: bool = True
    downsample: str = 'conv'
    patch_size: int = 4
    pos_embed_size: int | None = None
    drop_path_rate: float = 0.2

    def __post_init__(self) -> None:
        for name in ('dims', 'depths'):
            object.__setattr__(self, name, as_tuple(name, getattr(self, name)))
        object.__setattr__(self, 'scan', check_scan(self.scan))
        check_settings(**vars(self))
        for name, allowed in _CHOICES.items():
            check_choice(name, getattr(self, name), allowed)
        if len(self.dims) != len(self.depths) or not self.dims:
            raise ValueError(
                f'dims and depths must have the same length of at least 1, but got '
                f'dims={self.dims} and depths={self.depths}'
            )
        check_conv_kernel(self.conv_kernel)
        for name in ('ssm_ratio', 'mlp_ratio'):
            if getattr(self, name):
                check_width(name, getattr(self, name), min(self.dims))
        if self.stem == 'conv' and self.dims[0] < 2:
            raise ValueError(f"dims[0] must be at least 2 for stem 'conv', but got {self.dims[0]}")
        if self.patch_size % 2:
            raise ValueError(f'patch_size must be even, but got {self.patch_size}')
        if self.pos_embed_size is not None and self.pos_embed_size < self.patch_size:
            raise ValueError(
                f'pos_embed_size must be at least patch_size {self.patch_size}, but got '
                f'{self.pos_embed_size}'
            )

    @property
    def stem_stride(self) -> int:
        """Stride of the first stage's map."""
        return (self.patch_size // 2) ** 2 if self.stem == 'conv' else self.patch_size

    @property
    def ssm_settings(self) -> dict[str, Any]:
        """Arguments of :class:`SS2D` for all blocks."""
        shared = inspect.signature(SS2D).parameters.keys() & vars(self).keys()
        return {name: getattr(self, name) for name in shared} | {'drop_rate': self.ssm_drop_rate}


_BASE_DIMS = (128, 256, 512, 1024)
_VANILLA: dict[str, Any] = dict(
    d_state=16,
    ssm_ratio=2.0,
    gate='act',
    conv_bias=True,
    mlp_ratio=0.0,
    stem='patch',
    downsample='merging',
)

#: Architectures with released weights. 'tiny', 'small' and 'base' are those of the paper.
ARCHS: dict[str, Arch] = {
    'tiny_s1l8': Arch(),
    'tiny_s2l5': Arch(depths=(2, 2, 5, 2), ssm_ratio=2.0),
    'small_s2l15': Arch(depths=(2, 2, 15, 2), ssm_ratio=2.0, drop_path_rate=0.3),
    'small_s1l20': Arch(depths=(2, 2, 20, 2), drop_path_rate=0.3),
    'base_s2l15': Arch(_BASE_DIMS, (2, 2, 15, 2), ssm_ratio=2.0, drop_path_rate=0.6),
    'base_s1l20': Arch(_BASE_DIMS, (2, 2, 20, 2), drop_path_rate=0.5),
    'vanilla_tiny': Arch(depths=(2, 2, 9, 2), **_VANILLA),
    'vanilla_small': Arch(depths=(2, 2, 27, 2), **_VANILLA, drop_path_rate=0.3),
    'vanilla_base': Arch(_BASE_DIMS, (2, 2, 27, 2), **_VANILLA, drop_path_rate=0.6),
}
ARCHS.update(tiny=ARCHS['tiny_s1l8'], small=ARCHS['small_s2l15'], base=ARCHS['base_s2l15'])


def resolve_arch(arch: str | Mapping[str, Any] | Arch, **overrides: Any) -> Arch:
    """Build an :class:`Arch` from a name or a dict of settings, and overrides.

    Args:
        arch (str | Mapping | Arch): A key of :data:`ARCHS`, or settings of :class:`Arch`; omitted
            settings are those of VMamba-T.
        **overrides: Settings that replace those of ``arch``; None keeps a setting.

    Raises:
        TypeError: If ``arch`` is not one of these types.
        ValueError: If the name, a setting or its value is unknown.
    """
    if isinstance(arch, str):
        if arch not in ARCHS:
            raise ValueError(f'arch must be one of {sorted(ARCHS)} or a dict, but got {arch!r}')
        settings = ARCHS[arch]
    elif isinstance(arch, Mapping):
        check_known(arch)
        settings = Arch(**arch)
    elif isinstance(arch, Arch):
        settings = arch
    else:
        raise TypeError(f'arch must be a str, dict or Arch, but got {type(arch).__name__}')
    given = {name: value for name, value in overrides.items() if value is not None}
    check_known(given)
    return dataclasses.replace(settings, **given)


def check_known(settings: Iterable[str], arguments: Iterable[str] = ()) -> None:
    """Check the names of settings of :class:`Arch`; ``arguments`` are also allowed."""
    allowed = list(dict.fromkeys([*arguments, *(f.name for f in dataclasses.fields(Arch))]))
    unknown = sorted(set(settings) - set(allowed), key=str)
    if unknown:
        hint = did_you_mean(str(unknown[0]), allowed)
        kind = 'settings' if arguments else 'architecture settings'
        raise ValueError(f'unknown {kind} {unknown}{hint}; allowed are {allowed}')
