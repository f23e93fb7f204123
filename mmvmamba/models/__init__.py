"""What OpenMMLab's configs see."""

from .vmamba import VMamba

__all__ = ['VMamba']
