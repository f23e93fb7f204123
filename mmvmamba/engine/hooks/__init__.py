"""Hooks for MMEngine's runner, one in each file."""

from .atomic_checkpoint_hook import AtomicCheckpointHook
from .average_batch_norm_hook import AverageBatchNormHook
from .bad_data_hook import BadDataHook
from .checkpoint_matching_hook import CheckpointMatchingHook
from .mixed_sizes_hook import MixedSizesHook
from .non_finite_loss_hook import NonFiniteLossHook
from .preemption_hook import PreemptionHook
from .repeat_validation_hook import RepeatValidationHook
from .resume_hook import ResumeHook
from .run_summary_hook import RunSummaryHook

__all__ = [
    'AtomicCheckpointHook',
    'AverageBatchNormHook',
    'BadDataHook',
    'CheckpointMatchingHook',
    'MixedSizesHook',
    'NonFiniteLossHook',
    'PreemptionHook',
    'RepeatValidationHook',
    'ResumeHook',
    'RunSummaryHook',
]
