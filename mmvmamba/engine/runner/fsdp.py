"""Training in shards: what FullyShardedDataParallel shards together, and how a run goes on."""

from __future__ import annotations

from typing import Any

from mmengine._strategy import FSDPStrategy as _FSDPStrategy
from mmengine.dist import is_main_process
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, StateDictType

from mmvmamba.engine.atomic_io import whole_file
from mmvmamba.nn.network import VSSBlock
from mmvmamba.registry import FUNCTIONS, STRATEGIES


@STRATEGIES.register_module()
class FSDPStrategy(_FSDPStrategy):
    """MMEngine's strategy, whose checkpoints are whole or not there, and which can resume.

    Raises:
        ValueError: If ``state_dict_cfg`` asks for the state of each process instead of the whole.
    """

    def _init_state_dict_cfg(self, state_dict_cfg: str | dict) -> None:
        super()._init_state_dict_cfg(state_dict_cfg)
        if self.state_dict_type != StateDictType.FULL_STATE_DICT:
            raise ValueError(
                "state_dict_cfg must be 'full' or have the state_dict_type 'FULL_STATE_DICT', but "
                f'got {state_dict_cfg!r}, of which PyTorch makes files that are not safe to load'
            )

    def save_checkpoint(self, filename: str, **kwargs: Any) -> None:
        """Writes the file beside its place, flushes it to the disk and renames it.

        Args:
            filename (str): The checkpoint.
            **kwargs: The arguments of MMEngine's strategy.
        """
        if not is_main_process() or '://' in str(filename):
            super().save_checkpoint(filename, **kwargs)
            return
        with whole_file(filename) as part:
            super().save_checkpoint(part, **kwargs)

    def optim_state_dict(self) -> dict:
        """Gathers the optimizer's whole state; MMEngine's wrapper adds some, as the loss scale."""
        return {**self.optim_wrapper.state_dict(), **super().optim_state_dict()}

    def load_optim_state_dict(self, state_dict: dict) -> None:
        """Gives each process its part of the optimizer's whole state.

        PyTorch 2.1 changed the order of the arguments.

        Args:
            state_dict (dict): What a checkpoint holds.
        """
        optimizer = self.optim_wrapper.optimizer
        whole = {key: state_dict[key] for key in ('state', 'param_groups')}
        part = FullyShardedDataParallel.optim_state_dict_to_load(self.model, optimizer, whole)
        self.optim_wrapper.load_state_dict({**state_dict, **part})


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
