"""What the package adds to MMEngine's runner."""

from .hooks import CheckpointFitHook
from .optim_wrapper import CPUAmpOptimWrapper

__all__ = ['CPUAmpOptimWrapper', 'CheckpointFitHook']
