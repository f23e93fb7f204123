"""Extensions of MMEngine's runner."""

from .data import CheckSample
from .hooks import (
    AtomicCheckpointHook,
    AverageBatchNormHook,
    BadDataHook,
    CheckpointMatchingHook,
    MixedSizesHook,
    NonFiniteLossHook,
    PlainParamGroupsHook,
    PreemptionHook,
    RepeatValidationHook,
    ResumeHook,
)
from .optimizers import CPUAmpOptimWrapper, LayerDecayOptimWrapperConstructor
from .runner import vss_block_policy

__all__ = [
    'AtomicCheckpointHook',
    'AverageBatchNormHook',
    'BadDataHook',
    'CPUAmpOptimWrapper',
    'CheckSample',
    'CheckpointMatchingHook',
    'LayerDecayOptimWrapperConstructor',
    'MixedSizesHook',
    'NonFiniteLossHook',
    'PlainParamGroupsHook',
    'PreemptionHook',
    'RepeatValidationHook',
    'ResumeHook',
    'vss_block_policy',
]
