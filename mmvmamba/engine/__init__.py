"""What the package adds to MMEngine's runner."""

from .optim_wrapper import CPUAmpOptimWrapper

__all__ = ['CPUAmpOptimWrapper']
