"""Training in shards: what FullyShardedDataParallel shards together, and how a run goes on."""

from __future__ import annotations

from mmengine._strategy import FSDPStrategy as _FSDPStrategy
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from mmvmamba.nn.block import VSSBlock
from mmvmamba.registry import FUNCTIONS, STRATEGIES


@STRATEGIES.register_module()
class FSDPStrategy(_FSDPStrategy):
    """MMEngine's strategy, which can resume too: PyTorch 2.1 changed the order of arguments."""

    def load_optim_state_dict(self, state_dict: dict) -> None:
        """Gives each process its part of the optimizer's whole state.

        Args:
            state_dict (dict): What a checkpoint holds.
        """
        optimizer = self.optim_wrapper.optimizer
        self.optim_wrapper.load_state_dict(
            FullyShardedDataParallel.optim_state_dict_to_load(self.model, optimizer, state_dict)
        )


@FUNCTIONS.register_module()
def vss_block_policy(module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
    """An ``auto_wrap_policy``: each VSS block is a shard of its own, and all else is one.

    Args:
        module (nn.Module): A part of the model.
        recurse (bool): Whether the question is if its parts are to be looked at.
        nonwrapped_numel (int): Its elements that are in no shard yet.

    Returns:
        bool: The answer.
    """
    return recurse or isinstance(module, VSSBlock)
