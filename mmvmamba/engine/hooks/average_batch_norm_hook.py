"""Averaging of BatchNorm statistics where SyncBN cannot run."""

from typing import Any

from mmengine.dist import all_reduce_params
from mmengine.hooks import Hook
from torch.nn.modules.batchnorm import _BatchNorm

from mmvmamba.registry import HOOKS


@HOOKS.register_module()
class AverageBatchNormHook(Hook):
    """Average the running statistics of BatchNorm over all processes after each step.

    SyncBN needs a GPU. Without it, each process would keep the statistics of its own images. The
    processes would then validate different models, and the checkpoint would contain only one of
    them.
    """

    priority = 'VERY_HIGH'  # before hooks that average or save the weights

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        layers = [m for m in runner.model.modules() if isinstance(m, _BatchNorm)]
        buffers = [b for m in layers for b in (m.running_mean, m.running_var) if b is not None]
        if buffers:
            all_reduce_params(buffers, op='mean')
