"""What FullyShardedDataParallel shards together."""

from __future__ import annotations

from torch import nn

from mmvmamba.nn.block import VSSBlock
from mmvmamba.registry import FUNCTIONS


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
