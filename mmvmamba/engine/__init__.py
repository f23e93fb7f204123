"""What the package adds to MMEngine's runner."""

from .batch_norm import AverageBatchNormHook
from .fsdp import vss_block_policy
from .hooks import CheckpointFitHook
from .mixed_sizes import MixedSizesHook
from .optim_wrapper import CPUAmpOptimWrapper

__all__ = [
    'AverageBatchNormHook',
    'CPUAmpOptimWrapper',
    'CheckpointFitHook',
    'MixedSizesHook',
    'vss_block_policy',
]
