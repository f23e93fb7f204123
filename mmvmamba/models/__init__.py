"""What OpenMMLab's configs see."""

from . import flop_handles as flop_handles
from .mm_vssm import MM_VSSM
from .vmamba import VMamba

__all__ = ['MM_VSSM', 'VMamba']
