"""Hooks for MMEngine's runner."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from mmvmamba.checkpoint.reader import state_dict_of
from mmvmamba.models.loading import adapt_state_dict, as_logged, check_fit
from mmvmamba.registry import HOOKS


@HOOKS.register_module()
class CheckpointMatchingHook(Hook):
    """Translates a released file's names and refuses a checkpoint that does not fit.

    MMEngine loads what fits and goes on with random weights in the rest.

    Args:
        whole (bool): Whether every tensor of the model must be in the file, as for a test; when a
            run is resumed it must anyway. Defaults to False.
    """

    priority = 'VERY_HIGH'  # before EMAHook copies the weights

    def __init__(self, whole: bool = False) -> None:
        self.whole = whole

    def after_load_checkpoint(self, runner: Any, checkpoint: Any) -> None:
        """Replaces ``state_dict`` in place.

        Raises:
            ValueError: If the checkpoint does not fit, or holds no state to resume from.
        """
        filename = str(runner._load_from or runner.work_dir)
        tensors = state_dict_of(checkpoint, filename)
        if runner._resume and not {'meta', 'message_hub'} <= checkpoint.keys():
            raise ValueError(
                f'checkpoint {filename!r} holds weights but no state of a run to resume; start '
                'from it with --cfg-options load_from=...'
            )
        model = _unwrapped(runner.model)
        tensors = adapt_state_dict(model, tensors)
        if any(isinstance(module, FullyShardedDataParallel) for module in runner.model.modules()):
            checkpoint['state_dict'] = tensors
            return  # names and shapes of shards say nothing about a file
        fit = check_fit(model, tensors, filename, self.whole or runner._resume)
        checkpoint['state_dict'] = as_logged(tensors)
        runner.logger.info(f'{filename}: {fit}')


def _unwrapped(model: nn.Module) -> nn.Module:
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model
