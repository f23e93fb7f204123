"""What OpenMMLab's configs see."""

from .mm_vssm import MM_VSSM
from .vmamba import VMamba

__all__ = ['MM_VSSM', 'VMamba']
