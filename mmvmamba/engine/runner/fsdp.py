"""Sharded training with FullyShardedDataParallel: wrapping policy and checkpoints."""

from typing import Any

from mmengine._strategy import FSDPStrategy as _FSDPStrategy
from mmengine.dist import is_main_process
from torch.distributed.fsdp import FullyShardedDataParallel, StateDictType
from torch.distributed.fsdp.wrap import ModuleWrapPolicy

from mmvmamba.engine.atomic_io import atomic_write
from mmvmamba.nn.network import VSSBlock
from mmvmamba.registry import FUNCTIONS, STRATEGIES


@STRATEGIES.register_module()
class FSDPStrategy(_FSDPStrategy):
    """MMEngine's FSDPStrategy with crash-safe checkpoints that a run can resume from.

    Raises:
        ValueError: If ``state_dict_cfg`` requests the state of each process instead of the whole
            state.
    """

    def _init_state_dict_cfg(self, state_dict_cfg: str | dict) -> None:
        super()._init_state_dict_cfg(state_dict_cfg)
        if self.state_dict_type != StateDictType.FULL_STATE_DICT:
            raise ValueError(
                "state_dict_cfg must be 'full' or have the state_dict_type 'FULL_STATE_DICT', but "
                f'got {state_dict_cfg!r}, for which PyTorch writes files that are not safe to load'
            )

    def save_checkpoint(self, filename: str, **kwargs: Any) -> None:
        """Save a checkpoint under a temporary name, and rename it when it is complete."""
        if not is_main_process() or '://' in str(filename):
            super().save_checkpoint(filename, **kwargs)
            return
        with atomic_write(filename) as part:
            super().save_checkpoint(part, **kwargs)

    def optim_state_dict(self) -> dict:
        """Gather the whole state of the optimizer and its wrapper, such as the loss scale."""
        return {**self.optim_wrapper.state_dict(), **super().optim_state_dict()}

    def load_optim_state_dict(self, state_dict: dict) -> None:
        """Load this process's part of the optimizer's whole state.

        MMEngine passes the arguments in the order of PyTorch before 2.1.
        """
        optimizer = self.optim_wrapper.optimizer
        whole = {key: state_dict[key] for key in ('state', 'param_groups')}
        part = FullyShardedDataParallel.optim_state_dict_to_load(self.model, optimizer, whole)
        self.optim_wrapper.load_state_dict({**state_dict, **part})


#: Auto-wrap policy of FSDP: shard each VSS block by itself, and everything else together.
vss_block_policy = ModuleWrapPolicy({VSSBlock})
FUNCTIONS.register_module('vss_block_policy', module=vss_block_policy)
