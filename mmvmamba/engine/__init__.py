"""What the package adds to MMEngine's runner."""

from .bad_data import BadDataHook
from .batch_norm import AverageBatchNormHook
from .checkpoint_hook import AtomicCheckpointHook
from .fsdp import vss_block_policy
from .hooks import CheckpointFitHook
from .layer_decay import LayerDecayOptimWrapperConstructor
from .mixed_sizes import MixedSizesHook
from .non_finite import NonFiniteLossHook
from .optim_wrapper import CPUAmpOptimWrapper
from .param_groups import PlainParamGroupsHook
from .preemption import PreemptionHook
from .resume import ResumeHook
from .sample_check import CheckSample
from .validation import RepeatValidationHook

__all__ = [
    'AtomicCheckpointHook',
    'AverageBatchNormHook',
    'BadDataHook',
    'CPUAmpOptimWrapper',
    'CheckSample',
    'CheckpointFitHook',
    'LayerDecayOptimWrapperConstructor',
    'MixedSizesHook',
    'NonFiniteLossHook',
    'PlainParamGroupsHook',
    'PreemptionHook',
    'RepeatValidationHook',
    'ResumeHook',
    'vss_block_policy',
]
