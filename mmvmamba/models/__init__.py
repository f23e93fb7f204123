"""Backbones for OpenMMLab configs."""

from . import flop_handles as flop_handles
from .data_preprocessor import multispectral_preprocessor
from .mm_vssm import MM_VSSM
from .s4nd_convnext import S4NDConvNeXt
from .vim import Vim
from .vmamba import VMamba

__all__ = ['MM_VSSM', 'S4NDConvNeXt', 'VMamba', 'Vim', 'multispectral_preprocessor']
