"""The classifier: norm, pooling over the map and linear layer."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from .arch import Arch
from .layers import NORMS, channels_first, channels_last, check_choice
from .settings import check_setting

#: What pools a map (N, C, H, W); '' leaves it, as (N, H, W, C).
POOLS = {
    'avg': lambda: nn.AdaptiveAvgPool2d(1),
    'max': lambda: nn.AdaptiveMaxPool2d(1),
    '': channels_last,
}


def build_classifier(
    arch: Arch, num_classes: int, global_pool: str = 'avg', drop_rate: float = 0.0
) -> nn.Sequential:
    """Builds the classifier by the released files' names.

    Args:
        arch (Arch): The architecture.
        num_classes (int): Classes; 0 for no linear layer.
        global_pool (str): A key of :data:`POOLS`. Defaults to 'avg'.
        drop_rate (float): Dropout before the linear layer. Defaults to 0.
    """
    norm, permute = NORMS[arch.norm](arch.dims[-1]), channels_first()
    first = {'norm': norm, 'permute': permute}
    if arch.norm == 'bn':
        first = {'permute': permute, 'norm': norm}
    drop = {'drop': nn.Dropout(drop_rate)} if drop_rate else {}
    return nn.Sequential(
        OrderedDict(
            first,
            **build_pooling(global_pool),
            **drop,
            head=build_linear(arch.dims[-1], num_classes),
        )
    )


def build_pooling(global_pool: str) -> dict[str, nn.Module]:
    """The layers between the norm and the linear layer, by name."""
    check_choice('global_pool', global_pool, POOLS)
    flatten = nn.Flatten(1) if global_pool else nn.Identity()
    return {'avgpool': POOLS[global_pool](), 'flatten': flatten}


def build_linear(dim: int, num_classes: int) -> nn.Module:
    """The last linear layer; for no classes nothing in its place."""
    check_setting('num_classes', num_classes)
    return nn.Linear(dim, num_classes) if num_classes else nn.Identity()
