# Atomic checkpoints, exact resumption, SIGTERM, bad data and losses that are not finite: see
# docs/training.md. A config that lists this file among its bases writes
# `default_hooks = _base_.safety`.
safety = dict(
    checkpoint=dict(type='mmvmamba.AtomicCheckpointHook'),
    resume=dict(type='mmvmamba.ResumeHook'),
    preemption=dict(type='mmvmamba.PreemptionHook'),
    validation=dict(type='mmvmamba.RepeatValidationHook'),
    bad_data=dict(type='mmvmamba.BadDataHook', action='skip'),
    non_finite=dict(type='mmvmamba.NonFiniteLossHook'),
)
