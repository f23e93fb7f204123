# Shards weights, gradients and optimizer state over the GPUs, block by block: for a model that does
# not fit on each GPU. A config that lists this file among its bases is started by
# tools/dist_train.sh or tools/slurm_train.sh. Checkpoints are whole, as without it. The norm of
# gradients that are sharded is not theirs: no clip_grad.
runner_type = 'FlexibleRunner'
strategy = dict(
    type='mmvmamba.FSDPStrategy',
    model_wrapper=dict(auto_wrap_policy='mmvmamba.vss_block_policy', use_orig_params=True),
    state_dict_cfg='full',
)
