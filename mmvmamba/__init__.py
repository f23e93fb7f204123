"""VMamba for OpenMMLab, timm and plain PyTorch, with selective-scan kernels for CPU and GPU.

``mmvmamba``, its ``ops``, ``checkpoint`` and ``nn`` need torch alone; ``mmvmamba.classify`` and
``mmvmamba.predict`` need torchvision, ``mmvmamba.timm`` timm, and ``mmvmamba.models`` and
``mmvmamba.registry`` MMEngine.
"""

import sys
from importlib.machinery import ModuleSpec
from typing import Any

from .version import __version__

_BACKBONES = ('VMamba', 'MM_VSSM', 'Vim', 'S4NDConvNeXt')

__all__ = ['__version__', 'classify', 'create_model', 'list_models']


def __getattr__(name: str) -> Any:
    # The ops can be used without the network.
    if name in ('create_model', 'list_models'):
        from . import nn

        return getattr(nn, name)
    if name == 'classify':
        from .predict import classify

        return classify
    hint = ''
    if name in _BACKBONES:  # 'mmvmamba.VMamba' is how configs name it.
        hint = f'; the class is {__name__}.models.{name}'
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}{hint}')


class _MMCVOpsFinder:
    """Find the stand-in for mmcv's compiled ops. It is the last finder, so that mmcv's own win."""

    name = 'mmcv._ext'

    @classmethod
    def find_spec(cls, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != cls.name:
            return None
        from .mmcv_ops import StandInLoader

        return ModuleSpec(name, StandInLoader(), origin=f'{__name__}.mmcv_ops')


if not any(getattr(finder, 'name', None) == _MMCVOpsFinder.name for finder in sys.meta_path):
    sys.meta_path.append(_MMCVOpsFinder)
